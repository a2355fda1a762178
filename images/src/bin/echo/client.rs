//! The asking side: a bounded number of requests, each with a deadline.
use images::http;
use std::collections::BTreeMap;
use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// What to ask how often.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    /// Whom.
    pub targets: Vec<Target>,
    /// How many requests to each.
    pub count: u64,
    /// Time between two requests.
    pub interval: Duration,
    /// How long one request may take.
    pub timeout: Duration,
    /// Whether all requests to a target go over one connection.
    pub keep_alive: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            targets: vec![],
            count: 10,
            interval: Duration::ZERO,
            timeout: Duration::from_secs(2),
            keep_alive: false,
        }
    }
}

/// One place to ask.
#[derive(Debug, PartialEq, Eq)]
pub struct Target {
    url: String,
    udp: bool,
    address: SocketAddr,
    path: String,
}

impl Target {
    /// Reads `http://HOST:PORT/PATH` or `udp://HOST:PORT`.
    pub fn parse(url: &str) -> Result<Self, String> {
        let (udp, rest) = match (url.strip_prefix("http://"), url.strip_prefix("udp://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return Err(format!("{url}: begin it with http:// or udp://")),
        };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let with_port = if host.ends_with(']') || !host.contains(':') {
            format!("{host}:80")
        } else {
            host.to_owned()
        };
        let mut found = with_port.to_socket_addrs().map_err(|e| format!("{url}: {e}"))?;
        let address = found
            .next()
            .ok_or_else(|| format!("{url}: the name has no address"))?;
        Ok(Self {
            url: url.to_owned(),
            udp,
            address,
            path: format!("/{path}"),
        })
    }
}

#[derive(Default)]
struct Tally {
    /// Requests answered, by "pod on node".
    pods: BTreeMap<String, u64>,
    failures: BTreeMap<String, u64>,
    slowest: Duration,
}

/// Asks everyone; fails if one request was not answered.
pub fn run(options: &Options) -> ExitCode {
    let mut failed = false;
    for target in &options.targets {
        let start = Instant::now();
        let tally = ask_all(target, options);
        print(target, &tally, start.elapsed());
        failed |= !tally.failures.is_empty();
    }
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn ask_all(target: &Target, options: &Options) -> Tally {
    let mut tally = Tally::default();
    let mut open = None;
    for n in 0..options.count {
        if n > 0 && !options.interval.is_zero() {
            std::thread::park_timeout(options.interval);
        }
        let start = Instant::now();
        let answer = if target.udp {
            ask_udp(target, options)
        } else {
            ask_http(target, options, &mut open)
        };
        tally.slowest = tally.slowest.max(start.elapsed());
        match answer {
            Ok(line) => *tally.pods.entry(who(&line)).or_default() += 1,
            Err(e) => {
                open = None;
                *tally.failures.entry(e).or_default() += 1;
            }
        }
    }
    tally
}

fn ask_http(target: &Target, options: &Options, open: &mut Option<TcpStream>) -> Result<String, String> {
    let mut stream = match open.take() {
        Some(stream) => stream,
        None => connect(target, options).map_err(|e| format!("connect: {e}"))?,
    };
    let connection = if options.keep_alive { "keep-alive" } else { "close" };
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: {connection}\r\n\r\n",
        target.path, target.address
    );
    stream
        .write_all(request.as_bytes())
        .map_err(|e| format!("send: {e}"))?;
    let mut reader = BufReader::new(&stream);
    let head = http::read_head(&mut reader).map_err(|e| format!("receive: {e}"))?;
    let head = head.ok_or("receive: closed without an answer")?;
    let body = http::read_body(&head, &mut reader).map_err(|e| format!("receive: {e}"))?;
    if options.keep_alive && !head.close {
        *open = Some(stream);
    }
    match head.status() {
        Some(200) => Ok(body),
        _ => Err(head.first),
    }
}

fn connect(target: &Target, options: &Options) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target.address, options.timeout)?;
    stream.set_read_timeout(Some(options.timeout))?;
    stream.set_write_timeout(Some(options.timeout))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn ask_udp(target: &Target, options: &Options) -> Result<String, String> {
    let ask = || {
        let here: SocketAddr = if target.address.is_ipv4() {
            ([0, 0, 0, 0], 0).into()
        } else {
            ([0u16; 8], 0).into()
        };
        let socket = UdpSocket::bind(here)?;
        socket.set_read_timeout(Some(options.timeout))?;
        socket.connect(target.address)?;
        socket.send(b"hello\n")?;
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    ask().map_err(|e: std::io::Error| format!("udp: {e}"))
}

/// `pod=a node=b …` → `a on b`.
fn who(line: &str) -> String {
    let field = |name: &str| {
        line.split_whitespace()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
            .unwrap_or("?")
            .to_owned()
    };
    format!("{} on {}", field("pod"), field("node"))
}

fn print(target: &Target, tally: &Tally, took: Duration) {
    let answered: u64 = tally.pods.values().sum();
    let failed: u64 = tally.failures.values().sum();
    println!(
        "{}: {answered} answered, {failed} failed in {:.2} s, slowest {:.1} ms",
        target.url,
        took.as_secs_f64(),
        tally.slowest.as_secs_f64() * 1000.0
    );
    for (pod, count) in &tally.pods {
        println!("  {count:>5}  {pod}");
    }
    for (reason, count) in &tally.failures {
        println!("  {count:>5}  failed: {reason}");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_url_without_a_port_means_80() {
        assert_eq!(
            Target::parse("http://10.96.0.7").unwrap().address,
            "10.96.0.7:80".parse().unwrap()
        );
        assert_eq!(
            Target::parse("http://[fd00::7]/x").unwrap().address,
            "[fd00::7]:80".parse().unwrap()
        );
    }

    #[test]
    fn the_answering_pod_is_read_from_the_line() {
        assert_eq!(
            who("pod=hello-1 node=skep-2 protocol=tcp client=1.2.3.4:5\n"),
            "hello-1 on skep-2"
        );
        assert_eq!(who("nonsense"), "? on ?");
    }
}
