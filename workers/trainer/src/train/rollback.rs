//! Going back to an earlier checkpoint because a guard's bound was passed.
//!
//! The order of writes makes it repeatable after a kill at any moment: later checkpoints go first, so that whoever
//! starts again comes past the same steps, from their journals, to the same decision; then the checkpoint that is gone
//! back to is published anew with the count of returns; only then the journals of the steps after it are set aside.

use super::milestones::Milestones;
use super::watch::ROLLBACKS;
use super::{Policies, Training};
use crate::checkpoint::{Checkpoints, Position, before_where};
use s3_artifacts::write_atomic;
use s3_model::{AdamW, Decoder};
use s3_rollout::RolloutError;
use s3_telemetry::Failure;
use std::path::Path;

impl Training<'_> {
    /// Goes back to the newest checkpoint before step `since`; none when that was done too often, or there is none.
    ///
    /// Only checkpoints of the schedule count, so that one that an interruption left changes nothing.
    pub(super) fn roll_back(
        &self,
        decoder: &mut Decoder,
        optimizer: &mut AdamW,
        policies: &mut Policies,
        checkpoints: Option<&Checkpoints<'_>>,
        from: &Position,
        since: u32,
    ) -> Result<Option<Position>, Failure> {
        let config = self.config();
        if from.watch.rollbacks >= ROLLBACKS {
            return Ok(None);
        }
        let milestones = Milestones::of(config, self.identity);
        let wanted = |step: u32| Checkpoints::due(&config.checkpoint, step, config.steps) || milestones.due(step);
        let find = || before_where(&config.checkpoint.dir, since, wanted);
        let mut earlier = Policies::new(config.rollout.staleness);
        let Some(mut position) = self.put_back(decoder, optimizer, &mut earlier, find)? else { return Ok(None) };
        *policies = earlier;
        position.watch.rollbacks = from.watch.rollbacks + 1;
        // It is told until the value is healthy again.
        position.watch.tripped.clone_from(&from.watch.tripped);
        position.watch.beyond.clear();
        self.once(|| {
            checkpoints.map_or(Ok(()), |checkpoints| checkpoints.take_back(position.step))?;
            milestones.take_back(position.step)
        })?;
        self.save(checkpoints, decoder, optimizer, &position, policies)?;
        self.once(|| self.set_aside(&position))?;
        tracing::warn!(from = from.step, to = position.step, returns = position.watch.rollbacks, "went back");
        Ok(Some(position))
    }

    /// Sets the journals of steps aside from which the training has gone back, if that is not done yet.
    pub(super) fn set_aside(&self, position: &Position) -> Result<(), Failure> {
        if position.watch.rollbacks == 0 {
            return Ok(());
        }
        let aside = self.folder.join(format!("rolled-back-{}", position.watch.rollbacks));
        let mark = aside.join("done");
        if mark.exists() {
            return Ok(());
        }
        let io = |path: &Path, error: std::io::Error| Failure::io(format!("{}: {error}", path.display()));
        std::fs::create_dir_all(&aside).map_err(|e| io(&aside, e))?;
        for entry in std::fs::read_dir(&self.folder).map_err(|e| io(&self.folder, e))? {
            let name = entry.map_err(|e| io(&self.folder, e))?.file_name();
            let text = name.to_string_lossy();
            // a journal, or what a replica kept of it
            let step = text.strip_prefix("step-").and_then(|rest| rest.split_once('.'));
            if step
                .map(|(digits, _)| digits)
                .and_then(|digits| digits.parse::<u32>().ok())
                .is_some_and(|step| step > position.step)
            {
                let target = aside.join(&name);
                std::fs::rename(self.folder.join(&name), &target).map_err(|e| io(&target, e))?;
            }
        }
        Ok(write_atomic(&mark, b"").map_err(RolloutError::from)?)
    }
}
