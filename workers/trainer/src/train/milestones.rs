//! Searchers of some steps, kept for evaluations of their own as long as the training's folder lives.
//!
//! A searcher is kept once the checkpoint of its step is safe, so whoever goes on from there finds it or makes it
//! again. One that stands stays as it is: an evaluation may be pinned to its digest.

use crate::checkpoint::{ADAPTER, export_to, tensors_of};
use crate::identity::Identity;
use s3_artifacts::load_manifest;
use s3_config::{MilestonesConfig, TrainerConfig, milestone_folder};
use s3_model::Decoder;
use s3_telemetry::{Failure, last_words};
use std::path::PathBuf;

/// The searchers that a training keeps.
pub struct Milestones<'a> {
    config: Option<&'a MilestonesConfig>,
    trainer: &'a TrainerConfig,
    identity: &'a Identity,
}

impl<'a> Milestones<'a> {
    /// Those of a run.
    pub fn of(trainer: &'a TrainerConfig, identity: &'a Identity) -> Self {
        Self { config: trainer.milestones.as_ref(), trainer, identity }
    }

    /// Whether the searcher of a step is kept.
    pub fn due(&self, step: u32) -> bool {
        step > 0 && self.config.is_some_and(|config| step.is_multiple_of(config.every.max(1)))
    }

    /// Keeps the searcher of a step, unless it is kept already, and tells whoever listens.
    pub fn keep(&self, decoder: &Decoder, step: u32) -> Result<(), Failure> {
        if !self.due(step) {
            return Ok(());
        }
        if let Some(sha256) = self.kept(step)? {
            last_words().milestone(step, &sha256);
            return Ok(());
        }
        let Some(target) = self.folder(step) else { return Ok(()) };
        let sha256 = export_to(decoder, self.identity, step, self.trainer, &target)?;
        last_words().milestone(step, &sha256);
        Ok(())
    }

    /// Tells of all that are kept up to a step.
    pub fn tell(&self, until: u32) -> Result<(), Failure> {
        for step in (1..=until).filter(|step| self.due(*step)) {
            if let Some(sha256) = self.kept(step)? {
                last_words().milestone(step, &sha256);
            }
        }
        Ok(())
    }

    /// Takes back those of later steps: the training has gone back, and will come by with another policy.
    pub fn take_back(&self, step: u32) -> Result<(), Failure> {
        last_words().milestones_until(step);
        for later in (step + 1..=self.trainer.steps).filter(|later| self.due(*later)) {
            let Some(folder) = self.folder(later).filter(|folder| folder.exists()) else { continue };
            std::fs::remove_dir_all(&folder).map_err(|e| Failure::io(format!("{}: {e}", folder.display())))?;
        }
        Ok(())
    }

    fn folder(&self, step: u32) -> Option<PathBuf> {
        Some(self.config?.dir.join(milestone_folder(step)))
    }

    /// Sha256 of the adapter of a step that this run has kept; a damaged one counts for nothing.
    fn kept(&self, step: u32) -> Result<Option<String>, Failure> {
        let Some(folder) = self.folder(step).filter(|folder| folder.exists()) else { return Ok(None) };
        match load_manifest(&folder, ADAPTER) {
            Ok(manifest) if manifest.identity["run"] == self.identity.digest()? => Ok(tensors_of(&manifest).cloned()),
            Ok(_) => Ok(None),
            Err(error) => {
                tracing::warn!(%error, step, "a kept searcher is damaged and made again");
                Ok(None)
            }
        }
    }
}
