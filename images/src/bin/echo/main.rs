//! A server that tells who answered whom, and a client that counts the answers.
//!
//! - `echo [serve] [--port 8080] [--drain 5]`: HTTP on TCP and the same text on UDP, over IPv4 and IPv6;
//! - `echo client URL… [-n 100] [--interval MS] [--timeout MS] [--keep-alive]`: asks each URL (`http://…` or
//!   `udp://…`) `n` times and prints how often which pod answered.
mod client;
mod server;

use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "usage: echo [serve] [--port 8080] [--drain SECONDS]
       echo client URL... [-n COUNT] [--interval MS] [--timeout MS] [--keep-alive]";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match parse(&args) {
        Ok(Command::Serve(options)) => server::run(&options),
        Ok(Command::Client(options)) => client::run(&options),
        Err(message) => {
            eprintln!("error: {message}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Command {
    Serve(server::Options),
    Client(client::Options),
}

fn parse(args: &[String]) -> Result<Command, String> {
    let client = args.first().is_some_and(|a| a == "client");
    let named = client || args.first().is_some_and(|a| a == "serve");
    let mut serve = server::Options {
        port: 8080,
        drain: Duration::from_secs(5),
    };
    let mut ask = client::Options::default();
    let mut rest = args.iter().skip(usize::from(named));
    while let Some(arg) = rest.next() {
        let mut number = || number(arg, rest.next());
        match (client, arg.as_str()) {
            (false, "--port") => {
                serve.port = u16::try_from(number()?).map_err(|_| "--port: too large".to_owned())?
            }
            (false, "--drain") => serve.drain = Duration::from_secs(number()?),
            (true, "-n") => ask.count = number()?,
            (true, "--interval") => ask.interval = Duration::from_millis(number()?),
            (true, "--timeout") => ask.timeout = Duration::from_millis(number()?.max(1)),
            (true, "--keep-alive") => ask.keep_alive = true,
            (true, url) if !url.starts_with('-') => ask.targets.push(client::Target::parse(url)?),
            (_, other) => return Err(format!("unknown argument {other}")),
        }
    }
    match (client, ask.targets.is_empty()) {
        (true, true) => Err("client needs at least one URL".to_owned()),
        (true, false) => Ok(Command::Client(ask)),
        (false, _) => Ok(Command::Serve(serve)),
    }
}

fn number(option: &str, value: Option<&String>) -> Result<u64, String> {
    let value = value.ok_or_else(|| format!("{option} needs a number"))?;
    value
        .parse()
        .map_err(|_| format!("{option}: {value} is not a number"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn without_a_word_it_serves() {
        let Command::Serve(options) = parse(&words("--port 9000")).unwrap() else {
            panic!("serves")
        };
        assert_eq!(options.port, 9000);
    }

    #[test]
    fn a_client_needs_a_url_it_can_ask() {
        assert!(parse(&words("client")).is_err());
        assert!(parse(&words("client ftp://10.0.0.1:1")).is_err());
        assert!(parse(&words("client http://[fd00::1]:80/ udp://10.0.0.1:80 -n 3")).is_ok());
    }

    #[test]
    fn unknown_words_are_named() {
        assert_eq!(
            parse(&words("serve --fast")).unwrap_err(),
            "unknown argument --fast"
        );
    }
}
