//! As much of HTTP/1.1 as the echo server and its client speak (RFC 9112): requests without a body, answers with a
//! length.
use std::io::{self, BufRead, Read, Write};

/// The longest head of a message that is read, in bytes.
const HEAD: u64 = 8 * 1024;
/// The longest body that the client reads, in bytes.
const BODY: usize = 64 * 1024;

/// The head of a message: its first line, and the two facts of its headers that matter here.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    /// `GET / HTTP/1.1` or `HTTP/1.1 200 OK`.
    pub first: String,
    /// `Content-Length`, 0 when absent.
    pub length: usize,
    /// Whether the sender closes the connection after this message.
    pub close: bool,
}

impl Head {
    /// The path of a request, or `/`.
    pub fn path(&self) -> &str {
        self.first.split(' ').nth(1).unwrap_or("/")
    }

    /// The status of an answer.
    pub fn status(&self) -> Option<u16> {
        self.first.split(' ').nth(1)?.parse().ok()
    }
}

/// Reads one head; `None` when the connection ends before its first byte.
///
/// # Errors
/// The connection's error, `UnexpectedEof` for half a head, `InvalidData` for one that is too long.
pub fn read_head(from: &mut impl BufRead) -> io::Result<Option<Head>> {
    let mut limited = from.take(HEAD);
    let mut first = String::new();
    if limited.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let first = first.trim_end().to_owned();
    let mut head = Head {
        close: first.ends_with("HTTP/1.0"),
        first,
        length: 0,
    };
    loop {
        let mut line = String::new();
        if limited.read_line(&mut line)? == 0 {
            let whole = limited.limit() > 0;
            return Err(if whole {
                io::ErrorKind::UnexpectedEof
            } else {
                io::ErrorKind::InvalidData
            }
            .into());
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(Some(head));
        }
        header(&mut head, line);
    }
}

fn header(head: &mut Head, line: &str) {
    let Some((name, value)) = line.split_once(':') else {
        return;
    };
    match name.to_ascii_lowercase().as_str() {
        "content-length" => head.length = value.trim().parse().unwrap_or(0),
        "connection" => head.close = value.trim().eq_ignore_ascii_case("close"),
        _ => {}
    }
}

/// Reads the body that `head` announces.
///
/// # Errors
/// The connection's error, or `InvalidData` when it is longer than we take.
pub fn read_body(head: &Head, from: &mut impl Read) -> io::Result<String> {
    if head.length > BODY {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; head.length];
    from.read_exact(&mut body)?;
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// Writes one answer in one piece.
///
/// # Errors
/// The connection's error.
pub fn answer(to: &mut impl Write, status: &str, body: &str, close: bool) -> io::Result<()> {
    let connection = if close { "close" } else { "keep-alive" };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\nConnection: {connection}\r\n\r\n"
    );
    to.write_all(format!("{head}{body}").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_to_its_blank_line() {
        let mut from = &b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Close\r\n\r\nrest"[..];
        let head = read_head(&mut from).unwrap().unwrap();
        assert_eq!((head.path(), head.close), ("/healthz", true));
        assert_eq!(from, b"rest");
    }

    #[test]
    fn an_answer_comes_back_as_it_was_written() {
        let mut wire = Vec::new();
        answer(&mut wire, "200 OK", "pod=a\n", false).unwrap();
        let mut from = &wire[..];
        let head = read_head(&mut from).unwrap().unwrap();
        assert_eq!(head.status(), Some(200));
        assert_eq!(read_body(&head, &mut from).unwrap(), "pod=a\n");
    }

    #[test]
    fn half_a_head_is_an_error_and_none_is_not() {
        assert!(read_head(&mut &b"GET / HTTP/1.1\r\nHost"[..]).is_err());
        assert_eq!(read_head(&mut &b""[..]).unwrap(), None);
    }

    #[test]
    fn an_endless_head_is_cut_off() {
        let mut long = b"GET / HTTP/1.1\r\n".to_vec();
        long.extend(std::iter::repeat_n(b"A: b\r\n", 4000).flatten());
        assert!(read_head(&mut &long[..]).is_err());
    }
}
