//! The parent's side: a started process, asked one thing at a time, each with a deadline.

use crate::error::{FaissError, Result};
use crate::wire::{self, About, Reply, Request};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Name of the program.
const PROGRAM: &str = "s3-faiss";
/// How often a waiting parent looks whether it is asked to stop.
const LOOK: Duration = Duration::from_millis(200);
/// How much of the child's last words is kept.
const WORDS: usize = 512;
/// Vectors of one frame take at most this, bytes.
const FRAME: usize = 128 << 20;

/// How long to wait for an answer.
#[derive(Clone, Copy)]
pub struct Patience<'a> {
    /// Longer is [`FaissError::Late`].
    pub limit: Duration,
    /// Says whether waiting is to be given up.
    pub stop: &'a dyn Fn() -> bool,
}

impl Patience<'static> {
    /// Waits this long.
    pub fn of(limit: Duration) -> Self {
        Self { limit, stop: &|| false }
    }
}

/// Row numbers per query; fewer than asked for where the index finds no more.
pub type Found = Vec<Vec<u32>>;

/// A running `s3-faiss` with its index.
pub struct Child {
    process: std::process::Child,
    socket: UnixStream,
    said: Arc<Mutex<Vec<u8>>>,
    about: About,
}

/// `s3-faiss` in the folder of `S3_BIN_DIR`, else beside this program.
fn program() -> Result<PathBuf> {
    let folder = if let Some(folder) = std::env::var_os("S3_BIN_DIR") {
        PathBuf::from(folder)
    } else {
        let own = std::env::current_exe().map_err(|source| FaissError::Start { path: PROGRAM.into(), source })?;
        let folder = own.parent().map(Path::to_owned).unwrap_or_default();
        // cargo's tests and examples lie one below
        let below = folder.file_name().is_some_and(|name| name == "deps" || name == "examples");
        if below { folder.parent().map(Path::to_owned).unwrap_or_default() } else { folder }
    };
    let path = folder.join(PROGRAM);
    if path.exists() { Ok(path) } else { Err(FaissError::Missing(path)) }
}

impl Child {
    /// Starts the program on `threads` threads and has it read an index file.
    pub fn open(path: &Path, threads: usize, patience: Patience<'_>) -> Result<Self> {
        Self::start(threads, &Request::Open { path: path.to_owned() }, "read its index", patience)
    }

    /// Starts the program on `threads` threads with an empty index for inner products.
    pub fn create(
        dimensions: usize,
        factory: &str,
        ef_construction: Option<u32>,
        threads: usize,
        patience: Patience<'_>,
    ) -> Result<Self> {
        let dimensions = dimensions as u32;
        let request = Request::Create { dimensions, factory: factory.to_owned(), ef_construction };
        Self::start(threads, &request, "make an index", patience)
    }

    fn start(threads: usize, request: &Request, task: &'static str, patience: Patience<'_>) -> Result<Self> {
        let path = program()?;
        let failed = |source: io::Error| FaissError::Start { path: path.clone(), source };
        let (socket, theirs) = UnixStream::pair().map_err(failed)?;
        let threads = threads.max(1).to_string();
        let mut process = Command::new(&path)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .env("OMP_NUM_THREADS", &threads)
            .env("OPENBLAS_NUM_THREADS", &threads)
            // threads that wait by spinning take the cores from everyone else
            .env("OMP_WAIT_POLICY", "passive")
            .spawn()
            .map_err(failed)?;
        let said = Arc::new(Mutex::new(Vec::new()));
        if let Some(mut stderr) = process.stderr.take() {
            let said = said.clone();
            // it ends with the child, whose other end of the pipe it reads
            std::thread::spawn(move || {
                let mut buffer = [0; 1024];
                while let Ok(read @ 1..) = stderr.read(&mut buffer) {
                    let mut kept = said.lock().unwrap_or_else(PoisonError::into_inner);
                    kept.extend_from_slice(&buffer[..read]);
                    let over = kept.len().saturating_sub(WORDS);
                    kept.drain(..over);
                }
            });
        }
        let about = About { dimensions: 0, rows: 0, trained: false, metric: String::new() };
        let mut child = Self { process, socket, said, about };
        match child.ask(request, &[], task, patience)? {
            (Reply::Ready(about), _) if about.dimensions > 0 => child.about = about,
            (other, _) => return Err(nonsense(&other)),
        }
        Ok(child)
    }

    /// What index it has.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Rows that fit one frame.
    pub fn frame_rows(&self) -> usize {
        (FRAME / (4 * self.about.dimensions as usize)).max(1)
    }

