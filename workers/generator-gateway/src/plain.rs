//! HTTP/1.1 without TLS for whole replies.
//!
//! The task that asks owns a connection while it asks: it writes, reads and goes on. A shared client hands every
//! request to a task of the connection's and the reply back, which cost a good part of a request's CPU.
//! A reply is taken only when its framing says that it is whole; replies with a body of unknown length end with
//! the connection. A call that is dropped closes its connection.

use crate::FailureKind;
use crate::json::push_number;
use crate::network::{Guard, Reach};
use crate::retry::Attempt;
use reqwest::Url;
use reqwest::header::{HeaderName, HeaderValue};
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Bytes of a reply's body that are read at most; an answer is never that long.
pub(crate) const REPLY_LIMIT: usize = 16 << 20;
/// Bytes of a reply's head.
const HEAD_LIMIT: usize = 64 << 10;
/// Header lines of a reply.
const HEADERS: usize = 96;
/// Read at a time.
const STEP: usize = 8 << 10;
/// Buffers that grew beyond this are not kept.
const KEPT: usize = 256 << 10;
/// A connection that nobody used for so long is closed: servers close theirs sooner or later too.
const IDLE: Duration = Duration::from_secs(60);
/// Time for one connection to come about.
pub(crate) const CONNECT: Duration = Duration::from_secs(10);

/// The connections to one server.
pub(crate) struct Pool {
    host: String,
    port: u16,
    /// As the `host` header says it.
    authority: String,
    idle: Mutex<VecDeque<Connection>>,
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    since: Instant,
}

/// A whole reply. Its connection goes back when it is dropped.
pub(crate) struct Reply<'a> {
    pool: &'a Pool,
    connection: Option<Connection>,
    pub status: u16,
    head: Head,
    body: Range<usize>,
}

/// What the head of a reply says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Head {
    status: u16,
    /// Bytes of the head.
    length: usize,
    body: Framing,
    keep: bool,
    media: Range<usize>,
    retry_after: Range<usize>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
    /// Until the connection ends.
    #[default]
    Rest,
}

impl Reply<'_> {
    fn bytes(&self) -> &[u8] {
        self.connection.as_ref().map_or(&[], |connection| &connection.buffer)
    }

    fn text(&self, range: &Range<usize>) -> &str {
        self.bytes().get(range.clone()).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or("")
    }

    /// The `content-type` header's value.
    pub fn content_type(&self) -> &str {
        self.text(&self.head.media)
    }

    /// The `retry-after` header's value.
    pub fn retry_after(&self) -> &str {
        self.text(&self.head.retry_after)
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        self.bytes().get(self.body.clone()).unwrap_or_default()
    }
}

impl Drop for Reply<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take().filter(|_| self.head.keep) {
            self.pool.give(connection);
        }
    }
}

/// A reply that is read as it comes. Its connection goes back when the end has come.
pub(crate) struct Flow<'a> {
    pool: &'a Pool,
    connection: Option<Connection>,
    head: Head,
    pub media: String,
    pub retry_after: String,
    /// Bytes that are still to come, where that is known.
    left: usize,
}

impl Flow<'_> {
    pub fn status(&self) -> u16 {
        self.head.status
    }

    /// The next bytes of the body; none at its end.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, Attempt> {
        loop {
            let Some(connection) = &mut self.connection else { return Ok(None) };
            let buffer = &mut connection.buffer;
            let (bytes, ended) = match self.head.body {
                Framing::Length(_) => {
                    let taken: Vec<u8> = buffer.drain(..buffer.len().min(self.left)).collect();
                    self.left -= taken.len();
                    (taken, self.left == 0)
                }
                Framing::Chunked => {
                    let mut chunks = Chunks { read: 0, written: 0 };
                    let ended = chunks.take(buffer).map_err(malformed)?;
                    let taken = buffer[..chunks.written].to_vec();
                    buffer.drain(..chunks.read);
                    if buffer.len() > REPLY_LIMIT {
                        return Err(malformed("a chunk of the reply is longer than 16 MiB"));
                    }
                    (taken, ended)
                }
                Framing::Rest => (std::mem::take(buffer), false),
            };
            if ended {
                let keep = self.head.keep && buffer.is_empty();
                connection.since = Instant::now();
                if let Some(connection) = self.connection.take().filter(|_| keep) {
                    self.pool.give(connection);
                }
            }
            if !bytes.is_empty() {
                return Ok(Some(bytes));
            }
            if let Some(connection) = &mut self.connection
                && !more(&mut connection.stream, &mut connection.buffer).await.map_err(|e| cut(&e.to_string()))?
            {
                self.connection = None;
                return if self.head.body == Framing::Rest { Ok(None) } else { Err(cut("its end did not come")) };
            }
        }
    }
}

