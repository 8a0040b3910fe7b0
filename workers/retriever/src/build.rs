//! `s3-retriever build`: corpus to published index.
//!
//! Everything is staged in `<output>/.staging-<digest>` and published by one rename; embeddings, the dear
//! part, are kept by shard in the state folder until then. Killed anywhere and run again, the build goes on
//! and ends with the same index; run again after its end, it changes nothing. Of several workers ([`crate::team`]) the
//! first one does all this and the others only embed.

use crate::analyzer;
use crate::assist::{Share, assist};
use crate::audit::audit;
use crate::corpus::{corpus_digest, read_corpus};
use crate::dense::file::Kind;
use crate::dense::rows::RowWriter;
use crate::dense_leg::dense_leg;
use crate::embed::{Embedding, PassageEncoder, Sink};
use crate::error::{Result, RetrieverError};
use crate::flat::{is_faiss, is_flat};
use crate::index::{
    Answerable, DenseIdentity, Facts, Identity, KIND, LEXICAL, LexicalIdentity, VECTORS, Verified, format,
    index_digest, set_current, verify,
};
use crate::lexical::LexicalBuilder;
use crate::passages::{PassageStore, PassageWriter};
use crate::team::{Pulse, Team};
use s3_config::{DenseConfig, DenseKind, IndexBuildConfig};
use s3_telemetry::{Outcome, Progress, Shutdown};
use serde_json::json;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Start of the names of folders that are being filled.
const STAGING: &str = ".staging-";

/// Builds, publishes and points `CURRENT` at the index; returns its digest and summary.
pub fn build(config: &IndexBuildConfig, progress: &Progress, shutdown: &Shutdown) -> Result<Outcome> {
    check(config)?;
    let team = Team::join(&config.runtime)?;
    if team.is_some() {
        check_together(config)?;
    }
    let pulse = team.as_ref().filter(|team| !team.is_first()).map(Team::pulse).transpose()?;
    progress.phase("check inputs", 0);
    let encoder = config.dense.as_ref().map(PassageEncoder::identify).transpose()?;
    let corpus = corpus_digest(&config.corpus)?;
    let identity = Identity {
        corpus_sha256: corpus.clone(),
        limit: config.corpus.limit,
        lexical: config.lexical.as_ref().map(|lexical| LexicalIdentity {
            analyzer: analyzer::VERSION.to_owned(),
            k1: lexical.k1,
            b: lexical.b,
        }),
        dense: config.dense.as_ref().zip(encoder).map(|(dense, files)| dense_identity(dense, files)),
    };
    let digest = index_digest(&identity)?;
    if let (Some(team), Some(pulse)) = (&team, &pulse) {
        pulse.builds(&digest);
        return assisted(config, team, pulse, &identity, digest, progress, shutdown);
    }
    let _lock = lock(&config.output)?;
    let verified = match verify(&config.output, &digest) {
        Ok(present) => {
            tracing::info!(%digest, "an index of these inputs is published already");
            set_current(&config.output, &digest)?;
            present
        }
        Err(_) => publish(config, team.as_ref(), &identity, &digest, progress, shutdown)?,
    };
    // here and not when publishing: a build killed between the two finds its index published
    clear_shards(&shards(config, &digest))?;
    let answerable = audits(config, &digest, &verified.facts.answerable, progress)?;
    outcome(digest, &verified, &answerable)
}

/// The part of a worker that is not the first. Where the index is published already, nothing is left to do.
fn assisted(
    config: &IndexBuildConfig,
    team: &Team,
    pulse: &Pulse,
    identity: &Identity,
    digest: String,
    progress: &Progress,
    shutdown: &Shutdown,
) -> Result<Outcome> {
    let summary = |embedded: u64| json!({"worker": team.worker, "workers": team.workers, "embedded": embedded});
    let folder = shards(config, &digest);
    // shards are there until the index is published, all at once gone after it
    let published = || !folder.exists() && verify(&config.output, &digest).is_ok();
    let Some(dense) = config.dense.as_ref().filter(|_| !published()) else {
        return Ok(Outcome { summary: summary(0), digest });
    };
    let share = Share {
        team,
        pulse,
        corpus: &config.corpus,
        corpus_sha256: &identity.corpus_sha256,
        dense,
        shards: &folder,
        published: &published,
    };
    let embedded = assist(&share, progress, shutdown)?;
    Ok(Outcome { summary: summary(embedded), digest })
}

/// What several workers share is the embedding.
fn check_together(config: &IndexBuildConfig) -> Result<()> {
    match &config.dense {
        Some(dense) if dense.vectors.is_none() => Ok(()),
        _ => Err(RetrieverError::Invalid(
            "several workers share the embedding of passages; configure dense without vectors, or one worker"
                .to_owned(),
        )),
    }
}

