//! Ranks as processes, joined by one TCP connection a pair.
//!
//! Rank i listens at its address and calls the ranks below it. Both sides prove with the team's token that they
//! belong to the same attempt of the same run; strangers are turned away and harm nobody. Frames are a tag, a
//! length and bytes. A thread a connection reads all the time, so two ranks that send to each other never block
//! each other, and each side sends a heartbeat, so silence means that the other is gone.

use crate::mailbox::{Ended, Mailbox, Message};
use crate::{Collective, CollectiveError, Result, Stop};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Tags of frames that are no operation's.
const HEARTBEAT: u8 = 0;
const GOODBYE: u8 = 255;
/// Beginning of a connection: name and version of the protocol.
const MAGIC: &[u8; 8] = b"s3team01";
/// Longest frame; longer ones come from a defect.
const LONGEST: u64 = 64 << 30;
/// How long a stranger may take to show who it is.
const INTRODUCTION: Duration = Duration::from_secs(10);
/// Longest pause between two calls of a rank that is not there yet.
const PAUSE: Duration = Duration::from_secs(1);

/// How the ranks find and trust each other.
#[derive(Clone)]
pub struct TcpOptions {
    /// This rank.
    pub rank: usize,
    /// `host:port` of every rank, in rank order.
    pub members: Vec<String>,
    /// Address to listen at; none takes this rank's own when it is an IP address, else all addresses of its port.
    pub listen: Option<SocketAddr>,
    /// Names the attempt: ranks of another one are turned away.
    pub team: String,
    /// Known to the ranks alone; empty where the network keeps strangers out.
    pub token: Vec<u8>,
    /// How long the ranks wait for each other at the start.
    pub together: Duration,
    /// Silence after which a rank counts as lost.
    pub silence: Duration,
    /// Asked while this rank waits.
    pub stop: Stop,
}

/// One rank of a team over TCP.
pub struct Tcp {
    rank: usize,
    stop: Stop,
    peers: Vec<Option<Peer>>,
    /// Ends the heartbeat.
    over: Arc<AtomicBool>,
}

struct Peer {
    out: Arc<Mutex<TcpStream>>,
    mailbox: Mailbox,
    ended: Ended,
}

impl Tcp {
    /// Meets all other ranks.
    pub fn connect(options: &TcpOptions) -> Result<Self> {
        Self::connect_on(&listen(options)?, options)
    }

    /// As [`Self::connect`], listening where `listener` does.
    pub fn connect_on(listener: &TcpListener, options: &TcpOptions) -> Result<Self> {
        let (rank, size) = (options.rank, options.members.len());
        if rank >= size {
            return Err(CollectiveError::Input(format!("replica {rank} is none of the {size} members")));
        }
        let streams = meet(listener, options)?;
        let over = Arc::new(AtomicBool::new(false));
        let mut peers = Vec::with_capacity(size);
        for (other, stream) in streams.into_iter().enumerate() {
            let Some(stream) = stream else {
                peers.push(None);
                continue;
            };
            let failed = |e: std::io::Error| CollectiveError::Lost { rank: other, reason: e.to_string() };
            stream.set_nodelay(true).map_err(failed)?;
            stream.set_read_timeout(Some(options.silence)).map_err(failed)?;
            stream.set_write_timeout(Some(options.silence)).map_err(failed)?;
            let (sender, ended, mailbox) = Mailbox::new(other);
            let reader = stream.try_clone().map_err(failed)?;
            let silence = options.silence;
            let note = ended.clone();
            let read = move || note.note(read(other, reader, &sender, silence));
            std::thread::Builder::new().name(format!("replica-{other}")).spawn(read).map_err(failed)?;
            peers.push(Some(Peer { out: Arc::new(Mutex::new(stream)), mailbox, ended }));
        }
        let outs: Vec<Arc<Mutex<TcpStream>>> = peers.iter().flatten().map(|peer| peer.out.clone()).collect();
        let (done, pause) = (over.clone(), options.silence / 4);
        let beat = move || heartbeat(&outs, &done, pause);
        let failed = |e: std::io::Error| CollectiveError::Input(format!("no thread for the heartbeat: {e}"));
        std::thread::Builder::new().name("heartbeat".into()).spawn(beat).map_err(failed)?;
        Ok(Self { rank, stop: options.stop.clone(), peers, over })
    }

    fn peer(&self, rank: usize) -> Result<&Peer> {
        let none = || CollectiveError::Input(format!("rank {rank} is no other rank of {}", self.peers.len()));
        self.peers.get(rank).and_then(Option::as_ref).ok_or_else(none)
    }
}

