//! Pod network over netlink: addresses, veth pairs, routes; also the CNI plugin.
//!
//! A pod's network is a veth pair and nothing else: no bridge, no packet filter. Inside, the pod has its addresses as
//! /32 and /128 and a default route through a link-local gateway whose neighbour entry is permanent; outside, the node
//! has one route per pod address. Peers' pod ranges are plain routes through the peers' node addresses.
//!
//! - [`ipam`] decides which address a pod gets (pure);
//! - [`PodNetwork`] keeps that decision across restarts and prepares the node;
//! - [`cni`] is the plugin that the container runtime calls: it builds and removes the veth pair;
//! - [`routes`] keeps the routes to the other nodes;
//! - [`announce`] answers ARP and neighbour discovery for LoadBalancer addresses;
//! - [`interfaces`] tells which devices and addresses the node has, and each change of them;
//! - [`link`] and [`netns`] are the netlink calls and the namespace switch that all of them use.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod announce;
pub mod cni;
pub mod interfaces;
pub mod ipam;
pub mod link;
pub mod neighbour;
pub mod netns;
mod network;
pub mod packet;
mod prefix;
pub mod routes;
pub mod sysctl;

pub use network::{Config, NetworkError, PodAddresses, PodNetwork, host_device};
pub use prefix::{ParsePrefixError, Prefix};
pub use routes::PeerNode;
