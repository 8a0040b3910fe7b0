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
    /// File for the last words (JSON, at most 4,096 bytes): outcome or failure. Written at every end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub termination_message: Option<PathBuf>,
    /// Which try of a job this process is; none where one process at a time is certain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<AttemptConfig>,
    /// The operator that is told about progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<OperatorConfig>,
    /// The other replicas; none works alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<TeamConfig>,
}

/// The replicas that work on one job together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TeamConfig {
    /// This replica, from 0.
    pub rank: u32,
    /// `host:port` of every replica, in order; empty when all ranks are in this process.
    pub members: Vec<String>,
    /// Ranks of each replica, one for each of its GPUs; those beyond the first take the ports after a member's.
    pub local: u32,
    /// File with a word that only the replicas know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// How long replicas wait for each other at the start, seconds.
    pub together_seconds: u64,
    /// Silence after which a replica counts as lost, seconds.
    pub silence_seconds: u64,
}

impl Default for TeamConfig {
    fn default() -> Self {
        Self { rank: 0, members: Vec::new(), local: 1, token_file: None, together_seconds: 600, silence_seconds: 60 }
    }
}

/// One replica of one try of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AttemptConfig {
    /// Number of the try; nothing that an older one does counts any more.
    pub epoch: u32,
    /// This replica, from 0.
    #[serde(default)]
    pub rank: u32,
    /// Replicas in all.
    #[serde(default = "one")]
    pub replicas: u32,
}

fn one() -> u32 {
    1
}

/// How to reach the operator's `Progress` service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OperatorConfig {
    /// gRPC address, `http://host:port`.
    pub address: String,
    /// File with the token that is sent along, read again for each report because it is renewed.
    pub token_file: PathBuf,
    /// uid of the resource that is worked for; audience of the token.
    pub uid: String,
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
    /// What is shown to a worker that asks its callers for certificates; TLS is spoken then, whatever the address says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<crate::ClientTls>,
}

impl Default for Endpoint {
    fn default() -> Self {
        Self { address: String::new(), deadline_ms: default_deadline(), attempts: default_attempts(), tls: None }
    }
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
