//! Keeps processes running: starts them in order, and again with back-off when they end.
//!
//! Without an asynchronous runtime, since it is also process 1 of a node, which must take the exit state of *every*
//! process that ends there, not only of those it started.
use crate::process::Process;
use rustix::process::{Signal, WaitOptions, wait};
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Pauses between two starts of a process that keeps ending: doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(10);
/// A process that ran for so long is not failing; its next pause is the first again.
const SETTLED: Duration = Duration::from_secs(30);
/// A log longer than this is put aside when its process starts again.
const LOG_LIMIT: u64 = 16 << 20;

/// What happens with a process that ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is started again.
    Keep,
    /// It runs until it succeeds, and the steps behind it wait for that.
    Once,
}

type Prepare = Box<dyn FnMut() -> io::Result<Command>>;
type Changed = Box<dyn FnMut(&[(String, Process)])>;
type Started = Box<dyn FnMut(&mut Child) -> anyhow::Result<Option<Process>>>;

/// One process in the order of start.
pub struct Step {
    /// Its name in logs and records.
    pub name: String,
    /// What happens when it ends.
    pub kind: Kind,
    /// How it is told to stop, and how long it gets.
    pub stop: (Signal, Duration),
    /// Makes the command, before each start.
    pub command: Prepare,
    /// What has to be done once it runs; if that fails, it is killed and started again. It may name another process: the
    /// one that does the work, at whose end this one ends, too. That one is recorded by the step's name and gets the
    /// signals.
    pub started: Option<Started>,
}

impl Step {
    /// A process that is kept running.
    pub fn keep(name: impl Into<String>, command: impl FnMut() -> io::Result<Command> + 'static) -> Self {
        let stop = (Signal::TERM, Duration::from_secs(10));
        Self {
            name: name.into(),
            kind: Kind::Keep,
            stop,
            command: Box::new(command),
            started: None,
        }
    }

    /// A process that has to succeed before the next steps.
    pub fn once(name: impl Into<String>, command: impl FnMut() -> io::Result<Command> + 'static) -> Self {
        Self {
            kind: Kind::Once,
            ..Self::keep(name, command)
        }
    }
}

enum Event {
    Ended(u32, String, bool),
    Stop,
}

enum State {
    Waiting(Instant),
    Running {
        process: Process,
        worker: Option<Process>,
        since: Instant,
    },
    Done,
}

struct Slot {
    step: Step,
    state: State,
    failures: u32,
}

/// The running set.
pub struct Keeper {
    slots: Vec<Slot>,
    events: Receiver<Event>,
    spawned: SyncSender<()>,
    changed: Changed,
}

impl Keeper {
    /// Begins to watch for ended children and stop signals. `changed` hears which processes run, after each change.
    ///
    /// # Errors
    /// When a thread or the signal handlers cannot be had.
    pub fn new(steps: Vec<Step>, changed: impl FnMut(&[(String, Process)]) + 'static) -> io::Result<Self> {
        // Each queue holds hints and few processes exist; a full one blocks its sender, which is only a thread.
        let (to_us, events) = sync_channel(64);
        let (spawned, starts) = sync_channel(1);
        let ends = to_us.clone();
        std::thread::Builder::new()
            .name("reaper".into())
            .spawn(move || reap(&ends, &starts))?;
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                if let Err(e) = stop_signal() {
                    tracing::error!("cannot wait for signals: {e}");
                    return;
                }
                let _ = to_us.send(Event::Stop);
            })?;
        let now = Instant::now();
        let slots = steps
            .into_iter()
            .map(|step| Slot {
                step,
                state: State::Waiting(now),
                failures: 0,
            })
            .collect();
        Ok(Self {
            slots,
            events,
            spawned,
            changed: Box::new(changed),
        })
    }

    /// Runs everything until SIGTERM or SIGINT, then stops everything in reverse order.
    pub fn run(mut self) {
        loop {
            let next = self.start_due();
            let event = match next {
                Some(at) => match self
                    .events
                    .recv_timeout(at.saturating_duration_since(Instant::now()))
                {
                    Err(RecvTimeoutError::Timeout) => continue,
                    event => event.ok(),
                },
                None => self.events.recv().ok(),
            };
            match event {
                Some(Event::Ended(pid, how, well)) => self.ended(pid, &how, well),
                Some(Event::Stop) | None => break,
            }
        }
        self.stop();
    }

    /// Starts what is due, in order, up to the first unfinished step that others wait for. Returns when to look again.
    fn start_due(&mut self) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for n in 0..self.slots.len() {
            if let State::Waiting(due) = self.slots[n].state {
                if due <= Instant::now() {
                    self.start(n);
                }
                if let State::Waiting(due) = self.slots[n].state {
                    next = Some(next.map_or(due, |at| at.min(due)));
                }
            }
            let slot = &self.slots[n];
            if slot.step.kind == Kind::Once && !matches!(slot.state, State::Done) {
                break;
            }
        }
        next
    }

    fn start(&mut self, n: usize) {
        let slot = &mut self.slots[n];
        match slot.start() {
            Ok(running) => {
                tracing::info!("{} started", slot.step.name);
                slot.state = running;
            }
            Err(e) => {
                tracing::error!("{} cannot be started: {e:#}", slot.step.name);
                slot.fail();
            }
        }
        // Full means that the reaper has not seen the last hint yet.
        let _ = self.spawned.try_send(());
        self.report();
    }

    fn ended(&mut self, pid: u32, how: &str, well: bool) {
        let ours = |s: &&mut Slot| matches!(s.state, State::Running { process, .. } if process.pid == pid);
        let Some(slot) = self.slots.iter_mut().find(ours) else {
            return;
        };
        if slot.step.kind == Kind::Once && well {
            tracing::info!("{} done", slot.step.name);
            slot.state = State::Done;
        } else {
            tracing::warn!("{} {how}", slot.step.name);
            slot.fail();
        }
        self.report();
    }

    fn report(&mut self) {
        let running: Vec<(String, Process)> = self
            .slots
            .iter()
            .filter_map(|slot| match slot.state {
                State::Running { process, worker, .. } => Some((&slot.step.name, process, worker)),
                _ => None,
            })
            .flat_map(|(name, process, worker)| {
                let launcher = worker.map(|_| (format!("{name}/launcher"), process));
                std::iter::once((name.clone(), worker.unwrap_or(process))).chain(launcher)
            })
            .collect();
        (self.changed)(&running);
    }

    fn stop(mut self) {
        tracing::info!("stopping");
        for n in (0..self.slots.len()).rev() {
            let (signal, patience) = self.slots[n].step.stop;
            for (signal, patience) in [(signal, patience), (Signal::KILL, Duration::from_secs(5))] {
                let State::Running { process, worker, .. } = self.slots[n].state else {
                    break;
                };
                worker.unwrap_or(process).signal(signal);
                self.wait_for(process.pid, Instant::now() + patience);
            }
        }
        tracing::info!("stopped");
    }

    /// Handles events until this process has ended or the time is up.
    fn wait_for(&mut self, pid: u32, until: Instant) {
        loop {
            match self
                .events
                .recv_timeout(until.saturating_duration_since(Instant::now()))
            {
                Ok(Event::Ended(ended, how, well)) => {
                    self.ended(ended, &how, well);
                    if ended == pid {
                        return;
                    }
                }
                Ok(Event::Stop) => {}
                Err(_) => return,
            }
        }
    }
}

