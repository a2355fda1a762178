//! Asks etcd for its present revision, once for all who wait.

use etcd_client::GetOptions;
use tokio::sync::{mpsc, oneshot};

use super::link::{Link, MARKER, revision_of, unavailable};
use crate::{Revision, StoreError};

/// Readers served by one request.
const BATCH: usize = 1024;

pub(super) struct Ask {
    /// Whether the revision must be that of an event of ours.
    mark: bool,
    reply: oneshot::Sender<Result<Revision, StoreError>>,
}

/// A revision that is not before any write acknowledged up to now.
pub(super) async fn revision(asks: &mpsc::Sender<Ask>) -> Result<Revision, StoreError> {
    ask(asks, false).await
}

/// Like [`revision`], and the watch will tell an event of it.
pub(super) async fn mark(asks: &mpsc::Sender<Ask>) -> Result<Revision, StoreError> {
    ask(asks, true).await
}

async fn ask(asks: &mpsc::Sender<Ask>, mark: bool) -> Result<Revision, StoreError> {
    let (reply, answer) = oneshot::channel();
    asks.send(Ask { mark, reply })
        .await
        .map_err(|_| StoreError::Closed)?;
    answer.await.unwrap_or(Err(StoreError::Closed))
}

pub(super) struct Reader {
    link: Link,
    asks: mpsc::Receiver<Ask>,
}

impl Reader {
    pub(super) fn new(link: Link) -> (Self, mpsc::Sender<Ask>) {
        let (sender, asks) = mpsc::channel(BATCH);
        (Self { link, asks }, sender)
    }

    /// Each round begins after the questions it answers were asked, so its answer is linearizable for them.
    pub(super) async fn run(mut self) {
        let mut round = Vec::new();
        while self.asks.recv_many(&mut round, BATCH).await > 0 {
            round.retain(|ask| !ask.reply.is_closed());
            let answer = if round.iter().any(|ask| ask.mark) {
                self.mark().await
            } else {
                self.read().await
            };
            for ask in round.drain(..) {
                // Who does not wait any more needs no answer.
                let _ = ask.reply.send(answer.clone());
            }
        }
    }

    async fn read(&self) -> Result<Revision, StoreError> {
        let options = GetOptions::new().with_count_only();
        let answer = self.link.kv().get(self.link.key(MARKER), Some(options)).await;
        Ok(revision_of(answer.map_err(|error| unavailable(&error))?.header()))
    }

    async fn mark(&self) -> Result<Revision, StoreError> {
        let answer = self.link.kv().put(self.link.key(MARKER), Vec::new(), None).await;
        Ok(revision_of(answer.map_err(|error| unavailable(&error))?.header()))
    }
}
