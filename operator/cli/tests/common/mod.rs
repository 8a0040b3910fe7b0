//! A folder with data, stand-in workers and a state, and `s3` running in it.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)] // shared by several test programs

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub const MANIFEST: &str = include_str!("../fixtures/run.yaml");
const WORKER: &str = include_str!("../fixtures/worker.py");
const CORPUS: &str = "{\"id\":\"0\",\"title\":\"Paris\",\"text\":\"Paris is the capital of France.\"}\n";

pub struct World {
    pub folder: tempfile::TempDir,
}

impl World {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = Self { folder };
        for name in ["bin", "data", "fake"] {
            std::fs::create_dir(world.path(name)).unwrap();
        }
        for name in ["s3-retriever", "s3-generator-gateway", "s3-trainer", "s3-evaluator"] {
            let path = world.path("bin").join(name);
            std::fs::write(&path, WORKER).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        for (name, text) in [("corpus.jsonl", CORPUS), ("model.gguf", "m"), ("train.jsonl", "a"), ("test.jsonl", "b")] {
            std::fs::write(world.path("data").join(name), text).unwrap();
        }
        world.manifest(MANIFEST);
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the manifest; `CORPUS` in it becomes the corpus's digest.
    pub fn manifest(&self, text: &str) {
        let digest = s3_artifacts::digest_bytes(CORPUS.as_bytes());
        std::fs::write(self.path("run.yaml"), text.replace("CORPUS", &digest)).unwrap();
    }

    /// Tells a stand-in worker what to do.
    pub fn control(&self, what: &str, component: &str, value: &str) {
        std::fs::write(self.path("fake").join(format!("{what}-{component}")), value).unwrap();
    }

    pub fn release(&self, what: &str, component: &str) {
        std::fs::remove_file(self.path("fake").join(format!("{what}-{component}"))).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_s3"));
        command
            .args(args)
            .current_dir(self.folder.path())
            .env("S3_BIN_DIR", self.path("bin"))
            .env("FAKE", self.path("fake"))
            .stdin(Stdio::null());
        command
    }

    pub fn s3(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    pub const RUN: [&str; 6] = ["run", "run.yaml", "--volume", "data=data", "--backoff", "0.05"];

    pub fn run(&self) -> Output {
        self.s3(&Self::RUN)
    }

    /// Starts a run in the background.
    pub fn start(&self, more: &[&str]) -> Child {
        let mut command = self.command(&Self::RUN);
        command.args(more).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Lines `NAME EVENT PID` of the stand-ins.
    pub fn events(&self) -> Vec<(String, String, i32)> {
        let text = std::fs::read_to_string(self.path("fake/events")).unwrap_or_default();
        text.lines()
            .map(|line| {
                let mut words = line.split(' ');
                let mut next = || words.next().unwrap().to_owned();
                (next(), next(), next().parse().unwrap())
            })
            .collect()
    }

    pub fn count(&self, component: &str, event: &str) -> usize {
        self.events().iter().filter(|(name, what, _)| name == component && what == event).count()
    }

    pub fn forget_events(&self) {
        std::fs::write(self.path("fake/events"), "").unwrap();
    }

    /// Waits until something is true.
    pub fn until(&self, what: &str, mut check: impl FnMut() -> bool) {
        let start = Instant::now();
        while !check() {
            assert!(start.elapsed() < Duration::from_secs(60), "waited in vain for {what}; events {:?}", self.events());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Pids of stand-ins that still run.
    pub fn alive(&self) -> Vec<i32> {
        let runs = |pid: &i32| {
            std::fs::read_to_string(format!("/proc/{pid}/stat"))
                .is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z')))
        };
        let mut pids: Vec<i32> = self.events().into_iter().map(|(_, _, pid)| pid).filter(runs).collect();
        pids.dedup();
        pids
    }
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn digest(output: &Output) -> String {
    let text = stdout(output);
    let last = text.lines().last().unwrap_or_default().to_owned();
    assert!(last.starts_with("digest ") && last.len() == 71, "last line {last:?}\n{}", stderr(output));
    last
}

/// The lines that say what is wrong.
pub fn errors(output: &Output) -> Vec<String> {
    stderr(output).lines().filter_map(|line| line.strip_prefix("error: ").map(str::to_owned)).collect()
}

pub fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
