//! The cluster's DNS zone, decided from Services and EndpointSlices. No sockets, no wire format, no clock.
//!
//! Follows "Kubernetes DNS-Based Service Discovery" 1.1 (the specification of the schema of names):
//!
//! - [`Zone`] holds what is known and takes changes one at a time;
//! - [`Zone::answer`] says what stands under a name, and whether a name exists at all;
//! - [`view`] reads from API objects the little that the DNS needs of them;
//! - [`Cache`] remembers answers about other names for as long as they may be, within bounds;
//! - [`Routes`] says which servers are asked about other names.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod answer;
mod arpa;
mod cache;
mod routes;
pub mod view;
mod zone;

pub use answer::{Answer, Code, Data, Kind, Owner, Record};
pub use arpa::reverse_address;
pub use cache::Cache;
pub use routes::Routes;
pub use view::{Endpoint, Port, Proto, ServiceKey, ServiceView, Shape, SliceView};
pub use zone::{Zone, ZoneConfig};
