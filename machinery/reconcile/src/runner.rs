//! Runs one controller: takes keys, has them observed and planned, and has the plans carried out.

use std::collections::HashMap;
use std::fmt::Display;
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use machinery_plan::Plan;

use crate::executor::{Executor, Failure, FailureKind};
use crate::queue::Queue;
use crate::schedule::Backoff;

/// Keys of one controller that are worked on at a time.
const WORKERS: usize = 8;

/// How earlier attempts on the same key went.
#[derive(Clone, Debug, Default)]
pub struct Attempt {
    /// Failures in a row before this attempt.
    pub failures: u32,
    /// The last of them.
    pub last_failure: Option<Failure>,
}

/// A controller: how to observe one key and what to do about what was observed.
pub trait Controller: Send + Sync + 'static {
    /// What names one piece of work.
    type Key: Clone + Eq + Hash + Display + Send + Sync + 'static;
    /// Everything the planner looks at.
    type Observed: Send;

    /// The name in logs and events, such as `deployment-controller`.
    fn name(&self) -> &'static str;

    /// Collects what the planner needs: from caches, rarely by asking the API server.
    ///
    /// # Errors
    /// When the API server had to be asked and did not answer; the key is tried again later.
    fn observe(&self, key: &Self::Key) -> impl Future<Output = Result<Self::Observed, Failure>> + Send;

    /// Decides, without I/O.
    fn plan(&self, key: &Self::Key, observed: Self::Observed, attempt: &Attempt, now: Timestamp) -> Plan;
}

/// Runs a [`Controller`].
pub struct Runner<C: Controller> {
    controller: Arc<C>,
    queue: Queue<C::Key>,
    executor: Executor,
    backoff: Backoff,
}

enum Outcome {
    Done(Option<std::time::Duration>),
    Failed(Failure),
}

impl<C: Controller> Runner<C> {
    /// A runner for `controller`, whose plans `executor` carries out.
    pub fn new(controller: C, executor: &Executor) -> Self {
        Self::with_queue(controller, executor, Queue::default())
    }

    /// A runner that takes its keys from a queue that others have already.
    pub fn with_queue(controller: C, executor: &Executor, queue: Queue<C::Key>) -> Self {
        let executor = executor.named(controller.name());
        Self {
            controller: Arc::new(controller),
            queue,
            executor,
            backoff: Backoff::default(),
        }
    }

    /// Where to add keys; connect caches to it before running.
    #[must_use]
    pub fn queue(&self) -> Queue<C::Key> {
        self.queue.clone()
    }

    /// The controller.
    #[must_use]
    pub fn controller(&self) -> &Arc<C> {
        &self.controller
    }

    /// Works from when every source has `synced` until `stop` is ready; then finishes what is under way.
    pub async fn run(self, synced: impl Future<Output = ()>, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        tokio::select! {
            () = &mut stop => return,
            () = synced => {}
        }
        let mut attempts: HashMap<C::Key, Attempt> = HashMap::new();
        let mut under_way = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = &mut stop => break,
                key = self.queue.next(), if under_way.len() < WORKERS => {
                    let attempt = attempts.get(&key).cloned().unwrap_or_default();
                    under_way.push(self.attempt(key, attempt));
                }
                Some((key, outcome)) = under_way.next() => self.settle(key, outcome, &mut attempts),
            }
        }
        while under_way.next().await.is_some() {}
    }

    async fn attempt(&self, key: C::Key, attempt: Attempt) -> (C::Key, Outcome) {
        let work = AssertUnwindSafe(self.work(&key, &attempt)).catch_unwind().await;
        let outcome = work.unwrap_or_else(|_| {
            let action = format!("plan for {key}");
            let message = "the planner panicked; this is a bug".to_owned();
            Outcome::Failed(Failure {
                action,
                kind: FailureKind::Refused,
                message,
            })
        });
        (key, outcome)
    }

    async fn work(&self, key: &C::Key, attempt: &Attempt) -> Outcome {
        let observed = match self.controller.observe(key).await {
            Ok(observed) => observed,
            Err(failure) => return Outcome::Failed(failure),
        };
        let plan = self.controller.plan(key, observed, attempt, Timestamp::now());
        match self.executor.carry_out(&plan).await {
            Ok(()) => Outcome::Done(plan.requeue_after),
            // Nothing more can come into being there; the deletion of the namespace clears the rest away.
            Err(failure) if failure.kind == FailureKind::NamespaceTerminating => Outcome::Done(None),
            Err(failure) => Outcome::Failed(failure),
        }
    }

    fn settle(&self, key: C::Key, outcome: Outcome, attempts: &mut HashMap<C::Key, Attempt>) {
        match outcome {
            Outcome::Done(again) => {
                attempts.remove(&key);
                if let Some(delay) = again {
                    self.queue.add_after(key.clone(), delay);
                }
            }
            Outcome::Failed(failure) => {
                let attempt = attempts.entry(key.clone()).or_default();
                attempt.failures += 1;
                self.log(&key, &failure, attempt.failures);
                attempt.last_failure = Some(failure);
                self.queue
                    .add_after(key.clone(), self.backoff.delay(attempt.failures, fastrand::f64()));
            }
        }
        self.queue.done(&key);
    }

    /// A plan that was out of date is everyday life; anything else, and what goes on, is worth a line.
    fn log(&self, key: &C::Key, failure: &Failure, failures: u32) {
        let controller = self.controller.name();
        if failure.kind == FailureKind::Stale && failures < 5 {
            tracing::debug!(controller, %key, %failure, "plan out of date, planning again");
        } else {
            tracing::warn!(controller, %key, %failure, failures, "will be tried again");
        }
    }
}
