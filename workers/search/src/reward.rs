//! From verdicts to the reward that an episode's action tokens share.

use crate::score::{Verdict, gbr};
use crate::script::qa_em;
use crate::types::Trajectory;
use s3_config::{RewardConfig, RewardKind};

/// The unshaped reward; a is the answer from the searcher's passages, z the baseline's. `None`
/// masks the sample: something it needs is not known.
pub fn reward(kind: RewardKind, a: Verdict, z: Verdict) -> Option<f64> {
    match kind {
        RewardKind::GainBeyondRag => gbr(a, z),
        RewardKind::ReferenceCode => Some(2.0 * a.value()? - z.value()?),
        RewardKind::GenerationAccuracy => a.value(),
    }
}

/// [`reward`] with the configured terms for unreadable turns and executed searches added. A
/// trajectory that infrastructure broke is masked whatever the verdicts say.
pub fn shaped(config: &RewardConfig, trajectory: &Trajectory, a: Verdict, z: Verdict) -> Option<f64> {
    if trajectory.failure().is_some() {
        return None;
    }
    Some(reward(config.kind, a, z)? + shaping(config, trajectory))
}

/// Search-R1's reward, with the same terms added: the exact match of the answer that the searcher gave itself.
pub fn own(config: &RewardConfig, trajectory: &Trajectory, answer: Option<&str>, golds: &[String]) -> Option<f64> {
    if trajectory.failure().is_some() {
        return None;
    }
    Some(qa_em::score(answer, golds, config.format_score) + shaping(config, trajectory))
}

fn shaping(config: &RewardConfig, trajectory: &Trajectory) -> f64 {
    config.invalid_turn * trajectory.invalid_turns() as f64 + config.search_cost * f64::from(trajectory.searches)
}
