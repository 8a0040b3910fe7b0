//! The folder in which a run keeps everything, and the records in it.

use crate::process::Identity;
use crate::text::Problem;
use nix::fcntl::{Flock, FlockArg};
use s3_artifacts::write_atomic;
use s3_plan::Finished;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Paths and records of one state folder.
#[derive(Clone, Debug)]
pub struct State {
    root: PathBuf,
}

/// Held while `s3` works on a state folder.
pub struct Lock(#[allow(dead_code)] Flock<File>); // the lock lives as long as the file is open

impl State {
    /// Opens the folder, creating it.
    pub fn open(root: &Path) -> Result<Self, Problem> {
        fs::create_dir_all(root).map_err(|e| Problem::io("state folder", root, &e))?;
        let root = root.canonicalize().map_err(|e| Problem::io("state folder", root, &e))?;
        Ok(Self { root })
    }

    /// Opens a folder that an earlier `s3 run` made.
    pub fn existing(root: &Path) -> Result<Self, Problem> {
        if !root.join("run.json").is_file() {
            return Err(Problem::input(format!(
                "{} holds no run; start one with `s3 run FILE --state {}` or name another folder with --state",
                root.display(),
                root.display()
            )));
        }
        Self::open(root)
    }

    /// Takes the folder for this process.
    pub fn lock(&self) -> Result<Lock, Problem> {
        let path = self.root.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| Problem::io("lock", &path, &e))?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map(Lock).map_err(|(_, error)| {
            if error == nix::errno::Errno::EWOULDBLOCK {
                Problem::input(format!(
                    "another s3 works on {}; wait for it, end it, or choose another folder with --state",
                    self.root.display()
                ))
            } else {
                Problem::io("lock", &path, &error.into())
            }
        })
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A component's own folder.
    pub fn work(&self, component: &str) -> PathBuf {
        self.root.join("work").join(component)
    }

    /// Where a component reports how far it is.
    pub fn progress(&self, component: &str) -> PathBuf {
        self.work(component).join("progress.json")
    }

    /// Where a job leaves its outcome.
    pub fn result(&self, component: &str) -> PathBuf {
        self.work(component).join("result.json")
    }

    /// A component's configuration as its worker reads it.
    pub fn config(&self, component: &str) -> PathBuf {
        self.root.join("configs").join(format!("{component}.yaml"))
    }

    /// A component's output.
    pub fn log(&self, component: &str) -> PathBuf {
        self.root.join("logs").join(format!("{component}.log"))
    }

    /// Status of a resource, as a cluster would hold it.
    pub fn status(&self, kind: &str, name: &str) -> PathBuf {
        self.root.join("status").join(format!("{kind}-{name}.yaml"))
    }

    /// Folder of superseded work.
    pub fn archive(&self) -> PathBuf {
        self.root.join("archive")
    }

    /// Reads a record; none when it was never written. A broken record is refused, not overwritten.
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Problem> {
        let path = self.root.join(name);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Problem::io("read", &path, &error)),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            Problem::input(format!("{}: {error}; remove the file to start without it", path.display()))
        })
    }

    /// Replaces a record atomically.
    pub fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), Problem> {
        let path = self.root.join(name);
        let text = serde_json::to_vec_pretty(value).map_err(Problem::internal)?;
        write_atomic(&path, &text).map_err(Problem::artifact)
    }

    /// Finished jobs by component.
    pub fn finished(&self) -> Result<BTreeMap<String, Finished>, Problem> {
        Ok(self.read("finished.json")?.unwrap_or_default())
    }

    /// Processes that a run recorded as its own.
    pub fn processes(&self) -> Result<BTreeMap<String, Identity>, Problem> {
        Ok(self.read("processes.json")?.unwrap_or_default())
    }

    /// Where a secret's value is kept.
    pub fn secret(&self, name: &str, key: &str) -> PathBuf {
        self.root.join("secrets").join(name).join(key)
    }

    /// Writes a secret's value where only this user reads it.
    pub fn write_secret(&self, name: &str, key: &str, value: &[u8]) -> Result<PathBuf, Problem> {
        use std::io::Write;
        let folder = self.root.join("secrets").join(name);
        let path = self.secret(name, key);
        let io = |e| Problem::io("secret", &path, &e);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(io)?;
        let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&path).map_err(io)?;
        // An existing file keeps its mode when opened.
        file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(io)?;
        file.write_all(value).map_err(io)?;
        Ok(path)
    }
}
