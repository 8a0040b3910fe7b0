//! Checkpoints: trained tensors, optimiser state and position, published atomically.

use crate::identity::Identity;
use crate::train::{Curriculum, Policies, Watch};
use candle_core::Tensor;
use s3_artifacts::{
    ArtifactError, CHECKPOINT_KIND as KIND, DigestWriter, Head, Manifest, POLICY_FILE as POLICY, Published,
    checkpoints, load_manifest, publish_folder,
};
use s3_config::{CheckpointConfig, DTypeKind, TrainerConfig};
use s3_model::{AdamW, Decoder, TokenizerFile, load_tensors, save_tensors};
use s3_rollout::RolloutError;
use s3_telemetry::{CheckpointNote, Failure, last_words};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const FORMAT: u32 = 1;
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const EARLIER: &str = "earlier-";

/// The file of an earlier policy, which rounds under way are played with.
fn earlier(updates: u32, steps: u64) -> String {
    format!("{EARLIER}{updates:06}-{steps}.safetensors")
}

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Position {
    /// Steps done.
    pub step: u32,
    /// Digest over the results of all steps so far, in order.
    pub results: String,
    /// Figures kept for the summary.
    pub summary: Value,
    /// What guards and stop rules remember.
    #[serde(default)]
    pub watch: Watch,
    /// What a difficulty buffer remembers, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curriculum: Option<Curriculum>,
}

impl Position {
    /// Chains one step's results to those before.
    pub fn extend(&mut self, results: &str) {
        let mut writer = DigestWriter::default();
        writer.part("before", self.results.as_bytes()).part("step", results.as_bytes());
        self.results = writer.finish();
    }
}

/// The folder of a run's checkpoints.
///
/// Where several tries of the run may be alive, each publishes under names of its own and then moves HEAD, which
/// only the newest try can; what is not named by HEAD counts for nothing.
pub struct Checkpoints<'a> {
    config: &'a CheckpointConfig,
    identity: &'a Identity,
    head: Option<Head>,
}

impl<'a> Checkpoints<'a> {
    /// Takes the folder of a run.
    pub fn open(config: &'a TrainerConfig, identity: &'a Identity) -> Result<Self, Failure> {
        let (runtime, config) = (&config.runtime, &config.checkpoint);
        let head = match &runtime.attempt {
            Some(attempt) => Some(Head::claim(&config.dir, attempt.epoch).map_err(RolloutError::from)?),
            None => None,
        };
        Ok(Self { config, identity, head })
    }

    /// Whether a checkpoint is due after `step` of `steps`.
    pub fn due(config: &CheckpointConfig, step: u32, steps: u32) -> bool {
        step == steps || step.is_multiple_of(config.every.max(1))
    }

    /// An error once a newer try has taken over.
    pub fn check(&self) -> Result<(), Failure> {
        match &self.head {
            Some(head) => Ok(head.check().map(drop).map_err(RolloutError::from)?),
            None => Ok(()),
        }
    }

    /// Publishes a checkpoint and removes those beyond the number kept.
    pub fn save(
        &self,
        decoder: &Decoder,
        optimizer: &AdamW,
        position: &Position,
        policies: &Policies,
    ) -> Result<PathBuf, Failure> {
        let state = optimizer.state().map_err(RolloutError::from)?;
        self.save_tensors(decoder, &Whole { policy: decoder.trained_tensors(), state }, position, policies)
    }

