//! When a training ends before its last step, and what counts as a collapsing policy: pure functions from the figures
//! of steps and probes to a decision. What they remember stands in the position, and so in every checkpoint.

use s3_config::{GuardAction, GuardConfig, GuardMetric, StopConfig};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Returns of a training to an earlier checkpoint at most; then it pauses.
pub const ROLLBACKS: u32 = 3;

/// What is remembered from step to step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Watch {
    /// The highest gain of a probe so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best: Option<f64>,
    /// The last probe's gain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<f64>,
    /// Probes since the best one.
    pub without: u32,
    /// Steps in a row beyond a guard's bound, by metric.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub beyond: BTreeMap<GuardMetric, u32>,
    /// Guards that have spoken and whose value is not within its bounds again: what they say.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tripped: BTreeMap<GuardMetric, String>,
    /// Returns to an earlier checkpoint so far.
    pub rollbacks: u32,
}

/// A guard's verdict after a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Trip {
    /// What is done.
    pub action: GuardAction,
    /// What is said.
    pub message: String,
    /// The first step of the row beyond the bound.
    pub since: u32,
}

impl Watch {
    /// Takes the gain of a probe.
    pub fn probed(&mut self, gain: f64) {
        self.last = Some(gain);
        if self.best.is_none_or(|best| gain > best) {
            (self.best, self.without) = (Some(gain), 0);
        } else {
            self.without += 1;
        }
    }

    /// Why training is done before its last step, if it is.
    pub fn stops(&self, rule: &StopConfig) -> Option<String> {
        let last = self.last?;
        if let Some(target) = rule.target_gain.filter(|target| last >= *target) {
            return Some(format!("the held-out gain {last:.4} has reached the target {target}"));
        }
        let patience = rule.patience.filter(|patience| self.without >= *patience)?;
        let best = self.best.unwrap_or(last);
        Some(format!("{patience} probes without a higher held-out gain than {best:.4}"))
    }

    /// Takes the figures of a step; the gravest of the guards that trip with it.
    pub fn stepped(&mut self, step: u32, figures: &BTreeMap<String, f64>, guards: &[GuardConfig]) -> Option<Trip> {
        let mut gravest: Option<Trip> = None;
        for guard in guards {
            let Some(value) = measured(guard.metric, figures) else { continue };
            let low = guard.min.is_some_and(|min| value < min);
            let high = guard.max.is_some_and(|max| value > max);
            if !low && !high && !value.is_nan() {
                self.beyond.remove(&guard.metric);
                self.tripped.remove(&guard.metric);
                continue;
            }
            let count = self.beyond.entry(guard.metric).or_default();
            *count += 1;
            if *count < guard.steps.max(1) {
                continue;
            }
            let since = step + 1 - *count;
            // It speaks again after as many steps.
            *count = 0;
            let bound = match (low, guard.min, guard.max) {
                (true, Some(min), _) => format!("below {min}"),
                (_, _, Some(max)) if high => format!("above {max}"),
                _ => "not a number".to_owned(),
            };
            let message = format!("{} is {value:.4} at step {step}, {bound} since step {since}", guard.metric.words());
            self.tripped.insert(guard.metric, message.clone());
            let trip = Trip { action: guard.action, message, since };
            if gravest.as_ref().is_none_or(|other| other.action < trip.action) {
                gravest = Some(trip);
            }
        }
        gravest
    }

