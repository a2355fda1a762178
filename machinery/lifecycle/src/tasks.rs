//! The tasks of a process: started in order, stopped in the opposite order.

use std::fmt::Display;
use std::time::Duration;

use futures::FutureExt;
use futures::future::select_all;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::shutdown::Shutdown;

struct Task {
    name: String,
    shutdown: Shutdown,
    handle: JoinHandle<Result<(), String>>,
}

/// A task that ended before anyone asked it to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} ended unexpectedly: {why}")]
pub struct Ended {
    /// Its name.
    pub name: String,
    /// Its error, its panic, or that it just returned.
    pub why: String,
}

/// How stopping went, in the order of stopping.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopReport {
    /// Tasks that finished.
    pub drained: Vec<String>,
    /// Tasks that were cut off at the deadline.
    pub cut_off: Vec<String>,
    /// Tasks that ended with an error, and the error.
    pub failed: Vec<Ended>,
}

/// Tasks with names, in the order they were started in.
#[derive(Default)]
pub struct TaskSet {
    tasks: Vec<Task>,
}

impl TaskSet {
    /// No tasks.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task. It should return soon after the wish to stop that it is given has been made.
    pub fn spawn<F, E>(&mut self, name: impl Into<String>, task: impl FnOnce(Shutdown) -> F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let shutdown = Shutdown::new();
        let work = task(shutdown.clone());
        let handle = tokio::spawn(async move { work.await.map_err(|error| format!("{error:#}")) });
        self.tasks.push(Task {
            name: name.into(),
            shutdown,
            handle,
        });
    }

    /// Starts a task that has nothing to finish: it is dropped where it stands when it is to stop.
    pub fn spawn_endless<F>(&mut self, name: impl Into<String>, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn(name, |shutdown| async move {
            tokio::select! {
                () = shutdown.requested() => Ok::<(), String>(()),
                () = work => Err("it has nothing left to do".to_owned()),
            }
        });
    }

    /// Waits until a task ends of its own accord; forever if there is none.
    pub async fn ended(&mut self) -> Ended {
        if self.tasks.is_empty() {
            return std::future::pending().await;
        }
        let (result, index, _) =
            select_all(self.tasks.iter_mut().map(|task| (&mut task.handle).boxed())).await;
        let task = self.tasks.remove(index);
        let why = match result {
            Ok(Ok(())) => "it returned".to_owned(),
            Ok(Err(why)) => why,
            Err(error) => error.to_string(),
        };
        Ended { name: task.name, why }
    }

    /// Stops all tasks, the last one started first, each when the one before it has stopped. Together they have until
    /// `deadline`; a slow one takes at most half of what is left, but the last one all.
    pub async fn stop(mut self, deadline: Duration) -> StopReport {
        let end = Instant::now() + deadline;
        let mut report = StopReport::default();
        while let Some(task) = self.tasks.pop() {
            let left = end.saturating_duration_since(Instant::now());
            let share = if self.tasks.is_empty() { left } else { left / 2 };
            task.stop(share, &mut report).await;
        }
        report
    }
}

impl Task {
    async fn stop(mut self, within: Duration, report: &mut StopReport) {
        self.shutdown.request();
        match timeout(within, &mut self.handle).await {
            Ok(Ok(Ok(()))) => report.drained.push(self.name),
            Ok(Ok(Err(why))) => report.failed.push(Ended { name: self.name, why }),
            Ok(Err(error)) => report.failed.push(Ended {
                name: self.name,
                why: error.to_string(),
            }),
            Err(_) => {
                self.handle.abort();
                report.cut_off.push(self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tasks_stop_one_after_the_other_from_the_last_to_the_first() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = TaskSet::new();
        for name in ["store", "api", "controllers"] {
            let order = Arc::clone(&order);
            tasks.spawn(name, |shutdown| async move {
                shutdown.requested().await;
                order.lock().unwrap().push(name);
                Ok::<(), Infallible>(())
            });
        }
        let report = tasks.stop(Duration::from_secs(5)).await;
        assert_eq!(*order.lock().unwrap(), ["controllers", "api", "store"]);
        assert_eq!(report.drained, ["controllers", "api", "store"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_stop_is_cut_off_and_named_and_the_others_still_get_time() {
        let mut tasks = TaskSet::new();
        tasks.spawn("good", |shutdown| async move {
            shutdown.requested().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<(), Infallible>(())
        });
        tasks.spawn("stubborn", |_| std::future::pending::<Result<(), Infallible>>());
        let report = tasks.stop(Duration::from_secs(4)).await;
        assert_eq!(
            (report.drained, report.cut_off),
            (vec!["good".to_owned()], vec!["stubborn".to_owned()])
        );
    }

    #[tokio::test]
    async fn a_task_that_fails_is_noticed_at_once() {
        let mut tasks = TaskSet::new();
        tasks.spawn_endless("fine", std::future::pending());
        tasks.spawn("broken", |_| async { Err::<(), _>("no disk") });
        assert_eq!(
            tasks.ended().await,
            Ended {
                name: "broken".to_owned(),
                why: "no disk".to_owned()
            }
        );
    }
}