    /// As [`Self::save`], of tensors that were brought together.
    pub fn save_tensors(
        &self,
        decoder: &Decoder,
        whole: &Whole,
        position: &Position,
        policies: &Policies,
    ) -> Result<PathBuf, Failure> {
        self.check()?;
        let mine = self.head.as_ref().map(|head| format!("-{}", head.tag())).unwrap_or_default();
        let name = format!("step-{:06}{mine}", position.step);
        let target = self.config.dir.join(&name);
        let staging = self.config.dir.join(format!(".staging-{:06}{mine}", position.step));
        Self::write(&staging, decoder, whole, position, policies).inspect_err(|_| {
            // a half-written folder helps nobody; the error that counts is the first
            let _ = std::fs::remove_dir_all(&staging);
        })?;
        let identity = json!({ "run": self.identity.0, "step": position.step });
        let manifest =
            publish_folder(&staging, &target, KIND, FORMAT, identity, json!({})).map_err(RolloutError::from)?;
        let digest = manifest.content_digest().map_err(RolloutError::from)?;
        match &self.head {
            Some(head) => {
                let published = Published { name, step: position.step, digest: digest.clone() };
                head.publish(|list| {
                    list.retain(|other| other.name != published.name);
                    list.insert(0, published.clone());
                    list.truncate(self.config.keep.max(1) as usize);
                })
                .map_err(RolloutError::from)?;
                self.sweep(head)?;
            }
            None => self.prune()?,
        }
        last_words().checkpoint(CheckpointNote { step: position.step, digest, path: target.clone() });
        Ok(target)
    }

    /// Removes what HEAD no longer names of this try and older ones; a newer try's folders are its own.
    fn sweep(&self, head: &Head) -> Result<(), Failure> {
        let named = head.check().map_err(RolloutError::from)?.published;
        let io = |e: std::io::Error| Failure::io(format!("{}: {e}", self.config.dir.display()));
        for entry in std::fs::read_dir(&self.config.dir).map_err(io)? {
            let name = entry.map_err(io)?.file_name().to_string_lossy().into_owned();
            let Some(tag) = name.trim_start_matches('.').splitn(3, '-').nth(2) else { continue };
            let old = tag == head.tag() || epoch_of(tag).is_some_and(|epoch| epoch < head.epoch());
            if old && named.iter().all(|published| published.name != name) {
                std::fs::remove_dir_all(self.config.dir.join(&name)).map_err(io)?;
            }
        }
        Ok(())
    }

    fn write(
        staging: &Path,
        decoder: &Decoder,
        whole: &Whole,
        position: &Position,
        policies: &Policies,
    ) -> Result<(), Failure> {
        let io = |source| {
            RolloutError::from(ArtifactError::Io { action: "write checkpoint", path: staging.to_owned(), source })
        };
        if staging.exists() {
            std::fs::remove_dir_all(staging).map_err(io)?;
        }
        std::fs::create_dir_all(staging).map_err(io)?;
        save_tensors(&staging.join(POLICY), &whole.policy).map_err(RolloutError::from)?;
        // Whoever evaluates the newest checkpoint makes an adapter, or a model, of it.
        decoder.save_trained_config(staging).map_err(RolloutError::from)?;
        save_tensors(&staging.join(OPTIMIZER), &whole.state).map_err(RolloutError::from)?;
        for (updates, steps, tensors) in policies.earlier(position.step) {
            save_tensors(&staging.join(earlier(updates, steps)), &tensors).map_err(RolloutError::from)?;
        }
        let state = serde_json::to_vec_pretty(position).map_err(Failure::internal)?;
        std::fs::write(staging.join(STATE), state).map_err(io)?;
        Ok(())
    }

    fn prune(&self) -> Result<(), Failure> {
        let all = checkpoints(&self.config.dir).map_err(RolloutError::from)?;
        for (_, folder) in all.into_iter().skip(self.config.keep.max(1) as usize) {
            std::fs::remove_dir_all(&folder).map_err(|e| Failure::io(format!("{}: {e}", folder.display())))?;
        }
        Ok(())
    }

    /// Restores the newest whole checkpoint of this run; none when there is none yet. A checkpoint of another
    /// run is refused.
    pub fn restore(
        &self,
        decoder: &mut Decoder,
        optimizer: &mut AdamW,
        policies: &mut Policies,
    ) -> Result<Option<Position>, Failure> {
        self.newest()?.map(|checkpoint| checkpoint.restore_all(decoder, optimizer, policies)).transpose()
    }

    /// What [`Self::restore`] would restore.
    pub fn newest(&self) -> Result<Option<Checkpoint>, Failure> {
        let Some(checkpoint) = newest(&self.config.dir)? else { return Ok(None) };
        self.identity.check(&checkpoint.run, &checkpoint.folder)?;
        Ok(Some(checkpoint))
    }