    /// What guards say now.
    pub fn says(&self) -> Option<String> {
        let all: Vec<&str> = self.tripped.values().map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

/// The value that a guard looks at; none where the step has none.
fn measured(metric: GuardMetric, figures: &BTreeMap<String, f64>) -> Option<f64> {
    let figure = |name: &str| figures.get(name).copied();
    match metric {
        GuardMetric::Entropy => figure("entropy"),
        GuardMetric::FormatRate => {
            let (invalid, turns) = (figure("invalidTurns")?, figure("turns")?);
            (turns > 0.0).then(|| 1.0 - invalid / turns)
        }
        GuardMetric::SearchesPerQuestion => figure("searches"),
        GuardMetric::MismatchKl => figure("mismatchKl"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn probes(gains: &[f64]) -> Watch {
        let mut watch = Watch::default();
        for gain in gains {
            watch.probed(*gain);
        }
        watch
    }

    fn guard(metric: GuardMetric, min: Option<f64>, max: Option<f64>, steps: u32, action: GuardAction) -> GuardConfig {
        GuardConfig { metric, min, max, steps, action }
    }

    #[test]
    fn it_ends_at_the_target_or_when_patience_is_over() {
        let target = StopConfig { target_gain: Some(0.1), patience: None };
        assert_eq!(Watch::default().stops(&target), None, "without a probe nothing is known");
        assert!(probes(&[-0.1, 0.05]).stops(&target).is_none());
        assert!(probes(&[-0.1, 0.1]).stops(&target).unwrap().contains("reached the target 0.1"));
        assert!(probes(&[0.2, 0.05]).stops(&target).is_none(), "the last probe counts, not a lucky one");
        let patience = StopConfig { target_gain: None, patience: Some(2) };
        for (gains, ends) in [
            (vec![0.1], false),
            (vec![0.1, 0.05], false),
            (vec![0.1, 0.05, 0.1], true),
            (vec![0.1, 0.05, 0.2, 0.1], false),
            (vec![0.1, 0.05, 0.2, 0.1, 0.15], true),
        ] {
            assert_eq!(probes(&gains).stops(&patience).is_some(), ends, "{gains:?}");
        }
        let both = StopConfig { target_gain: Some(0.5), patience: Some(1) };
        assert!(probes(&[0.1, 0.1]).stops(&both).unwrap().contains("1 probes without"));
    }

    #[test]
    fn a_guard_speaks_after_so_many_steps_in_a_row_and_again_after_as_many() {
        let guards = [guard(GuardMetric::Entropy, Some(0.5), None, 2, GuardAction::Warn)];
        let mut watch = Watch::default();
        let mut see = |step: u32, entropy: f64| {
            let trip = watch.stepped(step, &BTreeMap::from([("entropy".to_owned(), entropy)]), &guards);
            (trip.map(|trip| trip.since), watch.says().is_some())
        };
        assert_eq!(see(1, 0.4), (None, false));
        assert_eq!(see(2, 0.6), (None, false), "the row is broken");
        assert_eq!(see(3, 0.4), (None, false));
        assert_eq!(see(4, f64::NAN), (Some(3), true), "what is no number is beyond every bound");
        assert_eq!(see(5, 0.4), (None, true));
        assert_eq!(see(6, 0.4), (Some(5), true));
        assert_eq!(see(7, 0.5), (None, false), "the bound itself is healthy");
    }

    #[test]
    fn every_metric_has_its_value_and_the_gravest_action_wins() {
        let figures: BTreeMap<String, f64> =
            [("entropy", 1.0), ("invalidTurns", 1.0), ("turns", 4.0), ("searches", 0.0), ("mismatchKl", 0.2)]
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect();
        let of = |metric| measured(metric, &figures);
        assert_eq!(of(GuardMetric::Entropy), Some(1.0));
        assert_eq!(of(GuardMetric::FormatRate), Some(0.75));
        assert_eq!(of(GuardMetric::SearchesPerQuestion), Some(0.0));
        assert_eq!(of(GuardMetric::MismatchKl), Some(0.2));
        assert_eq!(measured(GuardMetric::FormatRate, &BTreeMap::new()), None);
        let guards = [
            guard(GuardMetric::SearchesPerQuestion, Some(0.1), None, 1, GuardAction::Pause),
            guard(GuardMetric::FormatRate, Some(0.9), None, 1, GuardAction::Rollback),
            guard(GuardMetric::MismatchKl, None, Some(0.1), 1, GuardAction::Warn),
        ];
        let mut watch = Watch::default();
        let trip = watch.stepped(9, &figures, &guards).unwrap();
        assert_eq!((trip.action, trip.since), (GuardAction::Pause, 9));
        assert_eq!(watch.tripped.len(), 3, "all of them are told");
        assert!(watch.stepped(10, &BTreeMap::new(), &guards).is_none(), "a step without figures says nothing");
    }
}
