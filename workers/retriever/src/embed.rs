//! Passages to vectors: computed shard by shard, or taken from a file after checking a sample.

use crate::build::stop_if_asked;
use crate::corpus::contents;
use crate::dense::DenseIndex;
use crate::dense::approximate::Reading;
use crate::dense::file::Kind;
use crate::dense::rows::{RowWriter, Rows};
use crate::error::{Result, RetrieverError};
use crate::flat;
use crate::index::{FAISS, VECTORS};
use crate::passages::PassageStore;
use crate::rank::Ranked;
use crate::team::{Others, Team};
use crate::vectors::{VectorFile, Vectors};
use half::f16;
use half::slice::HalfFloatSliceExt;
use s3_config::{DenseConfig, DenseKind, VectorsConfig};
use s3_model::encoder::{Encoder, EncoderSpec};
use s3_telemetry::{Progress, Shutdown};
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Passages per shard; on the CPU the most that a killed build computes again.
pub(crate) const SHARD: usize = 256;
/// Shards encoded together on a GPU, which is idle between calls.
const TOGETHER: usize = 64;
/// Between looks for a shard that another worker makes.
const WAIT: Duration = Duration::from_millis(200);
/// Below this a stored vector is not the encoder's.
const SAME: f64 = 0.9999;
/// A coded vector is looked for among so many,
const NEAREST: usize = 10;
/// and so many are found there.
const OWN: f64 = 0.9;

/// An encoder with the passage side's settings.
pub struct PassageEncoder {
    encoder: Encoder,
    prefix: String,
    /// Shards encoded together.
    together: usize,
}

impl PassageEncoder {
    /// sha256 of the encoder's weights and tokenizer; refuses weights other than the configured.
    pub fn identify(dense: &DenseConfig) -> Result<(String, String)> {
        encoder_files(&dense.encoder, dense.encoder_sha256.as_deref())
    }

    /// Loads the configured encoder.
    pub fn load(dense: &DenseConfig) -> Result<Self> {
        let spec = EncoderSpec { pooling: dense.pooling, max_tokens: dense.max_tokens };
        let device = s3_model::device(dense.device)?;
        let encoder = Encoder::load(&dense.encoder, &spec, &device)?;
        let together = if device.is_cpu() { 1 } else { TOGETHER };
        Ok(Self { encoder, prefix: dense.passage_prefix.clone(), together })
    }

    /// Elements of a vector.
    pub fn dimensions(&self) -> usize {
        self.encoder.dimensions()
    }

    /// Unit vectors of the passages at `positions`.
    pub fn encode(&self, store: &PassageStore, positions: impl IntoIterator<Item = usize>) -> Result<Vec<Vec<f32>>> {
        let texts = positions
            .into_iter()
            .map(|at| store.get(at).map(|it| self.text(&it.title, &it.text)))
            .collect::<Result<Vec<_>>>()?;
        self.encode_texts(&texts)
    }

    /// What of a passage is encoded.
    pub fn text(&self, title: &str, text: &str) -> String {
        format!("{}{}", self.prefix, contents(title, text))
    }

    /// Shards that are encoded together.
    pub(crate) fn together(&self) -> usize {
        self.together
    }

    /// Unit vectors of texts as they are.
    pub fn encode_texts(&self, texts: &[String]) -> Result<Vec<Vec<f32>>> {
        Ok(self.encoder.encode(texts)?)
    }
}

/// sha256 of `model.safetensors` and `tokenizer.json` of an encoder's folder.
pub fn encoder_files(folder: &Path, expected: Option<&str>) -> Result<(String, String)> {
    let digest = |name: &str| -> Result<String> {
        let path = folder.join(name);
        std::fs::metadata(&path).map_err(RetrieverError::open("encoder file", &path))?;
        if let Some(expected) = expected.filter(|_| name.ends_with(".safetensors")) {
            s3_artifacts::verify_file(&path, expected)?;
        }
        Ok(s3_artifacts::digest_file(&path)?)
    };
    Ok((digest("model.safetensors")?, digest("tokenizer.json")?))
}

/// The file of the shard that begins with the passage at `first`.
pub(crate) fn shard_path(shards: &Path, first: usize) -> PathBuf {
    shards.join(format!("{first:012}.shard"))
}

