//! One call of `s3-retriever`, with its progress shown while it runs.

use crate::process::{binary_folder, complaint};
use crate::progress::Display;
use crate::text::Problem;
use s3_telemetry::{Failure, read_progress};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

const BINARY: &str = "s3-retriever";
/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// A folder for the configurations of one call; it goes with this.
pub struct Call {
    folder: tempfile::TempDir,
}

impl Call {
    pub fn new() -> Result<Self, Problem> {
        let folder =
            tempfile::tempdir().map_err(|error| Problem::io("create a folder in", &std::env::temp_dir(), &error))?;
        Ok(Self { folder })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a configuration.
    pub fn save(&self, name: &str, config: &impl Serialize) -> Result<PathBuf, Problem> {
        let path = self.path(name);
        let text = serde_json::to_string(config).map_err(Problem::internal)?;
        std::fs::write(&path, text).map_err(|error| Problem::io("write", &path, &error))?;
        Ok(path)
    }

    /// Where the worker's configuration tells it to report.
    pub fn progress(&self) -> PathBuf {
        self.path("progress.json")
    }

    /// Runs the worker to its end and returns what it printed.
    /// Ctrl-C reaches it, too: it saves what is done, and its end is this one's.
    pub fn run(&self, name: &str, arguments: &[&std::ffi::OsStr]) -> Result<String, Problem> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Problem::internal)?;
        runtime.block_on(run(name, arguments, &self.progress()))
    }
}

async fn run(name: &str, arguments: &[&std::ffi::OsStr], progress: &Path) -> Result<String, Problem> {
    // from here on Ctrl-C does not end this process before the worker
    let _shutdown = s3_telemetry::Shutdown::listen().map_err(Problem::internal)?;
    let binary = binary_folder().map_err(Problem::internal)?.join(BINARY);
    let mut child = Command::new(&binary)
        .args(arguments)
        .env("RUST_LOG", std::env::var_os("RUST_LOG").unwrap_or_else(|| "warn".into()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Problem::io("start", &binary, &error))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let reading = tokio::spawn(async move {
        let mut text = String::new();
        if let Some(mut stdout) = stdout {
            stdout.read_to_string(&mut text).await?;
        }
        std::io::Result::Ok(text)
    });
    let complaining = tokio::spawn(async move {
        let mut text = Vec::new();
        if let Some(mut stderr) = stderr {
            stderr.read_to_end(&mut text).await?;
        }
        std::io::Result::Ok(String::from_utf8_lossy(&text).into_owned())
    });
    let mut display = Display::new(std::iter::once(name));
    display.start(name);
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.map_err(Problem::internal)?,
            () = tokio::time::sleep(LOOK) => {
                // not there before the first report
                if let Some(report) = read_progress(progress) {
                    display.update(name, &report);
                }
            }
        }
    };
    display.clear();
    let printed = reading.await.map_err(Problem::internal)?.map_err(Problem::internal)?;
    let said = complaining.await.map_err(Problem::internal)?.map_err(Problem::internal)?;
    if status.success() {
        return Ok(printed);
    }
    let (class, line) = complaint(status, &said);
    Err(Problem(vec![Failure::new(class, line.unwrap_or("s3-retriever ended without saying why"))]))
}
