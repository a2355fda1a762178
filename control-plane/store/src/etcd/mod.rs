//! The etcd v3 back end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::core::Core;
use crate::{Entry, Expect, OpenError, Options, Revision, Snapshot, StoreError};

/// How to reach etcd.
#[derive(Clone, Debug, Default)]
pub struct EtcdConfig {
    /// URLs such as `https://10.0.0.1:2379`; any one that answers will do.
    pub endpoints: Vec<String>,
    /// Certificates, for `https`.
    pub tls: Option<EtcdTls>,
    /// Put before each key, so that several clusters can share one etcd. May be empty.
    pub prefix: String,
    /// How the store behaves.
    pub options: Options,
}

/// Certificates in PEM.
#[derive(Clone, Debug)]
pub struct EtcdTls {
    /// Who signed etcd's certificate.
    pub ca: Vec<u8>,
    /// Our certificate and its key, when etcd asks for one.
    pub client: Option<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone)]
pub(crate) struct Etcd {}

impl Etcd {
    pub(crate) async fn connect(config: EtcdConfig) -> Result<(Self, Arc<Core>), OpenError> {
        Err(OpenError::Etcd {
            endpoints: config.endpoints.join(","),
            reason: "not built yet".into(),
        })
    }
    pub(crate) async fn fresh(&self) -> Result<Snapshot, StoreError> {
        Err(StoreError::Closed)
    }
    pub(crate) async fn put(
        &self,
        _: Bytes,
        _: Bytes,
        _: Expect,
        _: Option<Duration>,
    ) -> Result<Revision, StoreError> {
        Err(StoreError::Closed)
    }
    pub(crate) async fn delete(&self, _: Bytes, _: Expect) -> Result<(Revision, Arc<Entry>), StoreError> {
        Err(StoreError::Closed)
    }
    pub(crate) async fn compact(&self, _: Revision) -> Result<(), StoreError> {
        Err(StoreError::Closed)
    }
    pub(crate) async fn bytes_on_disk(&self) -> Option<u64> {
        None
    }
    pub(crate) fn trouble(&self) -> Option<String> {
        None
    }
    pub(crate) fn close(&self) {}
}
