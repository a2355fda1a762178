//! As much of SPDY/3.1 as a client of the container runtime's streaming server needs: open streams, send and receive
//! data, close a direction.
//!
//! Header blocks must be compressed with zlib and SPDY's dictionary. What we send is zlib in stored (uncompressed)
//! blocks, which needs no compressor; of what the server answers only frame headers are read, as its header blocks say
//! nothing that matters here. The runtimes' servers have no flow control, so none is done.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const VERSION: u16 = 0x8003;
const SYN_STREAM: u16 = 1;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
/// Last frame of its sender on this stream.
const FIN: u8 = 1;
/// Largest frame that is taken; the servers send at most 64 KiB.
const LARGEST: usize = 16 << 20;
/// Adler-32 of SPDY's dictionary, by which zlib names it.
const DICTIONARY: u32 = 0xe3c6_a7c2;

/// What came in.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// Bytes of a stream, and whether they are its last.
    Data(u32, Bytes, bool),
    /// The stream was broken off.
    Reset(u32),
    /// To be answered with the same.
    Ping(Bytes),
    /// No more will come.
    GoAway,
    /// Nothing of interest.
    Other,
}

/// The sending half.
pub struct Sender<W> {
    write: W,
    next: u32,
    begun: bool,
}

impl<W: AsyncWrite + Unpin> Sender<W> {
    /// Over a connection that was upgraded to SPDY.
    pub fn new(write: W) -> Self {
        Self {
            write,
            next: 1,
            begun: false,
        }
    }

    /// Opens a stream with these headers; returns its number.
    ///
    /// # Errors
    /// I/O errors of the connection.
    pub async fn open(&mut self, headers: &[(&str, &str)]) -> io::Result<u32> {
        let id = self.next;
        self.next += 2;
        let block = self.block(headers);
        let mut frame = BytesMut::new();
        frame.put_u16(VERSION);
        frame.put_u16(SYN_STREAM);
        put_length(&mut frame, 0, 10 + block.len());
        frame.put_u32(id);
        frame.put_u32(0);
        frame.put_u16(0);
        frame.put_slice(&block);
        self.write.write_all(&frame).await?;
        self.write.flush().await?;
        Ok(id)
    }

    /// Sends bytes on a stream; `last` closes our direction of it.
    ///
    /// # Errors
    /// I/O errors of the connection.
    pub async fn data(&mut self, id: u32, bytes: &[u8], last: bool) -> io::Result<()> {
        let mut head = BytesMut::with_capacity(8);
        head.put_u32(id);
        put_length(&mut head, if last { FIN } else { 0 }, bytes.len());
        self.write.write_all(&head).await?;
        self.write.write_all(bytes).await?;
        self.write.flush().await
    }

    /// Answers a ping.
    ///
    /// # Errors
    /// I/O errors of the connection.
    pub async fn pong(&mut self, id: &[u8]) -> io::Result<()> {
        let mut frame = BytesMut::new();
        frame.put_u16(VERSION);
        frame.put_u16(PING);
        put_length(&mut frame, 0, id.len());
        frame.put_slice(id);
        self.write.write_all(&frame).await?;
        self.write.flush().await
    }

    /// The connection's writing half back.
    pub fn into_inner(self) -> W {
        self.write
    }

    /// A header block. The zlib header stands before the first one only: all blocks are one zlib stream.
    fn block(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = Vec::new();
        plain.put_u32(headers.len() as u32);
        for (name, value) in headers {
            plain.put_u32(name.len() as u32);
            plain.put_slice(name.to_lowercase().as_bytes());
            plain.put_u32(value.len() as u32);
            plain.put_slice(value.as_bytes());
        }
        let mut out = Vec::new();
        if !std::mem::replace(&mut self.begun, true) {
            // 32 KiB window, dictionary follows; the low bits make it a multiple of 31.
            out.put_slice(&[0x78, 0xbb]);
            out.put_u32(DICTIONARY);
        }
        // Stored blocks: at most 65,535 bytes each, not the last of the stream.
        for part in plain.chunks(usize::from(u16::MAX)) {
            let length = part.len() as u16;
            out.put_u8(0);
            out.put_u16_le(length);
            out.put_u16_le(!length);
            out.put_slice(part);
        }
        // An empty block is zlib's flush: readers hand out what came before only then.
        out.put_slice(&[0, 0, 0, 0xff, 0xff]);
        out
    }
}

fn put_length(frame: &mut BytesMut, flags: u8, length: usize) {
    frame.put_u32((u32::from(flags) << 24) | (length as u32 & 0x00ff_ffff));
}

/// The receiving half.
pub struct Receiver<R> {
    read: R,
}

impl<R: AsyncRead + Unpin> Receiver<R> {
    /// Over a connection that was upgraded to SPDY.
    pub fn new(read: R) -> Self {
        Self { read }
    }

    /// The next frame; none at the connection's end.
    ///
    /// # Errors
    /// I/O errors of the connection, and frames that are too large.
    pub async fn next(&mut self) -> io::Result<Option<Incoming>> {
        let mut head = [0u8; 8];
        match self.read.read_exact(&mut head).await {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        };
        let mut head = &head[..];
        let first = head.get_u32();
        let second = head.get_u32();
        let (flags, length) = ((second >> 24) as u8, (second & 0x00ff_ffff) as usize);
        if length > LARGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "SPDY frame too large"));
        }
        let mut body = vec![0; length];
        self.read.read_exact(&mut body).await?;
        Ok(Some(frame(first, flags, body.into())))
    }
}

fn frame(first: u32, flags: u8, mut body: Bytes) -> Incoming {
    if first >> 31 == 0 {
        return Incoming::Data(first, body, flags & FIN != 0);
    }
    match (first & 0xffff) as u16 {
        RST_STREAM if body.len() >= 4 => Incoming::Reset(body.get_u32() & 0x7fff_ffff),
        PING => Incoming::Ping(body),
        GOAWAY => Incoming::GoAway,
        _ => Incoming::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_is_opened_with_stored_zlib_blocks_and_odd_numbers() {
        let mut sender = Sender::new(Vec::new());
        assert_eq!(sender.open(&[("streamType", "stdin")]).await.unwrap(), 1);
        assert_eq!(sender.open(&[("streamType", "error")]).await.unwrap(), 3);
        let bytes = &sender.write;
        assert_eq!(&bytes[..4], [0x80, 3, 0, 1]);
        // After 8 + 10 bytes of frame: the zlib header with its dictionary, then a stored block.
        assert_eq!(&bytes[18..25], [0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2, 0]);
        let text = String::from_utf8_lossy(bytes);
        assert!(text.contains("streamtype") && text.contains("stdin"));
        assert_eq!(u16::from_be_bytes([0x78, 0xbb]) % 31, 0);
    }

    #[tokio::test]
    async fn frames_come_back_as_they_were_sent() {
        let mut sender = Sender::new(Vec::new());
        sender.data(5, b"hello", true).await.unwrap();
        sender.pong(&[0, 0, 0, 2]).await.unwrap();
        let mut receiver = Receiver::new(&sender.write[..]);
        assert_eq!(
            receiver.next().await.unwrap(),
            Some(Incoming::Data(5, Bytes::from_static(b"hello"), true))
        );
        assert_eq!(
            receiver.next().await.unwrap(),
            Some(Incoming::Ping(Bytes::from_static(&[0, 0, 0, 2])))
        );
        assert_eq!(receiver.next().await.unwrap(), None);
    }
}