impl Collective for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.peers.len()
    }

    fn send_bytes(&self, to: usize, tag: u8, bytes: Vec<u8>) -> Result<()> {
        let peer = self.peer(to)?;
        let written = write(&peer.out, tag, &bytes);
        count("sent", bytes.len());
        let Err(error) = written else { return Ok(()) };
        // The other side may have said why it went; its words come by the reading thread.
        let deadline = Instant::now() + Duration::from_secs(1);
        while peer.ended.why().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(peer.ended.why().unwrap_or_else(|| CollectiveError::Lost { rank: to, reason: error.to_string() }))
    }

    fn receive_bytes(&self, from: usize) -> Result<(u8, Vec<u8>)> {
        let message = self.peer(from)?.mailbox.receive(&self.stop)?;
        count("received", message.bytes.len());
        Ok((message.tag, message.bytes))
    }

    fn leave(&self, code: u8, message: &str) {
        self.over.store(true, Ordering::SeqCst);
        let mut bytes = vec![code];
        bytes.extend(message.bytes());
        for peer in self.peers.iter().flatten() {
            // One that is gone cannot be told.
            let _ = write(&peer.out, GOODBYE, &bytes);
            let _ = peer.out.lock().unwrap_or_else(PoisonError::into_inner).shutdown(Shutdown::Write);
        }
    }

    fn ended(&self, rank: usize) -> Option<CollectiveError> {
        self.peers.get(rank)?.as_ref()?.mailbox.ended()
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        for peer in self.peers.iter().flatten() {
            let _ = peer.out.lock().unwrap_or_else(PoisonError::into_inner).shutdown(Shutdown::Both);
        }
    }
}

fn count(direction: &str, bytes: usize) {
    s3_telemetry::metrics().training_collective_bytes.with_label_values(&[direction]).inc_by(bytes as u64);
}

fn write(out: &Mutex<TcpStream>, tag: u8, bytes: &[u8]) -> std::io::Result<()> {
    let mut header = [0; 9];
    header[0] = tag;
    header[1..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
    out.write_all(&header)?;
    out.write_all(bytes)
}

/// Reads until the connection ends; returns how it did.
fn read(rank: usize, mut stream: TcpStream, sender: &Sender<Message>, silence: Duration) -> CollectiveError {
    let lost = |error: std::io::Error| {
        let reason = match error.kind() {
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
                format!("nothing was heard of it for {} s", silence.as_secs_f64())
            }
            std::io::ErrorKind::UnexpectedEof => "its connection was closed".to_owned(),
            _ => error.to_string(),
        };
        CollectiveError::Lost { rank, reason }
    };
    loop {
        let mut header = [0; 9];
        if let Err(error) = stream.read_exact(&mut header) {
            return lost(error);
        }
        let [tag, length @ ..] = header;
        let length = u64::from_le_bytes(length);
        if length > LONGEST {
            return CollectiveError::Lost { rank, reason: format!("it announced {length} bytes") };
        }
        let mut bytes = vec![0; length as usize];
        if let Err(error) = stream.read_exact(&mut bytes) {
            return lost(error);
        }
        match tag {
            HEARTBEAT => {}
            GOODBYE => {
                let code = bytes.first().copied().unwrap_or_default();
                let message = String::from_utf8_lossy(bytes.get(1..).unwrap_or_default()).into_owned();
                return CollectiveError::Left { rank, code, message };
            }
            // Nobody receives any more: this side is leaving.
            _ if sender.send(Message { tag, bytes }).is_err() => {
                return CollectiveError::Lost { rank, reason: "this replica leaves".to_owned() };
            }
            _ => {}
        }
    }
}

fn heartbeat(outs: &[Arc<Mutex<TcpStream>>], over: &AtomicBool, pause: Duration) {
    let mut last = Instant::now();
    while !over.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(20).min(pause));
        if last.elapsed() < pause {
            continue;
        }
        last = Instant::now();
        for out in outs {
            // One in use is heard anyway; one that is broken is told of by its reader.
            let Ok(free) = out.try_lock() else { continue };
            drop(free);
            let _ = write(out, HEARTBEAT, &[]);
        }
    }
}

