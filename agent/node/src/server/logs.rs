//! A container's log as the client wants it: from the files the runtime writes (CRI log format) to a stream of bytes.
//!
//! A line is `<RFC 3339 time> <stdout|stderr> <P|F> <text>`; `P` marks a part of a longer line.

use bytes::Bytes;
use jiff::Timestamp;
use rustix::fs::inotify;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use tokio::fs::File;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, AsyncSeekExt, BufReader};
use tokio::sync::mpsc;

/// What of a log is wanted (`PodLogOptions`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogOptions {
    /// Go on with what comes.
    pub follow: bool,
    /// Only so many last lines.
    pub tail: Option<usize>,
    /// Only from this time on.
    pub since: Option<Timestamp>,
    /// Each line with its time.
    pub timestamps: bool,
    /// At most so many bytes.
    pub limit: Option<usize>,
    /// Only `Stdout` or `Stderr`.
    pub stream: Option<Which>,
}

/// One of a container's two output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

struct Line<'a> {
    time: &'a str,
    stream: Which,
    partial: bool,
    text: &'a [u8],
}

/// Splits a line of the file; none when it is not in the format.
fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = match parts.next()? {
        b"stdout" => Which::Stdout,
        b"stderr" => Which::Stderr,
        _ => return None,
    };
    let tag = parts.next()?;
    let text = parts.next().unwrap_or_default();
    Some(Line {
        time,
        stream,
        partial: tag.split(|b| *b == b':').next() == Some(b"P"),
        text,
    })
}

/// Turns lines of the file into what the client reads.
struct Filter {
    options: LogOptions,
    left: usize,
    /// Whether the last part did not end its line: the time stands only before the first part.
    within: bool,
}

impl Filter {
    fn new(options: LogOptions) -> Self {
        Self {
            left: options.limit.unwrap_or(usize::MAX),
            within: false,
            options,
        }
    }

    /// The bytes for one line of the file; none when it is filtered out.
    fn take(&mut self, line: &[u8]) -> Option<Bytes> {
        let line = parse(line.strip_suffix(b"\n").unwrap_or(line))?;
        let wanted = self.options.stream.is_none_or(|s| s == line.stream);
        let since = self.options.since;
        let late = since.is_none_or(|s| line.time.parse::<Timestamp>().is_ok_and(|t| t >= s));
        if !wanted || !late || self.left == 0 {
            return None;
        }
        let mut out = Vec::with_capacity(line.text.len() + 40);
        if self.options.timestamps && !self.within {
            out.extend_from_slice(line.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(line.text);
        if !line.partial {
            out.push(b'\n');
        }
        self.within = line.partial;
        out.truncate(self.left);
        self.left -= out.len();
        Some(out.into())
    }
}

/// Where the client reads; closed when the log ends or the client left.
type Sink = mpsc::Sender<io::Result<Bytes>>;

/// Sends the log at `path` until its end, or, following, until `over` says that no more will come.
pub async fn stream(path: PathBuf, options: LogOptions, over: impl AsyncFn() -> bool, out: Sink) {
    if let Err(error) = send(&path, options, over, &out).await {
        // The client left: nobody to tell.
        let _ = out.send(Err(error)).await;
    }
}

async fn send(path: &Path, options: LogOptions, over: impl AsyncFn() -> bool, out: &Sink) -> io::Result<()> {
    // Watching begins before reading, so that nothing is missed in between.
    let changes = options.follow.then(|| Changes::of(path)).transpose()?;
    let mut reader = BufReader::new(File::open(path).await?);
    if let Some(lines) = options.tail {
        seek_to_tail(&mut reader, lines).await?;
    }
    let mut filter = Filter::new(options);
    let mut line = Vec::new();
    loop {
        let ended = match &changes {
            Some(_) => over().await,
            None => true,
        };
        while reader.read_until(b'\n', &mut line).await? > 0 {
            if line.last() != Some(&b'\n') && !ended {
                // A line that is being written: the rest comes.
                break;
            }
            if let Some(bytes) = filter.take(&line)
                && out.send(Ok(bytes)).await.is_err()
            {
                return Ok(());
            }
            line.clear();
        }
        if ended || filter.left == 0 || !wait(changes.as_ref(), out, &mut reader, path).await? {
            return Ok(());
        }
    }
}

/// Waits for more; false when the client left. A rotated log is opened anew.
async fn wait(
    changes: Option<&Changes>,
    out: &Sink,
    reader: &mut BufReader<File>,
    path: &Path,
) -> io::Result<bool> {
    let Some(changes) = changes else { return Ok(false) };
    tokio::select! {
        () = out.closed() => return Ok(false),
        // The container's end writes nothing to its log; it is looked for now and then.
        () = tokio::time::sleep(END) => {}
        changed = changes.wait() => changed?,
    }
    let here = reader.get_ref().metadata().await?;
    use std::os::unix::fs::MetadataExt;
    if let Ok(there) = tokio::fs::metadata(path).await
        && there.ino() != here.ino()
    {
        *reader = BufReader::new(File::open(path).await?);
    }
    Ok(true)
}

/// How often a followed log whose container is silent is checked for the container's end.
const END: std::time::Duration = std::time::Duration::from_millis(500);

/// Reads to the beginning of the last `lines` lines. Parts of one long line count as one.
async fn seek_to_tail(reader: &mut BufReader<File>, lines: usize) -> io::Result<()> {
    let mut starts = VecDeque::with_capacity(lines.min(4096) + 1);
    let (mut at, mut begins) = (0u64, true);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).await?;
        if read == 0 {
            break;
        }
        if begins {
            starts.push_back(at);
            if starts.len() > lines {
                starts.pop_front();
            }
        }
        begins = parse(&line).is_none_or(|l| !l.partial);
        at += read as u64;
    }
    let from = if lines == 0 {
        at
    } else {
        starts.front().copied().unwrap_or(at)
    };
    reader.seek(io::SeekFrom::Start(from)).await?;
    Ok(())
}