    /// Takes back every checkpoint of more steps: the training goes back.
    pub fn take_back(&self, step: u32) -> Result<(), Failure> {
        if let Some(head) = &self.head {
            head.publish(|list| list.retain(|published| published.step <= step)).map_err(RolloutError::from)?;
            return self.sweep(head);
        }
        for (_, folder) in
            checkpoints(&self.config.dir).map_err(RolloutError::from)?.iter().filter(|(of, _)| *of > step)
        {
            std::fs::remove_dir_all(folder).map_err(|e| Failure::io(format!("{}: {e}", folder.display())))?;
        }
        Ok(())
    }
}

/// All tensors of a run at a moment: trained ones, and the optimiser's state.
#[derive(Clone, Debug, Default)]
pub struct Whole {
    /// Trained tensors.
    pub policy: BTreeMap<String, Tensor>,
    /// As [`AdamW::state`] gives it.
    pub state: BTreeMap<String, Tensor>,
}

impl Whole {
    /// Puts tensors and optimiser state back; `place` is where they come from.
    pub fn lay_over(self, place: &Path, decoder: &mut Decoder, optimizer: &mut AdamW) -> Result<(), Failure> {
        lay_over(self.policy, place, decoder)?;
        Ok(optimizer.restore(&self.state, decoder).map_err(RolloutError::from)?)
    }
}

/// What another training has left to start from: the newest checkpoint of its folder, or the one that the folder is.
pub fn other(from: &Path, identity: &Identity) -> Result<Checkpoint, Failure> {
    let found = if from.join("manifest.json").exists() { Some(Checkpoint::at(from)?) } else { newest(from)? };
    let checkpoint = found
        .ok_or_else(|| Failure::unavailable(format!("{}: there is no checkpoint to start from", from.display())))?;
    // Its rewards, questions and schedule may be others; the model and what is trained of it may not.
    let same = |key: &str| checkpoint.run.get(key) == identity.0.get(key);
    if let Some(key) = ["model", "lora", "dtype"].into_iter().find(|key| !same(key)) {
        return Err(Failure::input(format!(
            "{}: the checkpoint is of another {key}; start from one of the same searcher",
            checkpoint.folder.display()
        )));
    }
    tracing::info!(folder = %checkpoint.folder.display(), step = checkpoint.step, "starts from another training");
    Ok(checkpoint)
}

/// A published checkpoint whose files are whole.
pub struct Checkpoint {
    folder: PathBuf,
    /// Steps done.
    pub step: u32,
    /// Identity of the run that made it.
    run: Value,
}

/// The newest whole checkpoint of a folder; damaged ones are passed over with a warning.
pub fn newest(dir: &Path) -> Result<Option<Checkpoint>, Failure> {
    before(dir, u32::MAX)
}

/// The newest whole checkpoint of fewer steps.
pub fn before(dir: &Path, limit: u32) -> Result<Option<Checkpoint>, Failure> {
    before_where(dir, limit, |_| true)
}

/// The newest whole checkpoint of fewer steps whose step is wanted.
pub fn before_where(dir: &Path, limit: u32, wanted: impl Fn(u32) -> bool) -> Result<Option<Checkpoint>, Failure> {
    let candidates = checkpoints(dir).map_err(RolloutError::from)?;
    for (step, folder) in candidates.into_iter().filter(|(step, _)| *step < limit && wanted(*step)) {
        match load_manifest(&folder, KIND) {
            Ok(manifest) => return Ok(Some(Checkpoint { folder, step, run: manifest.identity["run"].clone() })),
            Err(error) => tracing::warn!(%error, step, "checkpoint is damaged and passed over"),
        }
    }
    Ok(None)
}

/// The try in the tag of a folder's name.
fn epoch_of(tag: &str) -> Option<u32> {
    tag.strip_prefix('e')?.split_once('.')?.0.parse().ok()
}

impl Checkpoint {
    fn at(folder: &Path) -> Result<Self, Failure> {
        let manifest = load_manifest(folder, KIND).map_err(RolloutError::from)?;
        let step = manifest.identity["step"].as_u64().and_then(|step| u32::try_from(step).ok()).unwrap_or_default();
        Ok(Self { folder: folder.to_owned(), step, run: manifest.identity["run"].clone() })
    }

