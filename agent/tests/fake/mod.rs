//! Stand-ins for the two ends of a worker: a container runtime on a unix socket and an API server in memory.

pub mod api;
pub mod runtime;

use agent::network::{Addresses, Network};
use std::sync::Mutex;

/// A network that gives everyone the same addresses and notes what it was asked.
#[derive(Default)]
pub struct FakeNetwork(pub Mutex<Vec<String>>);

impl Network for FakeNetwork {
    fn allocate(&self, uid: &str) -> Result<Addresses, String> {
        self.0.lock().unwrap().push(format!("allocate {uid}"));
        Ok(Addresses {
            ips: vec!["10.244.0.9".parse().unwrap()],
            ..Addresses::default()
        })
    }

    fn release(&self, uid: &str) -> Result<(), String> {
        self.0.lock().unwrap().push(format!("release {uid}"));
        Ok(())
    }

    fn attach(&self, uid: &str) -> Result<(), String> {
        self.0.lock().unwrap().push(format!("attach {uid}"));
        Ok(())
    }
}