/// Tells when a file or its name changes.
struct Changes(AsyncFd<OwnedFd>);

impl Changes {
    fn of(path: &Path) -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&fd, path, inotify::WatchFlags::MODIFY)?;
        if let Some(folder) = path.parent() {
            inotify::add_watch(
                &fd,
                folder,
                inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO,
            )?;
        }
        // Deprecated for types whose descriptor can change under it; an `OwnedFd`'s cannot.
        #[allow(deprecated)]
        let fd = AsyncFd::new(fd)?;
        Ok(Self(fd))
    }

    async fn wait(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        let mut buffer = [0u8; 4096];
        // What changed does not matter; the queue is emptied so that the next wait waits.
        while rustix::io::read(self.0.get_ref(), &mut buffer).is_ok_and(|n| n > 0) {}
        ready.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
2026-01-01T00:00:01.5Z stdout F one
2026-01-01T00:00:02Z stderr F two
2026-01-01T00:00:03Z stdout P thr
2026-01-01T00:00:03Z stdout F ee
";

    async fn read(options: LogOptions) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, LOG).unwrap();
        let (sender, mut receiver) = mpsc::channel(16);
        tokio::spawn(stream(path, options, async || true, sender));
        let mut out = Vec::new();
        while let Some(part) = receiver.recv().await {
            out.extend_from_slice(&part.unwrap());
        }
        String::from_utf8(out).unwrap()
    }

    #[tokio::test]
    async fn a_log_is_its_text_with_parts_joined() {
        assert_eq!(read(LogOptions::default()).await, "one\ntwo\nthree\n");
    }

    #[tokio::test]
    async fn the_tail_counts_whole_lines() {
        assert_eq!(
            read(LogOptions {
                tail: Some(2),
                ..LogOptions::default()
            })
            .await,
            "two\nthree\n"
        );
        assert_eq!(
            read(LogOptions {
                tail: Some(0),
                ..LogOptions::default()
            })
            .await,
            ""
        );
        assert_eq!(
            read(LogOptions {
                tail: Some(99),
                ..LogOptions::default()
            })
            .await,
            "one\ntwo\nthree\n"
        );
    }

    #[tokio::test]
    async fn times_streams_and_limits_are_applied() {
        let since = Some("2026-01-01T00:00:02Z".parse().unwrap());
        assert_eq!(
            read(LogOptions {
                since,
                ..LogOptions::default()
            })
            .await,
            "two\nthree\n"
        );
        let stream = Some(Which::Stderr);
        assert_eq!(
            read(LogOptions {
                stream,
                timestamps: true,
                ..LogOptions::default()
            })
            .await,
            "2026-01-01T00:00:02Z two\n"
        );
        assert_eq!(
            read(LogOptions {
                limit: Some(5),
                ..LogOptions::default()
            })
            .await,
            "one\nt"
        );
    }

    #[tokio::test]
    async fn following_sees_lines_that_come_later_and_ends_with_the_container() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, "2026-01-01T00:00:01Z stdout F one\n").unwrap();
        let (sender, mut receiver) = mpsc::channel(16);
        let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let flag = over.clone();
        let ended = async move || flag.load(std::sync::atomic::Ordering::SeqCst);
        let options = LogOptions {
            follow: true,
            ..LogOptions::default()
        };
        tokio::spawn(stream(path.clone(), options, ended, sender));
        assert_eq!(receiver.recv().await.unwrap().unwrap(), "one\n");
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        io::Write::write_all(&mut file, b"2026-01-01T00:00:02Z stdout F two\n").unwrap();
        assert_eq!(receiver.recv().await.unwrap().unwrap(), "two\n");
        over.store(true, std::sync::atomic::Ordering::SeqCst);
        assert!(receiver.recv().await.is_none());
    }
}
