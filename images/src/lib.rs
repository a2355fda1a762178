//! The programs of the container images that Skep brings along.
//!
//! Both run as process 1 of their namespace, linked statically, with nothing else in the image: no shell, no libraries.
//! `cargo xtask build` makes the images of them.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod http;
pub mod signals;
