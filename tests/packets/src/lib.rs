//! Packets as data: what goes in, which services there are, what has to come out. `fixtures/*.toml` hold cases in names (`vip:80`, `outside:4000`);
//! each stands for one case in either family and with each of its protocols, and is run on the logic on the host and on the
//! loaded programs.
mod case;
mod check;
mod frame;
pub mod host;
pub mod kernel;
pub mod mutate;
mod names;
pub mod onward;
mod shape;
mod sum;
pub mod talk;
mod text;

pub use case::{Case, Hook, Outcome, Service, Step, cases};
pub use check::{Done, Node, check};
pub use frame::{About, Frame, checksums_hold};
pub use names::{Names, node, settings};
pub use shape::{Piece, Shape};

use datapath_abi::{Address, Be16};
use std::io::Write as _;
use std::net::SocketAddr;

/// TCP flags in the table.
pub mod flag {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// Reads an address of a test.
pub fn at(text: &str) -> SocketAddr {
    text.parse()
        .unwrap_or_else(|e| panic!("the test's address {text}: {e}"))
}

/// As the maps have it.
pub fn wire(at: SocketAddr) -> (Address, Be16) {
    (at.ip().into(), Be16::new(at.port()))
}

/// Says that this kernel cannot run a test, and why, where somebody listens; fails otherwise.
pub fn skip(test: &str, why: &str) {
    let file = std::env::var_os("SKEP_SKIPS").unwrap_or_else(|| panic!("{test}: {why}"));
    let file = std::fs::File::options().append(true).create(true).open(file);
    // In one piece: another test may write at the same time.
    let told = file.and_then(|mut f| f.write_all(format!("{test}\t{why}\n").as_bytes()));
    told.unwrap_or_else(|e| panic!("the file for skips: {e}"));
}