    /// Puts the earlier policies back that rounds under way are played with; `decoder` trains the same tensors.
    pub fn restore_policies(&self, decoder: &Decoder, policies: &mut Policies) -> Result<(), Failure> {
        for (updates, steps) in self.earlier()? {
            let mut policy = decoder.clone();
            self.lay_earlier(updates, steps, &mut policy)?;
            policies.keep(updates, &policy, steps);
        }
        Ok(())
    }

    /// Where the run stood.
    pub fn position(&self) -> Result<Position, Failure> {
        let folder = self.folder.display();
        let state = std::fs::read(self.folder.join(STATE)).map_err(|e| Failure::io(format!("{folder}: {e}")))?;
        serde_json::from_slice(&state).map_err(|e| Failure::input(format!("{folder}: {e}")))
    }

    /// Puts tensors, optimiser state and earlier policies back, and says where the run stood.
    pub fn restore_all(
        &self,
        decoder: &mut Decoder,
        optimizer: &mut AdamW,
        policies: &mut Policies,
    ) -> Result<Position, Failure> {
        self.restore(decoder, optimizer)?;
        self.restore_policies(decoder, policies)?;
        self.position()
    }

    /// Its own policy and the optimiser's state.
    pub fn whole(&self) -> Result<Whole, Failure> {
        let read = |name: &str| load_tensors(&self.folder.join(name)).map_err(RolloutError::from);
        Ok(Whole { policy: read(POLICY)?, state: read(OPTIMIZER)? })
    }

    /// Puts tensors and optimiser state back.
    pub fn restore(&self, decoder: &mut Decoder, optimizer: &mut AdamW) -> Result<(), Failure> {
        self.lay_over(decoder)?;
        optimizer.load(&self.folder.join(OPTIMIZER), decoder).map_err(RolloutError::from)?;
        Ok(())
    }

