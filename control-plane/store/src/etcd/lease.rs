//! Leases for keys with a time to live. Long-lived keys put at about the same time share one.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::link::{Link, unavailable};
use crate::StoreError;

/// Keys per lease; etcd deletes them in one transaction when the lease ends.
const KEYS_PER_LEASE: usize = 1000;
/// A lease is shared for this part of its time, and lives longer by that much.
const SHARED_PART: u64 = 20;

struct Lease {
    id: i64,
    shared_until: Instant,
    keys: usize,
}

pub(super) struct Leases {
    link: Link,
    /// By time to live in seconds.
    open: Mutex<HashMap<u64, Lease>>,
}

fn seconds(ttl: Duration) -> u64 {
    ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)
}

impl Leases {
    pub(super) fn new(link: Link) -> Self {
        Self {
            link,
            open: Mutex::new(HashMap::new()),
        }
    }

    /// A lease that ends no sooner than `ttl` from now, and not much later. etcd counts in seconds.
    pub(super) async fn get(&self, ttl: Duration) -> Result<i64, StoreError> {
        let ttl = seconds(ttl).max(1);
        let mut open = self.open.lock().await;
        let now = Instant::now();
        open.retain(|_, lease| lease.shared_until > now);
        if let Some(lease) = open.get_mut(&ttl).filter(|lease| lease.keys < KEYS_PER_LEASE) {
            lease.keys += 1;
            return Ok(lease.id);
        }
        let shared = ttl / SHARED_PART;
        let granted = i64::try_from(ttl + shared).unwrap_or(i64::MAX);
        let answer = self
            .link
            .lease()
            .grant(granted, None)
            .await
            .map_err(|error| unavailable(&error))?;
        let lease = Lease {
            id: answer.id(),
            shared_until: now + Duration::from_secs(shared),
            keys: 1,
        };
        if shared > 0 {
            open.insert(ttl, lease);
        }
        Ok(answer.id())
    }

    pub(super) async fn forget(&self, ttl: Duration) {
        self.open.lock().await.remove(&seconds(ttl).max(1));
    }

    pub(super) async fn time_left(&self, lease: u64) -> Result<Duration, StoreError> {
        let id = i64::try_from(lease).unwrap_or_default();
        let answer = self
            .link
            .lease()
            .time_to_live(id, None)
            .await
            .map_err(|error| unavailable(&error))?;
        Ok(Duration::from_secs(
            u64::try_from(answer.ttl()).unwrap_or_default(),
        ))
    }
}
