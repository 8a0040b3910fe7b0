//! What every worker of a build does that is not the first: it reads the corpus as a stream and embeds its share.

use crate::build::stop_if_asked;
use crate::corpus::{Entry, read_corpus};
use crate::embed::{PassageEncoder, SHARD, keep_shard, shard_path};
use crate::error::{Result, RetrieverError};
use crate::team::{Pulse, Team};
use crate::vectors::Vectors;
use s3_config::{CorpusConfig, DenseConfig};
use s3_telemetry::{Progress, Shutdown};
use std::path::Path;

/// Passages between looks whether to stop.
const LOOK: u64 = 1000;

/// What the share is made of.
pub struct Share<'a> {
    /// This worker among all.
    pub team: &'a Team,
    /// By which the first one hears of it.
    pub pulse: &'a Pulse,
    /// The corpus.
    pub corpus: &'a CorpusConfig,
    /// Its sha256.
    pub corpus_sha256: &'a str,
    /// How passages become vectors.
    pub dense: &'a DenseConfig,
    /// Where shards are kept.
    pub shards: &'a Path,
    /// Whether the index is published: then nothing is missing any more.
    pub published: &'a dyn Fn() -> bool,
}

/// One shard's texts.
struct Texts {
    first: usize,
    texts: Vec<String>,
}

struct Assistant<'a> {
    share: &'a Share<'a>,
    encoder: PassageEncoder,
    progress: &'a Progress,
    shutdown: &'a Shutdown,
    /// The passage that comes next.
    at: usize,
    /// The shard that is being read, where it is this worker's.
    reading: Option<Texts>,
    missing: Vec<Texts>,
    embedded: u64,
    published: bool,
}

/// Embeds the share; finished shards are taken over. Returns the number of its passages.
pub fn assist(share: &Share<'_>, progress: &Progress, shutdown: &Shutdown) -> Result<u64> {
    progress.phase("embed passages", 0);
    let encoder = PassageEncoder::load(share.dense)?;
    let mut assistant = Assistant {
        share,
        encoder,
        progress,
        shutdown,
        at: 0,
        reading: None,
        missing: Vec::new(),
        embedded: 0,
        published: false,
    };
    read_corpus(share.corpus, share.corpus_sha256, |entry| assistant.take(&entry))?;
    assistant.end_shard()?;
    assistant.embed()?;
    Ok(assistant.embedded)
}

impl Assistant<'_> {
    fn take(&mut self, entry: &Entry) -> Result<()> {
        if (self.at as u64).is_multiple_of(LOOK) {
            stop_if_asked(self.shutdown)?;
        }
        if self.at.is_multiple_of(SHARD) {
            self.end_shard()?;
            if self.share.team.owner(self.at / SHARD) == self.share.team.worker && !self.published {
                self.reading = Some(Texts { first: self.at, texts: Vec::with_capacity(SHARD) });
            }
        }
        if let Some(reading) = &mut self.reading {
            reading.texts.push(self.encoder.text(&entry.title, &entry.text));
        }
        self.at += 1;
        Ok(())
    }

    /// A shard is read: it is there already, or it is to be embedded.
    fn end_shard(&mut self) -> Result<()> {
        let Some(read) = self.reading.take() else { return Ok(()) };
        let path = shard_path(self.share.shards, read.first);
        if Vectors::read_shard(&path, read.texts.len(), self.encoder.dimensions()).is_some() {
            self.count(read.texts.len());
            return Ok(());
        }
        self.missing.push(read);
        if self.missing.len() >= self.encoder.together() { self.embed() } else { Ok(()) }
    }

    fn embed(&mut self) -> Result<()> {
        let missing = std::mem::take(&mut self.missing);
        // shards go once the index is published, and only then: while one of this worker's is missing it cannot be
        self.published = self.published || (!missing.is_empty() && (self.share.published)());
        if missing.is_empty() || self.published {
            return Ok(());
        }
        stop_if_asked(self.shutdown)?;
        let texts: Vec<String> = missing.iter().flat_map(|shard| shard.texts.iter().cloned()).collect();
        let mut rows = self.encoder.encode_texts(&texts)?.into_iter();
        for shard in missing {
            let kept = keep_shard(self.share.shards, shard.first, rows.by_ref().take(shard.texts.len()))?;
            if kept.len() != shard.texts.len() {
                return Err(RetrieverError::Internal("the encoder gave another number of vectors".to_owned()));
            }
            self.count(shard.texts.len());
        }
        Ok(())
    }

    fn count(&mut self, passages: usize) {
        self.embedded += passages as u64;
        self.share.pulse.encoded(self.embedded);
        self.progress.done(self.embedded);
    }
}