/// Why there is no reply.
pub(crate) enum Broken {
    /// No connection, or one that broke before a status came.
    Before(Attempt),
    /// It broke after a status had come.
    After(u16, Attempt),
}

fn lost(error: &std::io::Error) -> Attempt {
    Attempt::again(FailureKind::Unavailable, "reset", format!("the connection broke: {error}"))
}

fn cut(detail: &str) -> Attempt {
    Attempt::again(FailureKind::Unavailable, "truncated", format!("the reply broke off: {detail}"))
}

fn malformed(message: impl Into<String>) -> Attempt {
    Attempt::again(FailureKind::Malformed, "malformed", message)
}

impl Pool {
    /// For the server of an address with scheme `http`.
    pub fn new(url: &Url) -> Self {
        let host = url.host_str().unwrap_or("").to_owned();
        let port = url.port_or_known_default().unwrap_or(80);
        let authority = url.port().map_or_else(|| host.clone(), |port| format!("{host}:{port}"));
        let host = host.trim_matches(['[', ']']).to_owned();
        Self { host, port, authority, idle: Mutex::default() }
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection that was used last, if it is still open.
    fn take(&self) -> Option<Connection> {
        loop {
            let connection = self.idle().pop_back()?;
            // a server says nothing unasked: what can be read now is its end
            let mut byte = [0];
            if matches!(connection.stream.try_read(&mut byte), Err(e) if e.kind() == ErrorKind::WouldBlock) {
                return Some(connection);
            }
        }
    }

    fn give(&self, mut connection: Connection) {
        if connection.buffer.capacity() > KEPT {
            connection.buffer = Vec::new();
        }
        let mut idle = self.idle();
        idle.push_back(connection);
        let now = idle.back().map(|last| last.since);
        while let (Some(first), Some(now)) = (idle.front(), now)
            && now.saturating_duration_since(first.since) > IDLE
        {
            idle.pop_front();
        }
    }

    async fn connect(&self, reach: &Arc<Reach>) -> Result<TcpStream, Attempt> {
        let failed = |detail: &str| {
            let message = format!("cannot connect: {detail}");
            // an address that must not be used stays so
            if detail.contains("allowAddresses") {
                Attempt::refused(message)
            } else {
                Attempt::again(FailureKind::Unavailable, "connect", message)
            }
        };
        let addresses: Vec<SocketAddr> = if let Ok(address) = self.host.parse::<IpAddr>() {
            vec![(address, 0).into()]
        } else {
            let found = Guard(reach.clone()).addresses(self.host.clone()).await;
            found.map_err(|e| failed(&e.to_string()))?.collect()
        };
        let each = CONNECT / u32::try_from(addresses.len().max(1)).unwrap_or(1);
        let mut last = failed("the name has no address");
        for mut address in addresses {
            address.set_port(self.port);
            match tokio::time::timeout(each, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    stream.set_nodelay(true).map_err(|e| failed(&e.to_string()))?;
                    return Ok(stream);
                }
                Ok(Err(error)) => last = failed(&error.to_string()),
                Err(_) => last = failed("timed out"),
            }
        }
        Err(last)
    }

