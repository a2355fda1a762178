//! The connection: clients, key names, reading everything, and what is wrong with it at present.

use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{
    Certificate, Client, ConnectOptions, GetOptions, Identity, KeyValue, KvClient, LeaseClient,
    MaintenanceClient, ResponseHeader, TlsOptions, WatchClient,
};

use super::EtcdConfig;
use crate::{Entry, OpenError, Revision, StoreError};

/// Keys read at once when everything is read.
const PAGE: i64 = 1000;
/// Most bytes of one answer; a page of large values is far larger than gRPC's default of 4 MiB.
const LARGEST_ANSWER: usize = i32::MAX as usize;
/// A silent connection is asked for a sign of life this often, so that a cut is noticed. etcd cuts clients that ask
/// more often than every five seconds.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Everything below the prefix at one revision.
pub(super) struct Loaded {
    pub(super) revision: Revision,
    pub(super) cluster: u64,
    pub(super) entries: Vec<(Bytes, Arc<Entry>)>,
}

#[derive(Clone)]
pub(super) struct Link {
    client: Client,
    prefix: Arc<[u8]>,
    trouble: Arc<RwLock<Option<String>>>,
}

impl Link {
    pub(super) async fn new(config: &EtcdConfig) -> Result<Self, OpenError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(Duration::from_secs(3))
            .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE)
            .with_keep_alive_while_idle(true);
        if let Some(tls) = &config.tls {
            let mut with = TlsOptions::new().ca_certificate(Certificate::from_pem(&tls.ca));
            if let Some((certificate, key)) = &tls.client {
                with = with.identity(Identity::from_pem(certificate, key));
            }
            options = options.with_tls(with);
        }
        let client = Client::connect(&config.endpoints, Some(options))
            .await
            .map_err(|error| OpenError::Etcd {
                endpoints: config.endpoints.join(", "),
                reason: error.to_string(),
            })?;
        Ok(Self {
            client,
            prefix: config.prefix.as_bytes().into(),
            trouble: Arc::default(),
        })
    }

    pub(super) fn kv(&self) -> KvClient {
        self.client.kv_client().max_decoding_message_size(LARGEST_ANSWER)
    }

    pub(super) fn watch(&self) -> WatchClient {
        self.client
            .watch_client()
            .max_decoding_message_size(LARGEST_ANSWER)
    }

    pub(super) fn lease(&self) -> LeaseClient {
        self.client.lease_client()
    }

    pub(super) fn maintenance(&self) -> MaintenanceClient {
        self.client.maintenance_client()
    }

    /// The name in etcd of one of our keys.
    pub(super) fn key(&self, key: &[u8]) -> Vec<u8> {
        [&self.prefix, key].concat()
    }

    /// Our name of a key in etcd; `None` for the marker.
    pub(super) fn own_key(&self, key: &[u8]) -> Option<Bytes> {
        let own = key.strip_prefix(&*self.prefix)?;
        (own != MARKER).then(|| Bytes::copy_from_slice(own))
    }

    pub(super) fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// The end of the range of all our keys, as etcd takes it.
    pub(super) fn range_end(&self) -> Vec<u8> {
        prefix_end(&self.prefix)
    }

    pub(super) async fn load(&self) -> Result<Loaded, etcd_client::Error> {
        let mut loaded = Loaded {
            revision: Revision::default(),
            cluster: 0,
            entries: Vec::new(),
        };
        // An empty start is refused by etcd; no key is before this one but the empty one, which etcd cannot hold.
        let mut from = if self.prefix.is_empty() {
            vec![0]
        } else {
            self.prefix.to_vec()
        };
        loop {
            let at = i64::try_from(loaded.revision.get()).unwrap_or_default();
            let options = GetOptions::new()
                .with_range(self.range_end())
                .with_limit(PAGE)
                .with_revision(at);
            let mut page = self.kv().get(from, Some(options)).await?;
            if loaded.revision == Revision::default() {
                loaded.revision = revision_of(page.header());
                loaded.cluster = page.header().map_or(0, ResponseHeader::cluster_id);
            }
            let more = page.more();
            let rows = page.take_kvs();
            from = rows
                .last()
                .map(|last| [last.key(), &[0]].concat())
                .unwrap_or_default();
            let rows = rows
                .iter()
                .filter_map(|row| Some((self.own_key(row.key())?, Arc::new(entry_of(row)))));
            loaded.entries.extend(rows);
            if !more {
                return Ok(loaded);
            }
        }
    }

    pub(super) async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let revision = i64::try_from(revision.get()).unwrap_or_default();
        match self.kv().compact(revision, None).await {
            // Another server was first.
            Err(error) if error.to_string().contains("has been compacted") => Ok(()),
            Err(error) => Err(unavailable(&error)),
            Ok(_) => Ok(()),
        }
    }

    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble
            .read()
            .expect("nothing panics while it holds this lock")
            .clone()
    }

    pub(super) fn set_trouble(&self, trouble: Option<String>) {
        *self
            .trouble
            .write()
            .expect("nothing panics while it holds this lock") = trouble;
    }
}

/// A key of ours that no reader sees: an event of it tells how far the watch is.
pub(super) const MARKER: &[u8] = b"\0skep-marker";

fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    match prefix.iter().rposition(|&byte| byte != 0xff) {
        Some(last) => {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            end
        }
        // Everything to the end, in etcd's notation.
        None => vec![0],
    }
}

fn number(of: i64) -> u64 {
    u64::try_from(of).unwrap_or_default()
}

pub(super) fn revision_of(header: Option<&ResponseHeader>) -> Revision {
    Revision::new(header.map_or(0, |header| number(header.revision())))
}

pub(super) fn entry_of(row: &KeyValue) -> Entry {
    Entry {
        value: Bytes::copy_from_slice(row.value()),
        created: Revision::new(number(row.create_revision())),
        modified: Revision::new(number(row.mod_revision())),
        version: number(row.version()),
        term: number(row.lease()),
    }
}

pub(super) fn unavailable(error: &etcd_client::Error) -> StoreError {
    let mut reason = error.to_string();
    if reason.contains("request is too large") {
        reason.push_str(" (raise etcd's --max-request-bytes)");
    }
    StoreError::Unavailable(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_next_key_that_does_not_have_it() {
        assert_eq!(prefix_end(b"/a"), b"/b");
        assert_eq!(prefix_end(b"/\xff\xff"), b"0");
        assert_eq!(prefix_end(b"\xff"), b"\0");
        assert_eq!(prefix_end(b""), b"\0");
    }
}
