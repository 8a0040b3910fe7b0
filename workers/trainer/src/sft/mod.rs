//! Supervised warm starts of a low-rank adapter: the search protocol for a searcher, short answers for a small
//! generator.

mod answers;
mod evidence;
mod fit;
mod protocol;
mod queries;

pub use evidence::Evidence;

use crate::baseline::candidates;
use crate::checkpoint::{digest, export_adapter};
use crate::data::load_evidence;
use crate::identity::{Identity, Peers};
use crate::run::Run;
use crate::train::{claim, lock};
use s3_artifacts::{digest_json, write_atomic};
use s3_config::{Compatibility, SftTask};
use s3_rollout::RolloutError;
use s3_telemetry::{Failure, Outcome};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;

/// One supervised example; the tokens at `positions` are learned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Increasing indices into `tokens`.
    pub positions: Vec<usize>,
}

/// `s3-trainer sft`.
pub fn command(run: &Run) -> Result<Outcome, Failure> {
    let config = &run.config;
    if config.data.drop_baseline_solved {
        return Err(Failure::input("sft asks no baseline; set data.dropBaselineSolved: false"));
    }
    if config.sft.task == SftTask::Protocol && config.search.compatibility != Compatibility::None {
        return Err(Failure::input("sft teaches the default protocol; set search.compatibility: None"));
    }
    let _lock = lock(&config.runtime.state_dir)?;
    let retriever = run.retriever()?;
    let mut chosen = candidates(run)?;
    chosen.train.truncate(config.data.limit.unwrap_or(usize::MAX));
    let (mut decoder, codec) = run.searcher()?;
    let marked = if config.sft.evidence { load_evidence(&config.data.datasets)? } else { Evidence::new() };
    let mut more = json!({"sft": config.sft, "template": config.generator.template,
        "passageWords": config.generator.passage_words});
    if config.sft.evidence {
        more["evidence"] = json!(digest_json(&marked).map_err(RolloutError::from)?);
    }
    let peers = Peers { index: retriever.index_digest(), generator: None };
    let identity = Identity::of(run, "sft", &decoder, peers, [&chosen.train, &chosen.probe], more)?;
    let folder = config.runtime.state_dir.join("sft");
    claim(&folder, &identity)?;
    let stored = folder.join("traces.json");
    let traces = if let Some(traces) = load(&stored)? {
        traces
    } else {
        let traces = match config.sft.task {
            SftTask::Protocol => protocol::traces(run, &codec, &retriever, &marked, &chosen.train)?,
            SftTask::ShortAnswer => answers::traces(run, &codec, &retriever, &marked, &chosen.train)?,
        };
        let bytes = serde_json::to_vec(&traces).map_err(Failure::internal)?;
        write_atomic(&stored, &bytes).map_err(RolloutError::from)?;
        traces
    };
    if traces.is_empty() {
        return Err(Failure::input(
            "no trace could be made of the training questions; add questions or raise sft.queryTrials",
        ));
    }
    tracing::info!(questions = chosen.train.len(), traces = traces.len(), "traces");
    let (optimizer, position) = fit::fit(run, &identity, &mut decoder, &traces)?;
    let adapter = export_adapter(&decoder, &identity, position.step, config)?;
    let mut summary = position.summary.clone();
    if let Value::Object(summary) = &mut summary {
        summary.insert("questions".into(), json!(chosen.train.len()));
        summary.insert("traces".into(), json!(traces.len()));
        summary.insert("tracesDigest".into(), json!(digest_json(&traces).map_err(RolloutError::from)?));
        summary.insert("steps".into(), json!(position.step));
        summary.insert("adapterSha256".into(), json!(adapter));
    }
    Ok(Outcome { digest: digest(&decoder, &optimizer, &position)?, summary })
}

/// The traces of an earlier start of the same run.
fn load(path: &Path) -> Result<Option<Vec<Trace>>, Failure> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| Failure::input(format!("{}: {e}; remove it to make the traces again", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::io(format!("{}: {error}", path.display()))),
    }
}
