//! What every worker process is told about its surroundings.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Where a worker keeps its state and reports. Nothing here enters a digest.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Runtime {
    /// The component's name, for logs and metrics (`quickstart-train`).
    pub name: String,
    /// Folder for journals and intermediate results; survives restarts.
    pub state_dir: PathBuf,
    /// File that holds the latest progress (JSON, replaced atomically).
    #[serde(default)]
    pub progress: Option<PathBuf>,
    /// File written once at the end with the outcome (JSON): digest and summary.
    #[serde(default)]
    pub result: Option<PathBuf>,
    /// Address of `/metrics`, `/healthz`, `/readyz`; none serves nothing.
    #[serde(default)]
    pub admin: Option<SocketAddr>,
    /// Worker threads for arithmetic; none means all cores.
    #[serde(default)]
    pub threads: Option<usize>,
}

/// How to reach another worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Endpoint {
    /// gRPC address, `http://host:port`.
    pub address: String,
    /// Deadline of one attempt, milliseconds.
    #[serde(default = "default_deadline")]
    pub deadline_ms: u64,
    /// Attempts before the call counts as failed.
    #[serde(default = "default_attempts")]
    pub attempts: u32,
}

fn default_deadline() -> u64 {
    600_000
}
fn default_attempts() -> u32 {
    6
}

/// Whether runs repeat to the bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Determinism {
    /// Same seed, same run digest: batches are cut by a schedule, never by arrival.
    #[default]
    Bitwise,
    /// Batches may follow arrival; mismatch is measured instead of excluded.
    Relaxed,
}

/// Processor that runs a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// CUDA when this build has it and a GPU is present, else CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The first CUDA device; an error when there is none.
    Cuda,
}
