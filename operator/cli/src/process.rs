//! One child process: started so that it cannot outlive `s3`, found again when it did.

// `pre_exec` runs between fork and exec; only async-signal-safe calls stand in it.
#![allow(unsafe_code)]

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getppid};
use s3_plan::{Exit, ExitKind};
use s3_telemetry::ExitClass;
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The class of a worker's end, and the line in which it said why.
pub fn complaint(status: ExitStatus, said: &str) -> (ExitClass, Option<&str>) {
    let class = status.code().and_then(ExitClass::from_code).unwrap_or(ExitClass::Internal);
    (class, said.lines().rev().find_map(|line| line.strip_prefix("error: ")))
}

/// A process as it is recorded in the state folder. Pids are used again by the system, start times are not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Process and process-group id.
    pub pid: i32,
    /// Start time in clock ticks since boot, from `/proc/PID/stat`.
    pub started: u64,
}

impl Identity {
    fn of(pid: i32) -> Option<Self> {
        let (state, started) = stat(pid)?;
        (state != 'Z').then_some(Self { pid, started })
    }

    /// Whether that very process still runs.
    pub fn alive(&self) -> bool {
        Self::of(self.pid).is_some_and(|now| now == *self)
    }
}

/// State letter and start time of a process.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name is in brackets and may hold anything.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// A running worker, with the replicas that share its work.
pub struct Process {
    child: Child,
    /// For the record of running processes.
    pub identity: Identity,
    /// When it was started.
    pub since: Instant,
    ended: Option<Exit>,
    others: Vec<Process>,
    /// When the first of several replicas ended badly.
    broken: Option<Instant>,
}

/// How long the replicas of one that ended badly get to notice it.
const REPLICAS_GRACE: Duration = Duration::from_secs(120);

impl Process {
    /// Starts `binary` in its own process group, output appended to `log`.
    ///
    /// The kernel kills it when the calling thread ends, so this must be called from the main thread.
    pub fn start(binary: &Path, args: &[String], log: &Path) -> io::Result<Self> {
        let output = OpenOptions::new().create(true).append(true).open(log)?;
        let parent = Pid::this();
        let mut command = Command::new(binary);
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .env("NO_COLOR", "1")
            .process_group(0);
        // SAFETY: prctl and getppid are async-signal-safe and touch no memory of the parent.
        unsafe {
            command.pre_exec(move || {
                prctl::set_pdeathsig(Signal::SIGKILL)?;
                // The parent may have died before the line above took effect.
                if getppid() == parent { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
            });
        }
        let child = command.spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        let started = stat(pid).map_or(0, |(_, started)| started);
        let identity = Identity { pid, started };
        Ok(Self { child, identity, since: Instant::now(), ended: None, others: Vec::new(), broken: None })
    }

    /// Takes the other replicas in: all are one from here on.
    #[must_use]
    pub fn with(mut self, others: Vec<Self>) -> Self {
        self.others = others;
        self
    }

    /// Identities of all replicas.
    pub fn identities(&self) -> impl Iterator<Item = &Identity> {
        std::iter::once(&self.identity).chain(self.others.iter().map(|other| &other.identity))
    }

    /// How it ended; none while any replica runs. Of several ends the one that the others followed from counts.
    pub fn ended(&mut self) -> io::Result<Option<Exit>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?.map(exit_of);
        }
        let mut exits = vec![self.ended];
        for other in &mut self.others {
            exits.push(other.ended()?);
        }
        let bad = |exit: &Exit| exit.kind() != ExitKind::Done;
        if exits.iter().flatten().any(bad) {
            let since = *self.broken.get_or_insert_with(Instant::now);
            if since.elapsed() > REPLICAS_GRACE {
                self.signal(Signal::SIGKILL);
            }
        }
        let Some(exits) = exits.into_iter().collect::<Option<Vec<Exit>>>() else { return Ok(None) };
        let cause = exits.iter().find(|exit| bad(exit) && exit.kind() != ExitKind::PeerLost);
        Ok(cause.or_else(|| exits.iter().find(|exit| bad(exit))).or(exits.first()).copied())
    }

    /// Sends a signal to its whole group, and to the other replicas.
    pub fn signal(&self, signal: Signal) {
        if self.ended.is_none() {
            // An error means that the group is gone, which `ended` will tell.
            let _ = killpg(Pid::from_raw(self.identity.pid), signal);
        }
        self.others.iter().for_each(|other| other.signal(signal));
    }
}

fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, signal) => Exit::Signal(signal.unwrap_or(0)),
    }
}

/// Ends processes that an earlier `s3` left behind: asks, waits, then kills. Returns how many there were.
pub fn end_leftovers(leftovers: &[Identity], patience: Duration) -> usize {
    let alive: Vec<&Identity> = leftovers.iter().filter(|process| process.alive()).collect();
    let send = |signal| {
        for process in alive.iter().filter(|process| process.alive()) {
            // The group first; the process itself in case it made a group of its own.
            let _ = killpg(Pid::from_raw(process.pid), signal);
            let _ = kill(Pid::from_raw(process.pid), signal);
        }
    };
    let wait = |limit: Duration| {
        let start = Instant::now();
        while alive.iter().any(|process| process.alive()) && start.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    send(Signal::SIGTERM);
    wait(patience);
    send(Signal::SIGKILL);
    wait(Duration::from_secs(5));
    alive.len()
}

/// The folder of the worker programs: `S3_BIN_DIR`, else where `s3` itself lies.
pub fn binary_folder() -> io::Result<PathBuf> {
    if let Some(folder) = std::env::var_os("S3_BIN_DIR") {
        return Ok(folder.into());
    }
    let own = std::env::current_exe()?;
    Ok(own.parent().map(Path::to_owned).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn replicas_end_together_and_the_cause_counts() {
        let folder = tempfile::tempdir().unwrap();
        let start = |script: &str| {
            let args = ["-c".to_owned(), script.to_owned()];
            Process::start(Path::new("/bin/sh"), &args, &folder.path().join("log")).unwrap()
        };
        let end = |scripts: [&str; 3]| {
            let [first, second, third] = scripts.map(start);
            let mut process = first.with(vec![second, third]);
            assert_eq!(process.identities().count(), 3);
            let deadline = Instant::now() + Duration::from_secs(30);
            loop {
                if let Some(exit) = process.ended().unwrap() {
                    return exit;
                }
                assert!(Instant::now() < deadline, "they never end");
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        assert_eq!(end(["exit 0", "exit 0", "exit 0"]), Exit::Code(0));
        assert_eq!(end(["exit 76", "sleep 0.1; exit 65", "exit 76"]), Exit::Code(65));
        assert_eq!(end(["exit 76", "kill -9 $$", "exit 0"]), Exit::Signal(9));
        assert_eq!(end(["exit 0", "exit 76", "exit 0"]), Exit::Code(76));
    }

    #[test]
    fn a_process_is_known_by_pid_and_start_time() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut process = Process::start(Path::new("/bin/sleep"), &["30".into()], &log).unwrap();
        assert!(process.identity.alive());
        let other = Identity { started: process.identity.started + 1, ..process.identity.clone() };
        assert!(!other.alive(), "the same pid with another start time is another process");
        assert_eq!(end_leftovers(&[other, process.identity.clone()], Duration::from_secs(5)), 1);
        assert_eq!(process.ended().unwrap(), Some(Exit::Signal(15)));
    }
}
