//! Connections that go on while something else happens, with a count of everything that goes wrong.
use crate::Pod;
use anyhow::{Result, bail, ensure};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// For one answer: several times what TCP needs to send a lost segment, or a lost SYN, again.
const PATIENCE: Duration = Duration::from_secs(4);
/// For the progress of all.
const DEADLINE: Duration = Duration::from_secs(30);
/// Between two words of one client: so many connections are made on any machine that a table of flows holds the closed ones too, and
/// what happens meanwhile has a processor to happen on.
const PACE: Duration = Duration::from_millis(4);
/// What is said and echoed each time.
const WORD: usize = 256;

/// What became of one client's connections.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Who it is.
    pub client: String,
    /// Words that came back.
    pub exchanged: u64,
    /// Connections that were reset.
    pub resets: u64,
    /// Words that did not come back, or not whole, or connections that ended without a reset.
    pub losses: u64,
    /// New connections that did not come about.
    pub refused: u64,
    /// How the last thing that went wrong reads.
    pub error: String,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// A tally has changed.
    changed: Condvar,
    /// The end has come.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    stopped: bool,
    tallies: Vec<Tally>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Until the time is over or the end has come.
    fn rest(&self, time: Duration) {
        let wait = self
            .ended
            .wait_timeout_while(self.lock(), time, |state| !state.stopped);
        drop(wait.unwrap_or_else(PoisonError::into_inner));
    }

    fn note(&self, index: usize, change: impl FnOnce(&mut Tally)) {
        change(&mut self.lock().tallies[index]);
        self.changed.notify_all();
    }
}

/// Clients that exchange words with echoing servers until they are told to stop.
#[derive(Default)]
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    /// A client with one connection that lasts. It runs in the pod, or on the node itself.
    pub fn lasting(&mut self, place: Option<&Pod>, to: SocketAddr) -> Result<()> {
        self.client(format!("lasting to {to}"), place, move |shared, index| {
            let Some(mut stream) = open(shared, index, to) else {
                return;
            };
            while !shared.stopped() && exchange(shared, index, &mut stream) {
                shared.rest(PACE);
            }
        })
    }

    /// A client that makes a new connection for each word.
    pub fn fresh(&mut self, place: Option<&Pod>, to: SocketAddr) -> Result<()> {
        self.client(format!("fresh to {to}"), place, move |shared, index| {
            while !shared.stopped() {
                if let Some(mut stream) = open(shared, index, to) {
                    exchange(shared, index, &mut stream);
                }
                shared.rest(PACE);
            }
        })
    }

    fn client(
        &mut self,
        client: String,
        place: Option<&Pod>,
        work: impl FnOnce(&Shared, usize) + Send + 'static,
    ) -> Result<()> {
        let index = {
            let mut state = self.shared.lock();
            state.tallies.push(Tally {
                client,
                ..Tally::default()
            });
            state.tallies.len() - 1
        };
        let shared = Arc::clone(&self.shared);
        let work = move || {
            give_way();
            work(&shared, index);
        };
        self.threads.push(match place {
            Some(pod) => pod.start(work)?,
            None => thread::spawn(move || {
                work();
                Ok(())
            }),
        });
        Ok(())
    }

    /// Until every client has exchanged this many more words, or one has failed.
    pub fn progress(&self, words: u64) -> Result<()> {
        let begun: Vec<u64> = self.shared.lock().tallies.iter().map(|t| t.exchanged).collect();
        let end = Instant::now() + DEADLINE;
        let mut state = self.shared.lock();
        loop {
            if let Some(bad) = state.tallies.iter().find(|t| !t.error.is_empty()) {
                bail!("{bad:?}");
            }
            let late = state
                .tallies
                .iter()
                .zip(&begun)
                .find(|(t, b)| t.exchanged < *b + words);
            let Some((late, _)) = late else {
                return Ok(());
            };
            let left = end.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "no progress: {late:?}");
            let (guard, _) = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
            state = guard;
        }
    }

    /// Ends all connections; fails unless nothing was reset, lost or refused. Tells how many words were exchanged.
    pub fn finish(self) -> Result<u64> {
        self.shared.lock().stopped = true;
        self.shared.ended.notify_all();
        for thread in self.threads {
            match thread.join() {
                Ok(done) => done?,
                Err(_) => bail!("a client panicked"),
            }
        }
        let state = self.shared.lock();
        let (mut resets, mut losses, mut refused) = (0, 0, 0);
        for tally in &state.tallies {
            resets += tally.resets;
            losses += tally.losses;
            refused += tally.refused;
        }
        ensure!(
            (resets, losses, refused) == (0, 0, 0),
            "{resets} resets, {losses} losses, {refused} refused: {:?}",
            state.tallies
        );
        Ok(state.tallies.iter().map(|t| t.exchanged).sum())
    }
}

/// The thread's priority becomes the lowest: on a slow machine its words would take the processor from what they are to meet.
fn give_way() {
    rustix::process::setpriority_process(None, 19).ok();
}

fn open(shared: &Shared, index: usize, to: SocketAddr) -> Option<TcpStream> {
    let opened = TcpStream::connect_timeout(&to, PATIENCE).and_then(|stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    });
    match opened {
        Ok(stream) => Some(stream),
        Err(error) => {
            shared.note(index, |t| {
                t.refused += 1;
                t.error = format!("connect: {error}");
            });
            None
        }
    }
}

/// Says a word and hears it again; false once the connection is of no use any more.
fn exchange(shared: &Shared, index: usize, stream: &mut TcpStream) -> bool {
    let said = [index as u8; WORD];
    let mut heard = [0; WORD];
    match stream
        .write_all(&said)
        .and_then(|()| stream.read_exact(&mut heard))
    {
        Ok(()) if heard == said => {
            shared.note(index, |t| t.exchanged += 1);
            true
        }
        Ok(()) => {
            shared.note(index, |t| {
                t.losses += 1;
                t.error = "another word came back".into();
            });
            false
        }
        Err(error) => {
            shared.note(index, |t| {
                match error.kind() {
                    ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => {
                        t.resets += 1
                    }
                    _ => t.losses += 1,
                }
                t.error = error.to_string();
            });
            false
        }
    }
}

/// Serves connections of a listener until the test ends: what they say comes back.
pub fn echo_on(listener: TcpListener) {
    thread::spawn(move || {
        give_way();
        for stream in listener.incoming().flatten() {
            thread::spawn(move || echo(stream));
        }
    });
}

fn echo(mut stream: TcpStream) {
    give_way();
    let _ = stream.set_nodelay(true);
    let mut buf = [0; 4 * WORD];
    while let Ok(n) = stream.read(&mut buf) {
        if n == 0 || stream.write_all(&buf[..n]).is_err() {
            return;
        }
    }
}
