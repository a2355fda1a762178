//! Parse, look up, choose, rewrite: the packet logic, without std and without unsafe.
//!
//! Kernel programs and host tests run this same code: what differs, how bytes are read and where tables live, are the two
//! traits [`Packet`] and [`Tables`]. All functions are inlined, so a program is one function for the verifier.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

#[cfg(any(test, feature = "host"))]
extern crate std;

pub mod checksum;
pub mod choose;
pub mod flow;
pub mod forward;
#[cfg(any(test, feature = "host"))]
pub mod host;
pub mod open;
pub mod packet;
pub mod reject;
pub mod rewrite;
pub mod sctp;
pub mod socket;
mod step;
mod tables;

pub use packet::{Packet, PacketMut, Parsed};
pub use tables::{FlowTable, Tables};
