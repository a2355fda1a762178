//! Connections that go on while something else happens. The client is this program itself, started in the namespace of a pod or
//! outside of the nodes; it ends when its standard input does, and says what it saw.

use anyhow::{Context, Result, ensure};
use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// No client lives longer.
const LONGEST: Duration = Duration::from_secs(300);
/// Nothing takes that long here; TCP repeats a lost packet after a fifth of it.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two requests.
const PACE: Duration = Duration::from_millis(20);

/// What connections do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Stay open, and ask again and again.
    Hold,
    /// Are opened anew for every request.
    Dial,
}

/// A client in the background.
pub struct Load {
    child: Child,
    what: String,
}

impl Load {
    /// So many threads, each with one connection at a time to `to`.
    pub fn start(mut command: Command, kind: Kind, to: &str, threads: usize) -> Result<Self> {
        let program = std::env::current_exe()?;
        let word = if kind == Kind::Hold { "hold" } else { "dial" };
        let child = command
            .arg(program)
            .args(["client", word, to, &threads.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut load = Self {
            child,
            what: format!("{word} {to}"),
        };
        let mut line = String::new();
        let stdout = load.child.stdout.as_mut().context("no standard output")?;
        // One byte at a time: the rest is read at the end.
        let mut byte = [0];
        while stdout.read(&mut byte)? == 1 && byte != [b'\n'] {
            line.push(char::from(byte[0]));
        }
        ensure!(
            line == "answered",
            "{}: not every connection was answered: {line}",
            load.what
        );
        Ok(load)
    }

    /// Ends it; how many requests were answered. Fails if one connection was lost.
    pub fn end(mut self) -> Result<u64> {
        drop(self.child.stdin.take());
        let mut said = String::new();
        self.child
            .stdout
            .take()
            .context("no standard output")?
            .read_to_string(&mut said)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "{}: {status}: {said}", self.what);
        let count = said.trim().strip_prefix("requests ").and_then(|n| n.parse().ok());
        count.with_context(|| format!("{}: {said}", self.what))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What all threads of a client share.
#[derive(Default)]
struct Tally {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stop: bool,
    requests: u64,
    lost: Vec<String>,
}

impl Tally {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn lose(&self, what: &str, error: &io::Error, since: Instant) {
        let line = format!("{what} after {:.1} s: {error}", since.elapsed().as_secs_f32());
        self.change(|state| state.lost.push(line));
    }

    /// Waits for the time of the next request; none comes after the end.
    fn goes_on(&self, since: Instant) -> bool {
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), PACE, |state| !state.stop);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !state.stop && since.elapsed() < LONGEST
    }

    /// Until each of so many threads was answered, or one was not.
    fn begun(&self, threads: u64) -> bool {
        let waiting = |state: &mut State| state.requests < threads && state.lost.is_empty();
        let waited = self.changed.wait_while(self.lock(), waiting);
        waited.unwrap_or_else(PoisonError::into_inner).lost.is_empty()
    }
}

/// `client hold|dial ADDRESS THREADS`.
pub fn client(words: &[String]) -> ExitCode {
    let [kind, to, threads] = words else {
        return ExitCode::FAILURE;
    };
    let (Ok(to), Ok(threads)) = (to.parse::<SocketAddr>(), threads.parse::<usize>()) else {
        return ExitCode::FAILURE;
    };
    let (tally, start) = (Tally::default(), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            match kind.as_str() {
                "hold" => scope.spawn(|| hold(&tally, to, start)),
                _ => scope.spawn(|| dial(&tally, to, start)),
            };
        }
        let all = u64::try_from(threads).unwrap_or(u64::MAX);
        println!("{}", if tally.begun(all) { "answered" } else { "lost" });
        let _ = io::stdin().read_to_end(&mut Vec::new());
        tally.change(|state| state.stop = true);
    });
    let State { lost, requests, .. } = tally.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    if lost.is_empty() {
        println!("requests {requests}");
        ExitCode::SUCCESS
    } else {
        println!(
            "{} lost of {threads} at a time: {:#?}",
            lost.len(),
            &lost[..lost.len().min(8)]
        );
        ExitCode::FAILURE
    }
}

fn hold(tally: &Tally, to: SocketAddr, start: Instant) {
    let mut stream = match connect(to) {
        Ok(stream) => stream,
        Err(error) => return tally.lose("connect", &error, start),
    };
    while tally.goes_on(start) {
        if let Err(error) = ask(&mut stream) {
            return tally.lose("request", &error, start);
        }
        tally.change(|state| state.requests += 1);
    }
}

fn dial(tally: &Tally, to: SocketAddr, start: Instant) {
    while tally.goes_on(start) {
        let answered = connect(to).and_then(|mut stream| ask(&mut stream));
        match answered {
            Ok(()) => tally.change(|state| state.requests += 1),
            Err(error) => tally.lose("new connection", &error, start),
        }
    }
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One request and its answer.
fn ask(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: echo\r\n\r\n")?;
    let mut reader = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().map_err(|_| io::ErrorKind::InvalidData)?;
        }
        if line == "\r\n" {
            break;
        }
    }
    reader.read_exact(&mut vec![0; length])
}
