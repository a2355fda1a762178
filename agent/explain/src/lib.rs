//! What becomes of a packet and why, told from Kubernetes objects and the tables of the data path. No I/O: whoever asks brings
//! the objects and the tables.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod question;
mod world;

pub use question::{End, Port, Question, QuestionError};
pub use world::{Packet, Source, World, WorldError};