    /// The earlier policies that it holds: updates and optimiser steps behind each, in order.
    pub fn earlier(&self) -> Result<Vec<(u32, u64)>, Failure> {
        let io = |e: std::io::Error| Failure::io(format!("{}: {e}", self.folder.display()));
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(io)? {
            let name = entry.map_err(io)?.file_name().to_string_lossy().into_owned();
            let numbers =
                name.strip_prefix(EARLIER).and_then(|rest| rest.strip_suffix(".safetensors")?.split_once('-'));
            found.extend(numbers.and_then(|(updates, steps)| updates.parse().ok().zip(steps.parse().ok())));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Puts an earlier policy's tensors into a decoder that trains the same ones.
    pub fn lay_earlier(&self, updates: u32, steps: u64, decoder: &mut Decoder) -> Result<(), Failure> {
        let file = self.folder.join(earlier(updates, steps));
        lay_over(load_tensors(&file).map_err(RolloutError::from)?, &file, decoder)
    }

    /// Puts the checkpoint's tensors into a decoder that trains the same tensors; a value head that the decoder
    /// lacks is left out.
    pub fn lay_over(&self, decoder: &mut Decoder) -> Result<(), Failure> {
        let file = self.folder.join(POLICY);
        lay_over(load_tensors(&file).map_err(RolloutError::from)?, &file, decoder)
    }
}

/// Puts the tensors of `file` into a decoder that trains the same ones, a value head excepted.
pub fn lay_over(mut tensors: BTreeMap<String, Tensor>, file: &Path, decoder: &mut Decoder) -> Result<(), Failure> {
    let wanted = decoder.trained_tensors();
    tensors.retain(|name, _| wanted.contains_key(name) || !name.starts_with("value_head."));
    if wanted.keys().ne(tensors.keys()) {
        return Err(Failure::input(format!(
            "{}: the checkpoint's tensors are not those of the model; choose another checkpoint.dir",
            file.display()
        )));
    }
    for (name, tensor) in tensors {
        decoder.set_trained(&name, tensor).map_err(RolloutError::from)?;
    }
    Ok(())
}

/// Digest of what a run made: trained tensors, optimiser state and all results, in this order.
pub fn digest(decoder: &Decoder, optimizer: &AdamW, position: &Position) -> Result<String, Failure> {
    let state = optimizer.state().map_err(RolloutError::from)?;
    digest_tensors(&Whole { policy: decoder.trained_tensors(), state }, position)
}

/// As [`digest`], of tensors that were brought together.
pub fn digest_tensors(whole: &Whole, position: &Position) -> Result<String, Failure> {
    let mut writer = DigestWriter::default();
    for (kind, tensors) in [("policy", &whole.policy), ("optimizer", &whole.state)] {
        for (name, tensor) in tensors {
            writer.part(kind, name.as_bytes()).part("shape", format!("{:?}", tensor.dims()).as_bytes());
            writer.part("data", &bytes(tensor).map_err(RolloutError::from)?);
        }
    }
    writer.part("step", &position.step.to_le_bytes()).part("results", position.results.as_bytes());
    Ok(writer.finish())
}

pub(crate) fn bytes(tensor: &Tensor) -> Result<Vec<u8>, s3_model::ModelError> {
    let mut out = Vec::with_capacity(tensor.elem_count() * 4);
    let flat = tensor.flatten_all()?;
    if tensor.dtype() == candle_core::DType::I64 {
        out.extend(flat.to_vec1::<i64>()?.iter().flat_map(|x| x.to_le_bytes()));
    } else {
        out.extend(flat.to_dtype(candle_core::DType::F32)?.to_vec1::<f32>()?.iter().flat_map(|x| x.to_le_bytes()));
    }
    Ok(out)
}

/// Kind of a published adapter, or of all weights in the place of one.
pub const ADAPTER: &str = "adapter";

/// Sha256 of the tensors' file of a published searcher.
pub fn tensors_of(manifest: &Manifest) -> Option<&String> {
    ["adapter_model.safetensors", "model.safetensors"].into_iter().find_map(|name| manifest.files.get(name))
}

/// Writes what is trained, an adapter in PEFT's layout or a whole Hugging Face folder, as the job's export; returns the
/// sha256 of its tensors' file.
pub fn export_adapter(
    decoder: &Decoder,
    identity: &Identity,
    step: u32,
    config: &TrainerConfig,
) -> Result<String, Failure> {
    export_to(decoder, identity, step, config, &config.export)
}

/// Writes what is trained as a published folder; returns the sha256 of its tensors' file.
pub fn export_to(
    decoder: &Decoder,
    identity: &Identity,
    step: u32,
    config: &TrainerConfig,
    target: &Path,
) -> Result<String, Failure> {
    // Several tries may be alive.
    let epoch = config.runtime.attempt.as_ref().map(|attempt| format!("-{}", attempt.epoch)).unwrap_or_default();
    let tokenizer = TokenizerFile::of(&config.searcher).map_err(RolloutError::from)?;
    let identity = json!({ "run": identity.digest()?, "step": step });
    let compact = config.export_dtype == DTypeKind::Bf16;
    let manifest = publish_trained(decoder, &tokenizer, compact, target, &epoch, identity)?;
    Ok(tensors_of(&manifest).cloned().unwrap_or_default())
}

/// Publishes what is trained as `target`, made beside it in a folder whose name ends with `.staging` and `suffix`.
pub(crate) fn publish_trained(
    decoder: &Decoder,
    tokenizer: &TokenizerFile,
    compact: bool,
    target: &Path,
    suffix: &str,
    identity: Value,
) -> Result<Manifest, RolloutError> {
    let mut staging = target.as_os_str().to_owned();
    staging.push(format!(".staging{suffix}"));
    let staging = PathBuf::from(staging);
    if staging.exists() {
        std::fs::remove_dir_all(&staging).map_err(|source| ArtifactError::Io {
            action: "remove",
            path: staging.clone(),
            source,
        })?;
    }
    decoder.save_trained(&staging, tokenizer, compact)?;
    Ok(publish_folder(&staging, target, ADAPTER, FORMAT, identity, json!({}))?)
}