/// Where the embeddings of an unfinished build are kept.
fn shards(config: &IndexBuildConfig, digest: &str) -> PathBuf {
    config.runtime.state_dir.join(format!("vectors-{digest}"))
}

/// Removes the shards of a published index; whoever looks for one finds all of them or none.
fn clear_shards(shards: &Path) -> Result<()> {
    let aside = shards.with_extension("done");
    if aside.exists() {
        std::fs::remove_dir_all(&aside).map_err(RetrieverError::io("clear", &aside))?;
    }
    if shards.exists() {
        std::fs::rename(shards, &aside).map_err(RetrieverError::io("move aside", shards))?;
        std::fs::remove_dir_all(&aside).map_err(RetrieverError::io("clear", &aside))?;
    }
    Ok(())
}

fn check(config: &IndexBuildConfig) -> Result<()> {
    let invalid = |reason: &str| Err(RetrieverError::Invalid(reason.to_owned()));
    if config.lexical.is_none() && config.dense.is_none() {
        return invalid("neither lexical nor dense is configured: an index needs at least one of them");
    }
    if let Some(lexical) = &config.lexical
        && !(lexical.k1 >= 0.0 && lexical.k1.is_finite() && (0.0..=1.0).contains(&lexical.b))
    {
        return invalid("lexical: k1 must be at least 0 and b between 0 and 1");
    }
    if let Some(dense) = &config.dense
        && !(dense.index.recall_target > 0.0 && dense.index.recall_target <= 1.0)
    {
        return invalid("dense.index.recallTarget must be above 0 and at most 1");
    }
    if config.corpus.limit == Some(0) {
        return invalid("corpus.limit is 0: leave it out to index the whole corpus");
    }
    Ok(())
}

fn dense_identity(dense: &DenseConfig, (encoder_sha256, tokenizer_sha256): (String, String)) -> DenseIdentity {
    DenseIdentity {
        kind: dense.index.kind,
        recall_target: (dense.index.kind != DenseKind::Flat).then_some(dense.index.recall_target),
        structure: dense.index.structure.clone(),
        encoder_sha256,
        tokenizer_sha256,
        pooling: dense.pooling,
        query_prefix: dense.query_prefix.clone(),
        passage_prefix: dense.passage_prefix.clone(),
        max_tokens: dense.max_tokens,
        vectors_sha256: dense.vectors.as_ref().map(|vectors| vectors.sha256.to_ascii_lowercase()),
    }
}