    /// Sends a request and reads the whole reply.
    pub async fn post(
        &self,
        reach: &Arc<Reach>,
        url: &Url,
        headers: &[(HeaderName, HeaderValue)],
        body: &[u8],
    ) -> Result<Reply<'_>, Broken> {
        let mut connection = self.send(reach, url, headers, body).await.map_err(Broken::Before)?;
        let Connection { stream, buffer, .. } = &mut connection;
        let head = read_reply_head(stream, buffer).await.map_err(Broken::Before)?;
        let (head, body) = read_body(stream, buffer, head).await?;
        connection.since = Instant::now();
        Ok(Reply { pool: self, connection: Some(connection), status: head.status, head, body })
    }

    /// Sends a request and reads the head of the reply; its body is read as it comes.
    pub async fn open(
        &self,
        reach: &Arc<Reach>,
        url: &Url,
        headers: &[(HeaderName, HeaderValue)],
        body: &[u8],
    ) -> Result<Flow<'_>, Attempt> {
        let mut connection = self.send(reach, url, headers, body).await?;
        let head = read_reply_head(&mut connection.stream, &mut connection.buffer).await?;
        let headed = |place: &Range<usize>| {
            let bytes = connection.buffer.get(place.clone()).unwrap_or_default();
            String::from_utf8_lossy(bytes).into_owned()
        };
        let (media, retry_after) = (headed(&head.media), headed(&head.retry_after));
        connection.buffer.drain(..head.length);
        let left = if let Framing::Length(length) = head.body { length } else { 0 };
        Ok(Flow { pool: self, connection: Some(connection), head, media, retry_after, left })
    }

    /// Sends a request.
    async fn send(
        &self,
        reach: &Arc<Reach>,
        url: &Url,
        headers: &[(HeaderName, HeaderValue)],
        body: &[u8],
    ) -> Result<Connection, Attempt> {
        let mut connection = if let Some(connection) = self.take() {
            connection
        } else {
            let stream = self.connect(reach).await?;
            Connection { stream, buffer: Vec::with_capacity(STEP), since: Instant::now() }
        };
        connection.buffer.clear();
        self.write(&mut connection.buffer, url, headers, body);
        let Connection { stream, buffer, .. } = &mut connection;
        stream.write_all(buffer).await.map_err(|e| lost(&e))?;
        buffer.clear();
        Ok(connection)
    }

    fn write(&self, out: &mut Vec<u8>, url: &Url, headers: &[(HeaderName, HeaderValue)], body: &[u8]) {
        out.reserve(512 + body.len());
        for part in ["POST ", url.path()] {
            out.extend_from_slice(part.as_bytes());
        }
        if let Some(query) = url.query() {
            out.push(b'?');
            out.extend_from_slice(query.as_bytes());
        }
        for part in [" HTTP/1.1\r\nhost: ", &self.authority, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        for (name, value) in headers {
            out.extend_from_slice(name.as_str().as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"content-length: ");
        push_number(out, body.len() as u64);
        out.extend_from_slice(b"\r\n\r\n");
        out.extend_from_slice(body);
    }
}

/// More bytes; none at the end of the connection.
async fn more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<bool> {
    buffer.reserve(STEP / 2);
    Ok(stream.read_buf(buffer).await? > 0)
}

/// Reads until the head of a reply is whole.
async fn read_reply_head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<Head, Attempt> {
    loop {
        match read_head(buffer)? {
            // an interim reply; the real one follows
            Some(head) if (100..200).contains(&head.status) => {
                buffer.drain(..head.length);
                continue;
            }
            Some(head) => return Ok(head),
            None if buffer.len() > HEAD_LIMIT => {
                return Err(malformed("the head of the reply is longer than 64 KiB"));
            }
            None => {}
        }
        if !more(stream, buffer).await.map_err(|e| lost(&e))? {
            let detail = if buffer.is_empty() { "closed before a reply came" } else { "closed within the head" };
            return Err(lost(&std::io::Error::new(ErrorKind::UnexpectedEof, detail)));
        }
    }
}

/// Reads the body of a reply; where in the buffer it lies.
async fn read_body(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    mut head: Head,
) -> Result<(Head, Range<usize>), Broken> {
    let (status, start) = (head.status, head.length);
    let after = |failed| Broken::After(status, failed);
    let long = || after(malformed("the reply is longer than 16 MiB"));
    let body = match head.body {
        Framing::Length(length) => {
            if length > REPLY_LIMIT {
                return Err(long());
            }
            while buffer.len() < start + length {
                if !more(stream, buffer).await.map_err(|e| after(cut(&e.to_string())))? {
                    return Err(after(cut(&format!("{} of {length} bytes came", buffer.len() - start))));
                }
            }
            start..start + length
        }
        Framing::Chunked => {
            let mut chunks = Chunks { read: start, written: start };
            loop {
                match chunks.take(buffer) {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(message) => return Err(after(malformed(message))),
                }
                if chunks.written - start > REPLY_LIMIT || buffer.len() - chunks.read > REPLY_LIMIT {
                    return Err(long());
                }
                if !more(stream, buffer).await.map_err(|e| after(cut(&e.to_string())))? {
                    return Err(after(cut("the last chunk did not come")));
                }
            }
            head.keep &= chunks.read == buffer.len();
            return Ok((head, start..chunks.written));
        }
        Framing::Rest => {
            while more(stream, buffer).await.map_err(|e| after(cut(&e.to_string())))? {
                if buffer.len() - start > REPLY_LIMIT {
                    return Err(long());
                }
            }
            start..buffer.len()
        }
    };
    // whatever follows was not asked for
    head.keep &= body.end == buffer.len();
    Ok((head, body))
}

/// Reads the head of a reply, once it is whole.
fn read_head(buffer: &[u8]) -> Result<Option<Head>, Attempt> {
    let bad = |what: &str| malformed(format!("the reply is no HTTP: {what}"));
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(buffer) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(bad(&error.to_string())),
    };
    if response.code == Some(101) {
        return Err(bad("it wants another protocol"));
    }
    let mut head =
        Head { status: response.code.unwrap_or(0), length, keep: response.version == Some(1), ..Head::default() };
    let mut known = None;
    let mut chunked = false;
    for header in response.headers.iter() {
        let value = header.value;
        // where in the buffer the value lies; both are slices of it
        let at = (value.as_ptr() as usize).wrapping_sub(buffer.as_ptr() as usize);
        let place = at..at + value.len();
        let name = header.name;
        if name.eq_ignore_ascii_case("content-length") {
            let digits = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
            let length = digits.and_then(|text| text.parse::<usize>().ok()).ok_or_else(|| bad("content-length"))?;
            if known.replace(length).is_some_and(|other| other != length) {
                return Err(bad("two lengths"));
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            // nothing else was asked for
            chunked = value.eq_ignore_ascii_case(b"chunked");
            if !chunked {
                return Err(bad("transfer-encoding"));
            }
        } else if name.eq_ignore_ascii_case("connection") {
            let closes = |part: &[u8]| part.trim_ascii().eq_ignore_ascii_case(b"close");
            head.keep &= !value.split(|byte| *byte == b',').any(closes);
        } else if name.eq_ignore_ascii_case("content-type") {
            head.media = place;
        } else if name.eq_ignore_ascii_case("retry-after") {
            head.retry_after = place;
        }
    }
    head.body = match (head.status, chunked, known) {
        (204 | 304, ..) => Framing::Length(0),
        (_, true, length) => {
            // two framings: the connection is not trusted beyond this reply
            head.keep &= length.is_none();
            Framing::Chunked
        }
        (_, false, Some(length)) => Framing::Length(length),
        (_, false, None) => {
            head.keep = false;
            Framing::Rest
        }
    };
    Ok(Some(head))
}

/// Takes chunks apart in place.
struct Chunks {
    /// Everything before is taken.
    read: usize,
    /// The body so far ends here.
    written: usize,
}

impl Chunks {
    /// Takes what has come; whether that was all.
    fn take(&mut self, buffer: &mut [u8]) -> Result<bool, &'static str> {
        const BAD: &str = "the chunks of the reply cannot be read";
        loop {
            match httparse::parse_chunk_size(&buffer[self.read..]) {
                Ok(httparse::Status::Partial) => return Ok(false),
                Err(_) => return Err(BAD),
                Ok(httparse::Status::Complete((line, 0))) => {
                    // trailers end with an empty line
                    let rest = &buffer[self.read + line..];
                    let end = if rest.starts_with(b"\r\n") {
                        Some(2)
                    } else {
                        rest.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
                    };
                    let Some(end) = end else {
                        return if rest.len() > HEAD_LIMIT { Err(BAD) } else { Ok(false) };
                    };
                    self.read += line + end;
                    return Ok(true);
                }
                Ok(httparse::Status::Complete((line, size))) => {
                    let size = usize::try_from(size).ok().filter(|size| *size <= REPLY_LIMIT).ok_or(BAD)?;
                    let start = self.read + line;
                    let Some(end) = buffer.get(start + size..start + size + 2) else { return Ok(false) };
                    if end != b"\r\n" {
                        return Err(BAD);
                    }
                    buffer.copy_within(start..start + size, self.written);
                    self.written += size;
                    self.read = start + size + 2;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use tokio::net::TcpListener;

    /// A server that answers each request with these bytes, cut into pieces, and what it was sent.
    async fn server(reply: Vec<u8>, piece: usize, close: bool) -> (Pool, Url, Arc<Mutex<(usize, Vec<u8>)>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: Url = format!("http://{}/v1/chat?x=1", listener.local_addr().unwrap()).parse().unwrap();
        let seen = Arc::new(Mutex::new((0, Vec::new())));
        let noted = seen.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                noted.lock().unwrap().0 += 1;
                let (reply, noted) = (reply.clone(), noted.clone());
                tokio::spawn(async move {
                    let mut buffer = Vec::new();
                    loop {
                        while !buffer.ends_with(b"END") {
                            if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                                return;
                            }
                        }
                        noted.lock().unwrap().1 = std::mem::take(&mut buffer);
                        for part in reply.chunks(piece) {
                            if stream.write_all(part).await.is_err() {
                                return;
                            }
                            tokio::task::yield_now().await;
                        }
                        if close {
                            return;
                        }
                    }
                });
            }
        });
        (Pool::new(&url), url, seen)
    }

    fn reach() -> Arc<Reach> {
        Arc::new(Reach::with_loopback())
    }

    /// Asks twice, whole and as it comes: status and body, and how many connections that took.
    async fn asked(reply: &[u8], piece: usize, close: bool) -> (Result<(u16, Vec<u8>), String>, usize) {
        let (pool, url, seen) = server(reply.to_vec(), piece, close).await;
        let headers = [(HeaderName::from_static("x-a"), HeaderValue::from_static("b"))];
        let whole = match pool.post(&reach(), &url, &headers, b"{} END").await {
            Ok(reply) => Ok((reply.status, reply.body().to_vec())),
            Err(Broken::Before(failed) | Broken::After(_, failed)) => Err(failed.message),
        };
        let flowing = async {
            let mut flow = pool.open(&reach(), &url, &headers, b"{} END").await.map_err(|failed| failed.message)?;
            let mut body = Vec::new();
            while let Some(bytes) = flow.next().await.map_err(|failed| failed.message)? {
                body.extend(bytes);
            }
            Ok::<_, String>((flow.status(), body))
        };
        let flowed = flowing.await;
        assert_eq!(whole.is_ok(), flowed.is_ok(), "{whole:?} {flowed:?}");
        if whole.is_ok() {
            assert_eq!(whole, flowed);
        }
        let (connections, request) = seen.lock().unwrap().clone();
        let head = format!(
            "POST /v1/chat?x=1 HTTP/1.1\r\nhost: 127.0.0.1:{}\r\nx-a: b\r\ncontent-length: 6\r\n\r\n{{}} END",
            url.port().unwrap()
        );
        assert_eq!(String::from_utf8(request).unwrap(), head);
        (whole, connections)
    }

    #[tokio::test]
    async fn every_framing_is_read_however_it_is_cut() {
        let good = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", false, 1),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", false, 1),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n", false, 1),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\na: b\r\n\r\n", false, 1),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: keep-alive, Close\r\n\r\nhello", false, 2),
            ("HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello", false, 2),
            ("HTTP/1.1 200 OK\r\n\r\nhello", true, 2),
            // more than was promised: not believed for another request
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1 200", false, 2),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
                false,
                2,
            ),
        ];
        for (reply, close, connections) in good {
            // what is too much may come late in small pieces, and then spoils the next reply
            let pieces: &[usize] = if reply.ends_with("200") { &[1000] } else { &[1, 2, 7, 1000] };
            for piece in pieces {
                let (got, used) = asked(reply.as_bytes(), *piece, close).await;
                assert_eq!(got.unwrap(), (200, b"hello".to_vec()), "{reply:?} by {piece}");
                assert_eq!(used, connections, "{reply:?} by {piece}");
            }
        }
    }

    #[tokio::test]
    async fn a_reply_that_is_not_whole_is_none() {
        let whole = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
        for cut in 0..whole.len() {
            assert!(asked(&whole.as_bytes()[..cut], 1000, true).await.0.is_err(), "{cut}");
        }
        let whole = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
        for cut in 0..whole.len() {
            assert!(asked(&whole.as_bytes()[..cut], 1000, true).await.0.is_err(), "{cut}");
        }
        for bad in [
            "nonsense\r\n\r\n",
            "HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nhello",
        ] {
            assert!(asked(bad.as_bytes(), 1000, true).await.0.is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_the_server_ended_is_not_used_again() {
        let (pool, url, seen) = server(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec(), 1000, true).await;
        for round in 1..5 {
            let reply = pool.post(&reach(), &url, &[], b"END").await;
            assert!(reply.is_ok_and(|reply| reply.body() == b"ok"), "{round}");
            // the end of the server's side arrives on its own time
            let until = Instant::now() + Duration::from_secs(20);
            while pool.take().map(|connection| pool.give(connection)).is_some() {
                assert!(Instant::now() < until, "the end of the connection is not seen");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(seen.lock().unwrap().0, round);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), head in any::<bool>()) {
            let mut all = if head { b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec() } else { Vec::new() };
            let start = all.len();
            all.extend(&bytes);
            let _ = read_head(&all);
            let mut chunks = Chunks { read: start, written: start };
            let _ = chunks.take(&mut all);
            prop_assert!(chunks.written <= chunks.read && chunks.read <= all.len());
        }
    }
}