    /// Trains with the sample's rows, which come in parts.
    pub fn train<'a>(&mut self, sample: impl IntoIterator<Item = &'a [f32]>, patience: Patience<'_>) -> Result<()> {
        for part in sample {
            self.done(&Request::Sample, part, "take its training sample", patience)?;
        }
        self.done(&Request::Train, &[], "train", patience)?;
        self.about.trained = true;
        Ok(())
    }

    /// Adds rows.
    pub fn add(&mut self, rows: &[f32], patience: Patience<'_>) -> Result<()> {
        self.done(&Request::Add, rows, "add vectors", patience)?;
        self.about.rows += (rows.len() / self.about.dimensions as usize) as u64;
        Ok(())
    }

    /// Writes the index to a file.
    pub fn write(&mut self, path: &Path, patience: Patience<'_>) -> Result<()> {
        self.done(&Request::Write { path: path.to_owned() }, &[], "write its index", patience)
    }

    /// Sets how much a search looks at: lists visited or candidates kept. Says what of the two the index has.
    pub fn effort(&mut self, value: u32, patience: Patience<'_>) -> Result<Option<String>> {
        match self.ask(&Request::Effort { value }, &[], "set its effort", patience)? {
            (Reply::Tuned { parameter }, _) => Ok(parameter),
            (other, _) => Err(nonsense(&other)),
        }
    }

    /// The best rows for queries that run together. Every row number that comes back is one of the index's.
    pub fn search(&mut self, queries: &[f32], k: usize, patience: Patience<'_>) -> Result<Found> {
        let count = queries.len() / self.about.dimensions as usize;
        let mut all = Vec::with_capacity(count);
        let most = (wire::BODY / 8 / k.max(1)).clamp(1, self.frame_rows());
        for part in queries.chunks(most * self.about.dimensions as usize) {
            let body = wire::to_bytes(part, f32::to_le_bytes);
            let (reply, body) = self.ask(&Request::Search { k: k as u32 }, &body, "search", patience)?;
            let labels = wire::from_bytes(&body, i64::from_le_bytes);
            let (Reply::Found, Some(labels)) = (&reply, labels) else { return Err(nonsense(&reply)) };
            if labels.len() != part.len() / self.about.dimensions as usize * k {
                return Err(FaissError::Nonsense(format!("{} row numbers", labels.len())));
            }
            for labels in labels.chunks(k) {
                let mut rows = Vec::with_capacity(k);
                for label in labels.iter().filter(|label| **label != -1) {
                    match u32::try_from(*label) {
                        Ok(row) if u64::from(row) < self.about.rows => rows.push(row),
                        _ => return Err(FaissError::Nonsense(format!("row {label} of {}", self.about.rows))),
                    }
                }
                all.push(rows);
            }
        }
        Ok(all)
    }

    /// Rows as the index has them: exact or, where it codes them, nearly.
    pub fn rows(&mut self, first: u64, count: usize, patience: Patience<'_>) -> Result<Vec<f32>> {
        let request = Request::Rows { first, count: count as u64 };
        let (reply, body) = self.ask(&request, &[], "give its vectors", patience)?;
        match (reply, wire::from_bytes(&body, f32::from_le_bytes)) {
            (Reply::Done, Some(rows)) if rows.len() == count * self.about.dimensions as usize => Ok(rows),
            (other, _) => Err(nonsense(&other)),
        }
    }

    fn done(&mut self, request: &Request, rows: &[f32], task: &'static str, patience: Patience<'_>) -> Result<()> {
        match self.ask(request, &wire::to_bytes(rows, f32::to_le_bytes), task, patience)? {
            (Reply::Done, _) => Ok(()),
            (other, _) => Err(nonsense(&other)),
        }
    }

    fn ask(
        &mut self,
        request: &Request,
        body: &[u8],
        task: &'static str,
        patience: Patience<'_>,
    ) -> Result<(Reply, Vec<u8>)> {
        let until = Instant::now() + patience.limit;
        let sent = self.socket.set_write_timeout(Some(patience.limit.max(LOOK)));
        let sent = sent.and_then(|()| wire::send(&mut self.socket, request, body));
        let mut answer = Waiting { socket: &self.socket, until, stop: patience.stop };
        match sent.and_then(|()| wire::receive::<Reply>(&mut answer)) {
            Ok(Some((Reply::Failed { reason }, _))) => Err(FaissError::Refused { task, reason }),
            Ok(Some(answer)) => Ok(answer),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.end();
                Err(FaissError::Nonsense(error.to_string()))
            }
            // what `Waiting` calls it when it is asked to stop
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {
                self.end();
                Err(FaissError::Interrupted)
            }
            Err(_) if Instant::now() >= until => {
                self.end();
                Err(FaissError::Late { task, limit: patience.limit })
            }
            Ok(None) | Err(_) => Err(self.ended(task)),
        }
    }

    fn ended(&mut self, task: &'static str) -> FaissError {
        // its end of the socket is closed, so it is ending; it may not hang on that
        let started = Instant::now();
        let status = loop {
            match self.process.try_wait() {
                Ok(Some(status)) => break Some(status),
                Ok(None) if started.elapsed() < Duration::from_secs(5) => std::thread::sleep(LOOK / 20),
                _ => break None,
            }
        };
        self.end();
        let how = match status {
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("exit code {code}"),
                (None, Some(signal)) => format!("signal {signal}"),
                (None, None) => "no status".to_owned(),
            },
            None => "it hung".to_owned(),
        };
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let said = String::from_utf8_lossy(&said);
        let said: Vec<&str> = said.split_whitespace().collect();
        let said = if said.is_empty() { String::new() } else { format!(": {}", said.join(" ")) };
        FaissError::Ended { how, task, said }
    }

    fn end(&mut self) {
        // it may have ended already
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

fn nonsense(reply: &Reply) -> FaissError {
    FaissError::Nonsense(format!("{reply:?}").chars().take(200).collect())
}

/// A socket that is read until a time, looking now and then whether to stop.
struct Waiting<'a> {
    socket: &'a UnixStream,
    until: Instant,
    stop: &'a dyn Fn() -> bool,
}

impl Read for Waiting<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            if (self.stop)() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let left = self.until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.socket.set_read_timeout(Some(left.min(LOOK)))?;
            match (&mut &*self.socket).read(out) {
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
                    ) => {}
                other => return other,
            }
        }
    }
}