/// A connection to every other rank.
fn meet(listener: &TcpListener, options: &TcpOptions) -> Result<Vec<Option<TcpStream>>> {
    let (rank, size) = (options.rank, options.members.len());
    let deadline = Instant::now() + options.together;
    let unset = |e: std::io::Error| CollectiveError::Input(format!("cannot listen for replicas: {e}"));
    listener.set_nonblocking(true).map_err(unset)?;
    let found: Mutex<Vec<Option<TcpStream>>> = Mutex::new((0..size).map(|_| None).collect());
    let whys: Mutex<Vec<String>> = Mutex::new(vec!["it has not come".to_owned(); size]);
    let missing = || -> Vec<usize> {
        let found = found.lock().unwrap_or_else(PoisonError::into_inner);
        (0..size).filter(|other| *other != rank && found[*other].is_none()).collect()
    };
    let over = || missing().is_empty() || Instant::now() >= deadline || (options.stop)();
    let keep = |other: usize, stream: TcpStream| {
        found.lock().unwrap_or_else(PoisonError::into_inner)[other] = Some(stream);
    };
    std::thread::scope(|scope| {
        for other in 0..rank {
            let (keep, whys, over) = (&keep, &whys, &over);
            scope.spawn(move || {
                let mut pause = Duration::from_millis(10);
                while !over() {
                    match call(options, other) {
                        Ok(stream) => return keep(other, stream),
                        Err(error) => {
                            whys.lock().unwrap_or_else(PoisonError::into_inner)[other] = error.to_string();
                        }
                    }
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(PAUSE);
                }
            });
        }
        while !over() {
            match listener.accept() {
                Ok((stream, from)) => {
                    let keep = &keep;
                    // a slow stranger keeps nobody waiting
                    scope.spawn(move || match welcome(options, stream) {
                        Ok((other, stream)) => keep(other, stream),
                        Err(error) => tracing::warn!(%from, %error, "a caller is no replica of this attempt"),
                    });
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    });
    let missing = missing();
    if missing.is_empty() {
        return Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner));
    }
    if (options.stop)() {
        return Err(CollectiveError::Interrupted);
    }
    let whys = whys.into_inner().unwrap_or_else(PoisonError::into_inner);
    let names: Vec<String> = missing
        .iter()
        .map(|other| format!("replica {other} at {} ({})", options.members[*other], whys[*other]))
        .collect();
    Err(CollectiveError::Rendezvous { seconds: options.together.as_secs(), missing: names.join(", ") })
}

fn listen(options: &TcpOptions) -> Result<TcpListener> {
    let own = &options.members[options.rank];
    let at = match (options.listen, own.parse::<SocketAddr>()) {
        (Some(at), _) | (None, Ok(at)) => at,
        (None, Err(_)) => {
            let port = own.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            let port = port.ok_or_else(|| CollectiveError::Input(format!("member {own}: write it as HOST:PORT")))?;
            SocketAddr::from(([0, 0, 0, 0], port))
        }
    };
    let failed = |e: std::io::Error| CollectiveError::Input(format!("cannot listen for replicas at {at}: {e}"));
    TcpListener::bind(at).map_err(failed)
}

fn wrong(what: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned())
}

/// Fresh bytes, so that a recorded introduction is worth nothing.
fn nonce() -> std::io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Proof of knowing the token, for one side of one connection.
fn proof(options: &TcpOptions, side: &[u8], nonces: [&[u8; 16]; 2], ranks: [u32; 2]) -> std::io::Result<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&options.token).map_err(|_| wrong("the token is no key"))?;
    let size = options.members.len() as u32;
    for part in [MAGIC.as_slice(), side, nonces[0], nonces[1], &ranks[0].to_le_bytes(), &ranks[1].to_le_bytes()] {
        mac.update(part);
    }
    mac.update(&size.to_le_bytes());
    mac.update(options.team.as_bytes());
    Ok(mac)
}

/// Calls a rank below this one.
fn call(options: &TcpOptions, other: usize) -> std::io::Result<TcpStream> {
    let at = &options.members[other];
    let mut addresses = at.to_socket_addrs()?;
    let address = addresses.next().ok_or_else(|| wrong("its name has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, INTRODUCTION)?;
    stream.set_read_timeout(Some(INTRODUCTION))?;
    stream.set_write_timeout(Some(INTRODUCTION))?;
    let (own, ranks) = (nonce()?, [options.rank as u32, other as u32]);
    stream.write_all(MAGIC)?;
    stream.write_all(&ranks[0].to_le_bytes())?;
    stream.write_all(&own)?;
    let (mut theirs, mut shown) = ([0; 16], [0; 32]);
    let refused = |_| wrong("it turned this replica away: another attempt, another token, or other members");
    stream.read_exact(&mut theirs).map_err(refused)?;
    stream.read_exact(&mut shown).map_err(refused)?;
    proof(options, b"welcome", [&own, &theirs], ranks)?
        .verify_slice(&shown)
        .map_err(|_| wrong("it belongs to another attempt, or its token is another"))?;
    stream.write_all(&proof(options, b"caller", [&own, &theirs], ranks)?.finalize().into_bytes())?;
    let mut last = [0; 1];
    stream.read_exact(&mut last).map_err(refused)?;
    Ok(stream)
}

/// Answers a caller; returns its rank once it has proved it.
fn welcome(options: &TcpOptions, mut stream: TcpStream) -> std::io::Result<(usize, TcpStream)> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(INTRODUCTION))?;
    stream.set_write_timeout(Some(INTRODUCTION))?;
    let (mut magic, mut rank, mut theirs) = ([0; 8], [0; 4], [0; 16]);
    stream.read_exact(&mut magic)?;
    if &magic != MAGIC {
        return Err(wrong("it speaks another protocol"));
    }
    stream.read_exact(&mut rank)?;
    stream.read_exact(&mut theirs)?;
    let (own, rank) = (nonce()?, u32::from_le_bytes(rank));
    let other = rank as usize;
    if other <= options.rank || other >= options.members.len() {
        return Err(wrong("it names a rank that does not call this one"));
    }
    let ranks = [rank, options.rank as u32];
    stream.write_all(&own)?;
    stream.write_all(&proof(options, b"welcome", [&theirs, &own], ranks)?.finalize().into_bytes())?;
    let mut shown = [0; 32];
    stream.read_exact(&mut shown)?;
    proof(options, b"caller", [&theirs, &own], ranks)?
        .verify_slice(&shown)
        .map_err(|_| wrong("it does not know the token of this attempt"))?;
    stream.write_all(&[1])?;
    Ok((other, stream))
}
