//! The embedded back end: one file, one writer task, many writes per sync of the disk.

mod log;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::core::Core;
use crate::{Entry, Expect, OpenError, Options, Revision, StoreError};
use log::Log;
use writer::{Request, Writer};

/// Writes that may wait for the writer; more wait in their callers until the deadline.
const QUEUE: usize = 1024;

/// Handle of the writer task, which ends when the last handle is dropped or by [`Embedded::close`].
#[derive(Clone)]
pub(crate) struct Embedded {
    requests: mpsc::Sender<Request>,
    path: Arc<PathBuf>,
    trouble: Trouble,
}

/// Why writes fail, shared with readers of the status.
type Trouble = Arc<RwLock<Option<String>>>;

impl Embedded {
    pub(crate) async fn open(path: &Path, options: Options) -> Result<(Self, Arc<Core>), OpenError> {
        let path = Arc::new(path.to_path_buf());
        let file = Arc::clone(&path);
        let opened = tokio::task::spawn_blocking(move || {
            let log = Log::open(&file, options.durability)?;
            let loaded = log.load()?;
            Ok((log, loaded))
        });
        let (log, loaded) = opened
            .await
            .map_err(|_| OpenError::Damaged("reading it failed".into()))??;
        let trouble = Trouble::default();
        let (requests, queue) = mpsc::channel(QUEUE);
        let writer = Writer::new(log, loaded, Arc::clone(&path), options, Arc::clone(&trouble));
        let core = writer.core();
        tokio::spawn(writer.run(queue));
        Ok((
            Self {
                requests,
                path,
                trouble,
            },
            core,
        ))
    }

    pub(crate) async fn put(
        &self,
        key: Bytes,
        value: Bytes,
        expect: Expect,
        ttl: Option<Duration>,
    ) -> Result<Revision, StoreError> {
        self.ask(|reply| Request::Put {
            key,
            value,
            expect,
            ttl,
            reply,
        })
        .await
    }

    pub(crate) async fn delete(
        &self,
        key: Bytes,
        expect: Expect,
    ) -> Result<(Revision, Arc<Entry>), StoreError> {
        self.ask(|reply| Request::Delete { key, expect, reply }).await
    }

    pub(crate) async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.ask(|reply| Request::Compact { revision, reply }).await
    }

    /// Writes entries as they are, into an empty store, and goes on from `revision`.
    pub(crate) async fn import(
        &self,
        entries: Vec<(Bytes, Arc<Entry>)>,
        revision: Revision,
    ) -> Result<(), StoreError> {
        self.ask(|reply| Request::Import {
            entries,
            revision,
            reply,
        })
        .await
    }

    /// Waits until everything is on disk and the file is closed.
    pub(crate) async fn close(&self) {
        let (reply, done) = oneshot::channel();
        if self.requests.send(Request::Close { reply }).await.is_ok() {
            // An error says that the writer has ended already, which is what is asked for.
            let _ = done.await;
        }
    }

    pub(crate) fn bytes_on_disk(&self) -> Option<u64> {
        std::fs::metadata(&*self.path).ok().map(|meta| meta.len())
    }

    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble
            .read()
            .expect("nothing panics while it holds this lock")
            .clone()
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Request,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(request(reply))
            .await
            .map_err(|_| StoreError::Closed)?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }
}