/// Two builds in one output would remove each other's staging; the lock goes with the process.
fn lock(output: &Path) -> Result<File> {
    std::fs::create_dir_all(output).map_err(RetrieverError::io("create folder", output))?;
    let path = output.join(".lock");
    let file = File::create(&path).map_err(RetrieverError::io("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(RetrieverError::Busy(output.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => Err(RetrieverError::Io { action: "lock", path, source }),
    }
}

fn publish(
    config: &IndexBuildConfig,
    team: Option<&Team>,
    identity: &Identity,
    digest: &str,
    progress: &Progress,
    shutdown: &Shutdown,
) -> Result<Verified> {
    let staging = config.output.join(format!("{STAGING}{digest}"));
    clear_staging(&config.output)?;
    std::fs::create_dir_all(&staging).map_err(RetrieverError::io("create folder", &staging))?;

    // before the passages are indexed, so that who comes meanwhile is heard
    let mut others = team.map(|team| team.others(digest)).transpose()?;
    progress.phase("index passages", 0);
    let mut writer = PassageWriter::create(&staging)?;
    let mut lexical = config.lexical.as_ref().map(|parameters| (LexicalBuilder::default(), parameters));
    let mut read = 0;
    let passages = read_corpus(&config.corpus, &identity.corpus_sha256, |entry| {
        if let Some((builder, _)) = &mut lexical {
            builder.add(&entry.title, &entry.text);
        }
        read += 1;
        if read % 1000 == 0 {
            progress.done(read);
            stop_if_asked(shutdown)?;
        }
        writer.add(&entry)
    })?;
    writer.finish(&staging)?;
    progress.done(passages);
    if let Some((builder, parameters)) = lexical {
        let path = staging.join(LEXICAL);
        std::fs::write(&path, builder.finish(parameters).to_bytes()).map_err(RetrieverError::io("write", &path))?;
    }
    let store = PassageStore::open(&staging)?;
    let (mut leg, mut fidelity) = (None, None);
    if let Some(dense) = &config.dense {
        let encoder = PassageEncoder::load(dense)?;
        let embedding = Embedding { encoder: &encoder, store: &store, progress, shutdown };
        let (path, limited) = (staging.join(VECTORS), config.corpus.limit.is_some());
        match &dense.vectors {
            Some(file) if is_flat(&file.path)? => embedding.import(file, limited, &path)?,
            Some(file) if is_faiss(&file.path)? => {
                fidelity = embedding.import_any(file, dense.index.kind, config.corpus.limit, &staging)?;
            }
            given => {
                let mut rows = RowWriter::create(&path, Kind::Half, encoder.dimensions())?;
                let sink: Sink<'_> = &mut |part| rows.half(part);
                match given {
                    Some(file) => embedding.take(file, limited, sink)?,
                    None => match (team, &mut others) {
                        (Some(team), Some(others)) => {
                            embedding.compute_together(&shards(config, digest), team, others, sink)?;
                        }
                        _ => embedding.compute(&shards(config, digest), sink)?,
                    },
                }
                rows.finish()?;
            }
        }
        leg = Some(dense_leg(&staging, dense, &embedding)?);
    }
    progress.phase("audit questions", config.audit.len() as u64);
    let answerable = config.audit.iter().map(|dataset| audit(dataset, &store, &[])).collect::<Result<Vec<_>>>()?;
    drop(store);
    stop_if_asked(shutdown)?;

    progress.phase("publish", 0);
    let facts = Facts {
        passages,
        dimensions: leg.as_ref().map_or(0, |leg| leg.dimensions),
        oversample: leg.as_ref().and_then(|leg| leg.oversample),
        effort: leg.as_ref().and_then(|leg| leg.effort),
        fidelity,
        recall: leg.as_ref().map(|leg| leg.recall),
        bytes: folder_bytes(&staging)?,
        answerable,
    };
    let as_json = |error: serde_json::Error| RetrieverError::Internal(error.to_string());
    let target = config.output.join(digest);
    s3_artifacts::publish_folder(
        &staging,
        &target,
        KIND,
        format(identity),
        serde_json::to_value(identity).map_err(as_json)?,
        serde_json::to_value(&facts).map_err(as_json)?,
    )?;
    set_current(&config.output, digest)?;
    verify(&config.output, digest)
}

/// Removes what killed builds, of this or of other inputs, left behind; the lock is held.
fn clear_staging(output: &Path) -> Result<()> {
    for entry in std::fs::read_dir(output).map_err(RetrieverError::io("list", output))? {
        let entry = entry.map_err(RetrieverError::io("list", output))?;
        if entry.file_name().as_encoded_bytes().starts_with(STAGING.as_bytes()) {
            let path = entry.path();
            std::fs::remove_dir_all(&path).map_err(RetrieverError::io("clear", &path))?;
        }
    }
    Ok(())
}

pub(crate) fn stop_if_asked(shutdown: &Shutdown) -> Result<()> {
    if shutdown.requested() { Err(RetrieverError::Interrupted) } else { Ok(()) }
}

fn folder_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).map_err(RetrieverError::io("list", folder))? {
        let metadata = entry.and_then(|entry| entry.metadata()).map_err(RetrieverError::io("list", folder))?;
        bytes += metadata.len();
    }
    Ok(bytes)
}

/// The configured audits, from the manifest where it has them: a dataset may be added after the build.
fn audits(
    config: &IndexBuildConfig,
    digest: &str,
    known: &[Answerable],
    progress: &Progress,
) -> Result<Vec<Answerable>> {
    progress.phase("audit questions", config.audit.len() as u64);
    let store = PassageStore::open(&config.output.join(digest))?;
    let results = config.audit.iter().map(|dataset| audit(dataset, &store, known)).collect();
    progress.done(config.audit.len() as u64);
    results
}

fn outcome(digest: String, verified: &Verified, answerable: &[Answerable]) -> Result<Outcome> {
    let facts = &verified.facts;
    let datasets: serde_json::Map<String, serde_json::Value> = answerable
        .iter()
        .map(|found| {
            let fraction = found.answerable as f64 / found.questions.max(1) as f64;
            let entry = json!({"questions": found.questions, "answerable": found.answerable, "fraction": fraction});
            (found.dataset.clone(), entry)
        })
        .collect();
    let summary = json!({
        "passages": facts.passages,
        "dimensions": facts.dimensions,
        "recall": facts.recall,
        "oversample": facts.oversample,
        "effort": facts.effort,
        "bytes": facts.bytes,
        "contentDigest": verified.manifest.content_digest()?,
        "answerable": datasets,
    });
    Ok(Outcome { digest, summary })
}