/// Keeps the vectors of the passages from `first` on as a shard.
pub(crate) fn keep_shard(shards: &Path, first: usize, rows: impl Iterator<Item = Vec<f32>>) -> Result<Vectors> {
    let rows: Vec<Vec<f32>> = rows.collect();
    let shard = Vectors::from_rows(&rows, rows.first().map_or(0, Vec::len));
    shard.write_shard(&shard_path(shards, first))?;
    Ok(shard)
}

/// Takes rows of vectors, in order.
pub type Sink<'a> = &'a mut dyn FnMut(&[f16]) -> Result<()>;

/// What making vectors needs.
pub struct Embedding<'a> {
    /// Text to vector.
    pub encoder: &'a PassageEncoder,
    /// The passages.
    pub store: &'a PassageStore,
    /// Where progress is shown.
    pub progress: &'a Progress,
    /// Asks to stop.
    pub shutdown: &'a Shutdown,
}

impl Embedding<'_> {
    /// Embeds every passage; finished shards in `shards` are taken over.
    pub fn compute(&self, shards: &Path, sink: Sink<'_>) -> Result<()> {
        let total = self.store.len();
        self.progress.phase("embed passages", total as u64);
        let dimensions = self.encoder.dimensions();
        for start in (0..total).step_by(SHARD * self.encoder.together) {
            let end = total.min(start + SHARD * self.encoder.together);
            let ranges = (start..end).step_by(SHARD).map(|first| first..end.min(first + SHARD));
            let path = |first: usize| shard_path(shards, first);
            let mut found: Vec<Option<Vectors>> = Vec::new();
            let mut missing = Vec::new();
            for range in ranges.clone() {
                found.push(Vectors::read_shard(&path(range.start), range.len(), dimensions));
                if found.last().is_some_and(Option::is_none) {
                    missing.push(range);
                }
            }
            if !missing.is_empty() {
                let fresh = self.encode_shards(shards, missing)?;
                let mut fresh = fresh.into_iter();
                for shard in found.iter_mut().filter(|shard| shard.is_none()) {
                    *shard = fresh.next();
                }
            }
            for (shard, range) in found.into_iter().flatten().zip(ranges) {
                sink(&shard.values)?;
                self.progress.done(range.end as u64);
            }
        }
        Ok(())
    }

    /// Encodes the passages of some shards and keeps them.
    fn encode_shards(&self, shards: &Path, missing: Vec<Range<usize>>) -> Result<Vec<Vectors>> {
        stop_if_asked(self.shutdown)?;
        let mut rows = self.encoder.encode(self.store, missing.iter().cloned().flatten())?.into_iter();
        missing.into_iter().map(|range| keep_shard(shards, range.start, rows.by_ref().take(range.len()))).collect()
    }

    /// Embeds the first worker's share and takes over what the others embed, waiting for it.
    pub fn compute_together(&self, shards: &Path, team: &Team, others: &mut Others, sink: Sink<'_>) -> Result<()> {
        let (total, dimensions) = (self.store.len(), self.encoder.dimensions());
        self.progress.phase("embed passages", total as u64);
        let all = || (0..total).step_by(SHARD).map(|first| first..total.min(first + SHARD));
        let read =
            |range: &Range<usize>| Vectors::read_shard(&shard_path(shards, range.start), range.len(), dimensions);
        let owner = |range: &Range<usize>| team.owner(range.start / SHARD);
        let own: Vec<Range<usize>> = all().filter(|range| owner(range) == team.worker).collect();
        let mut embedded = 0;
        for group in own.chunks(self.encoder.together) {
            let missing: Vec<Range<usize>> = group.iter().filter(|range| read(range).is_none()).cloned().collect();
            if !missing.is_empty() {
                self.encode_shards(shards, missing)?;
            }
            embedded += group.iter().map(Range::len).sum::<usize>() as u64;
            others.listen()?;
            self.progress.done(embedded + others.passages());
        }
        for range in all() {
            let shard = loop {
                if let Some(shard) = read(&range) {
                    break shard;
                }
                stop_if_asked(self.shutdown)?;
                if owner(&range) == team.worker {
                    // damaged since it was written
                    self.encode_shards(shards, vec![range.clone()])?;
                    continue;
                }
                others.listen()?;
                others.expect(owner(&range))?;
                self.progress.done((embedded + others.passages()).max(range.start as u64));
                std::thread::sleep(WAIT);
            };
            sink(&shard.values)?;
            self.progress.done((embedded + others.passages()).clamp(range.end as u64, total as u64));
        }
        Ok(())
    }

    /// Takes vectors from a file, after encoding a sample of the passages again.
    pub fn take(&self, file: &VectorsConfig, limited: bool, sink: Sink<'_>) -> Result<()> {
        std::fs::metadata(&file.path).map_err(RetrieverError::open("vectors file", &file.path))?;
        s3_artifacts::verify_file(&file.path, &file.sha256)?;
        let vectors = VectorFile::open(&file.path)?;
        let bad = |reason: String| Err(RetrieverError::content(&file.path, reason));
        if vectors.dimensions() != self.encoder.dimensions() {
            return bad(format!("{} dimensions, the encoder has {}", vectors.dimensions(), self.encoder.dimensions()));
        }
        // A limited corpus is the beginning of the whole one, and so are its vectors.
        let total = self.store.len();
        if vectors.len() < total || (vectors.len() > total && !limited) {
            return bad(format!("{} vectors for {total} passages; embed this corpus again", vectors.len()));
        }
        let row = |at: usize| vectors.rows(at..at + 1).to_f32_vec();
        self.verify(&file.path, &file.sha256, file.verify, &row)?;
        for first in (0..total).step_by(SHARD) {
            sink(&vectors.rows(first..total.min(first + SHARD)))?;
        }
        Ok(())
    }

    /// Takes the rows of a FAISS index of kind Flat into `rows`, after the same check; they stay f32.
    pub fn import(&self, file: &VectorsConfig, limited: bool, path: &Path) -> Result<()> {
        let bad = |reason: String| Err(RetrieverError::content(&file.path, reason));
        let mut reader = flat::Reader::open(&file.path, &file.parts)?;
        let shape = reader.shape();
        let total = self.store.len();
        if shape.dimensions != self.encoder.dimensions() {
            return bad(format!("{} dimensions, the encoder has {}", shape.dimensions, self.encoder.dimensions()));
        }
        if shape.rows < total || (shape.rows > total && !limited) {
            return bad(format!("{} vectors for {total} passages; name the corpus that it was built from", shape.rows));
        }
        self.progress.phase("import vectors", shape.rows as u64);
        let mut rows = RowWriter::create(path, Kind::Single, shape.dimensions)?;
        let (mut left, mut done) = (total * shape.dimensions, 0);
        loop {
            stop_if_asked(self.shutdown)?;
            let values = reader.next_rows()?;
            if values.is_empty() {
                break;
            }
            let kept = values.len().min(left);
            rows.single(&values[..kept])?;
            left -= kept;
            done += (values.len() / shape.dimensions) as u64;
            self.progress.done(done);
        }
        rows.finish()?;
        let digest = reader.finish()?;
        if digest != file.sha256.to_ascii_lowercase() {
            return bad(format!("sha256 of all parts is {digest}, expected {}; fetch them again", file.sha256));
        }
        let rows = Rows::open(path)?;
        self.verify(&file.path, &file.sha256, file.verify, &|at| rows.row(at))
    }

    /// Takes a FAISS index of any kind, in parts, into `folder`: its vectors as FAISS gives them back and, for
    /// [`DenseKind::Imported`], the index itself. Where it codes its vectors, their least cosine with the encoder's.
    pub fn import_any(
        &self,
        file: &VectorsConfig,
        kind: DenseKind,
        limit: Option<u64>,
        folder: &Path,
    ) -> Result<Option<f64>> {
        let bad = |reason: String| Err(RetrieverError::content(&file.path, reason));
        self.progress.phase("join parts", 0);
        let joined = folder.join(FAISS);
        let digest = flat::join(&file.path, &file.parts, &joined)?;
        if digest != file.sha256.to_ascii_lowercase() {
            return bad(format!("sha256 of all parts is {digest}, expected {}; fetch them again", file.sha256));
        }
        let mut reading = Reading::open(&joined)?;
        let (count, dimensions) = reading.shape();
        let total = self.store.len() as u64;
        if dimensions != self.encoder.dimensions() {
            return bad(format!("{dimensions} dimensions, the encoder has {}", self.encoder.dimensions()));
        }
        let kept = kind == DenseKind::Imported;
        if limit.is_some() && kept {
            return bad("an index cannot be imported for a part of its corpus; leave corpus.limit out".to_owned());
        }
        if count != total && !(limit.is_some() && count > total) {
            return bad(format!("{count} vectors for {total} passages; name the corpus that it was built from"));
        }
        self.progress.phase("import vectors", count);
        let path = folder.join(VECTORS);
        let mut rows = RowWriter::create(&path, Kind::Single, dimensions)?;
        let (stop, mut done) = (|| self.shutdown.requested(), 0);
        while done < total as usize {
            let values = reading.next_rows(&stop)?;
            let fresh = (values.len() / dimensions).min(total as usize - done);
            rows.single(&values[..fresh * dimensions])?;
            done += fresh;
            self.progress.done(done as u64);
        }
        rows.finish()?;
        drop(reading);
        if !kept {
            std::fs::remove_file(&joined).map_err(RetrieverError::io("remove", &joined))?;
        }
        self.fidelity(file, &path)
    }

    /// Encodes a sample again. Vectors that were not coded must be the encoder's; those that were must be nearest to
    /// their own passages.
    fn fidelity(&self, file: &VectorsConfig, path: &Path) -> Result<Option<f64>> {
        let index = DenseIndex::new(Rows::open(path)?);
        let sample = sample(&file.sha256, self.store.len(), file.verify);
        self.progress.phase("verify vectors", sample.len() as u64);
        let fresh = self.encoder.encode(self.store, sample.iter().copied())?;
        let cosines = sample.iter().zip(&fresh).map(|(at, fresh)| cosine(fresh, &index.vector(*at)));
        let least = cosines.fold(1.0, |least, cosine| if cosine.is_nan() { -1.0 } else { cosine.min(least) });
        if least >= SAME {
            return Ok(None);
        }
        let found = index.search(&fresh, NEAREST, true)?;
        // as good as the last of the nearest: passages that say the same have the same vector
        let own = |((at, fresh), found): &((&usize, &Vec<f32>), &Vec<Ranked>)| {
            let own = index.search_among(fresh, 1, &[**at as u32]);
            own.first().zip(found.last()).is_some_and(|(own, last)| own.score >= last.score)
        };
        let share = sample.iter().zip(&fresh).zip(&found).filter(own).count() as f64 / sample.len().max(1) as f64;
        if share < OWN {
            let reason = format!(
                "of {} passages encoded again {:.0} % are among the {NEAREST} nearest to their own vectors, and the                  least cosine is {least:.4}; import it with its own corpus, encoder and prefixes",
                sample.len(),
                100.0 * share
            );
            return Err(RetrieverError::content(&file.path, reason));
        }
        tracing::info!(checked = sample.len(), least_cosine = least, nearest = share, "coded vectors verified");
        Ok(Some(least))
    }

    /// Encodes `count` passages again, drawn by `seed`, and compares them with their `row`.
    pub fn verify(&self, path: &Path, seed: &str, count: usize, row: &dyn Fn(usize) -> Vec<f32>) -> Result<()> {
        let sample = sample(seed, self.store.len(), count);
        self.progress.phase("verify vectors", sample.len() as u64);
        let mut worst = (1.0, 0);
        for (done, &at) in sample.iter().enumerate() {
            stop_if_asked(self.shutdown)?;
            let fresh = self.encoder.encode(self.store, [at])?;
            let cosine = cosine(&fresh[0], &row(at));
            if cosine.is_nan() || cosine < SAME {
                let reason = format!(
                    "the vector of passage {at} has cosine {cosine:.6} with the encoder's own, below {SAME}; \
                     embed the corpus again with this encoder and these settings"
                );
                return Err(RetrieverError::content(path, reason));
            }
            if cosine < worst.0 {
                worst = (cosine, at);
            }
            self.progress.done(done as u64 + 1);
        }
        tracing::info!(checked = sample.len(), worst_cosine = worst.0, passage = worst.1, "vectors verified");
        Ok(())
    }
}

/// `count` different positions below `n`, drawn by the file's digest: another file, another sample.
fn sample(seed: &str, n: usize, count: usize) -> Vec<usize> {
    let mut chosen = BTreeSet::new();
    let mut counter = 0u64;
    while chosen.len() < count.min(n) {
        let digest = s3_artifacts::digest_bytes(format!("{seed} {counter}").as_bytes());
        let word = u64::from_str_radix(&digest[..15], 16).unwrap_or_default();
        chosen.insert((word % n as u64) as usize);
        counter += 1;
    }
    chosen.into_iter().collect()
}

pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_distinct_and_follow_the_file() {
        let first = sample("ab", 1000, 64);
        assert_eq!((first.len(), &first), (64, &sample("ab", 1000, 64)));
        assert_ne!(first, sample("ac", 1000, 64));
        assert_eq!(sample("ab", 5, 64), [0, 1, 2, 3, 4]);
    }
}