impl Slot {
    fn start(&mut self) -> anyhow::Result<State> {
        let mut command = (self.step.command)()?;
        let mut child = command.spawn()?;
        let process = Process::of(child.id()).ok_or_else(|| anyhow::anyhow!("it ended at once"))?;
        let worker = match &mut self.step.started {
            Some(started) => started(&mut child).inspect_err(|_| process.signal(Signal::KILL))?,
            None => None,
        };
        let since = Instant::now();
        Ok(State::Running {
            process,
            worker,
            since,
        })
    }

    fn fail(&mut self) {
        let settled = matches!(self.state, State::Running { since, .. } if since.elapsed() >= SETTLED);
        self.failures = if settled {
            1
        } else {
            self.failures.saturating_add(1)
        };
        self.state = State::Waiting(Instant::now() + pause(self.failures));
    }
}

/// The pause after so many failures in a row.
fn pause(failures: u32) -> Duration {
    FIRST_PAUSE
        .saturating_mul(1 << failures.saturating_sub(1).min(10))
        .min(LAST_PAUSE)
}

/// Takes exit states for ever; without children it waits until one is started.
fn reap(to: &SyncSender<Event>, starts: &Receiver<()>) {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) => {
                let how = match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => format!("ended with exit code {code}"),
                    (_, Some(signal)) => format!("was ended by signal {signal}"),
                    _ => "ended".to_owned(),
                };
                let pid = pid.as_raw_nonzero().get().unsigned_abs();
                if to
                    .send(Event::Ended(pid, how, status.exit_status() == Some(0)))
                    .is_err()
                {
                    return;
                }
            }
            Err(rustix::io::Errno::INTR) | Ok(None) => {}
            // No children: wait for one.
            Err(_) => {
                if starts.recv().is_err() {
                    return;
                }
            }
        }
    }
}

fn stop_signal() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        Ok(())
    })
}

/// A command whose output goes to the end of `log`.
///
/// # Errors
/// When the log cannot be opened.
pub fn logged(mut command: Command, log: &Path) -> io::Result<Command> {
    let file = open_log(log)?;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .env("NO_COLOR", "1");
    Ok(command)
}

/// Opens a log for appending; one that has grown too long is put aside first.
///
/// # Errors
/// The file's error, with its path.
pub fn open_log(log: &Path) -> io::Result<File> {
    let open = || {
        if let Some(dir) = log.parent() {
            std::fs::create_dir_all(dir)?;
        }
        if std::fs::metadata(log).is_ok_and(|m| m.len() > LOG_LIMIT) {
            std::fs::rename(log, log.with_extension("log.old"))?;
        }
        File::options().create(true).append(true).open(log)
    };
    open().map_err(|e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", log.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        assert_eq!(pause(1), FIRST_PAUSE);
        assert_eq!(pause(2), FIRST_PAUSE * 2);
        assert_eq!(pause(40), LAST_PAUSE);
    }
}
