//! What becomes of a packet and why, told from Kubernetes objects and the tables of the data path. No I/O: whoever asks brings
//! the objects and the tables.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod decide;
mod endpoints;
mod explain;
pub mod probe;
mod question;
mod snapshot;
mod world;

pub use endpoints::EndpointLine;
pub use explain::{Ask, DecidedBy, Explanation, Hook, Outcome, Step, explain};
pub use question::{End, Port, Question, QuestionError};
pub use snapshot::{Snapshot, planned};
pub use world::{Packet, Source, World, WorldError};
