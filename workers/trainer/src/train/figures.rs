//! Figures of a round of episodes.

use super::episodes::Played;
use s3_search::score::Verdict;
use std::collections::BTreeMap;

/// Means over the episodes whose value is known.
pub fn round_figures(played: &Played) -> BTreeMap<String, f64> {
    let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let outcomes = &played.outcomes;
    let value = |verdicts: Vec<Verdict>| mean(verdicts.into_iter().filter_map(Verdict::value).collect());
    let per_episode = |f: &dyn Fn(usize) -> f64| mean((0..played.episodes.len()).map(f).collect());
    let episodes = &played.episodes;
    let masked = outcomes.iter().filter(|outcome| outcome.reward.is_none()).count();
    let invalid = |at: usize| episodes[at].invalid_turns() as f64;
    BTreeMap::from([
        ("episodes".to_owned(), episodes.len() as f64),
        ("masked".to_owned(), masked as f64),
        ("reward".to_owned(), mean(outcomes.iter().filter_map(|outcome| outcome.reward).collect())),
        ("gain".to_owned(), mean(outcomes.iter().filter_map(s3_rollout::record::Outcome::gain).collect())),
        ("accuracy".to_owned(), value(outcomes.iter().map(|outcome| outcome.searcher.verdict).collect())),
        ("baselineAccuracy".to_owned(), value(outcomes.iter().map(|outcome| outcome.baseline.verdict).collect())),
        ("searches".to_owned(), per_episode(&|at| f64::from(episodes[at].searches))),
        ("selected".to_owned(), per_episode(&|at| episodes[at].selected.len() as f64)),
        ("invalidTurns".to_owned(), per_episode(&invalid)),
        ("turns".to_owned(), per_episode(&|at| episodes[at].turns.len() as f64)),
        ("actionTokens".to_owned(), episodes.iter().map(|episode| episode.logprobs.len()).sum::<usize>() as f64),
        ("contextTokens".to_owned(), episodes.iter().map(|episode| episode.tokens.len()).sum::<usize>() as f64),
        ("secondsEpisodes".to_owned(), played.seconds.0),
        ("secondsAnswers".to_owned(), played.seconds.1),
    ])
}

/// Shows a step's figures in the metric catalogue.
pub fn publish(step: u32, figures: &BTreeMap<String, f64>) {
    let metrics = s3_telemetry::metrics();
    let figure = |name: &str| figures.get(name).copied().unwrap_or_default();
    let none: [&str; 0] = [];
    metrics.training_step.with_label_values(&none).set(f64::from(step));
    metrics.training_reward.with_label_values(&none).set(figure("reward"));
    metrics.training_gain.with_label_values(&none).set(figure("gain"));
    metrics.training_accuracy.with_label_values(&["searcher"]).set(figure("accuracy"));
    metrics.training_accuracy.with_label_values(&["baseline"]).set(figure("baselineAccuracy"));
    metrics.training_grad_norm.with_label_values(&none).set(figure("gradNorm"));
    metrics.training_entropy.with_label_values(&none).set(figure("entropy"));
    metrics.training_mismatch.with_label_values(&none).set(figure("mismatchKl"));
    metrics.training_staleness.with_label_values(&none).set(figure("stalenessOptimizerSteps"));
    metrics.training_searches.with_label_values(&none).set(figure("searches"));
    if let Some(held) = figures.get("bufferQuestions") {
        metrics.training_buffer.with_label_values(&["held"]).set(*held);
        metrics.training_buffer.with_label_values(&["drawn"]).set(figure("bufferDrawn"));
    }
    metrics.training_masked.with_label_values(&["outage"]).inc_by(figure("masked") as u64);
    metrics.training_tokens.with_label_values(&["action"]).inc_by(figure("actionTokens") as u64);
    metrics.training_tokens.with_label_values(&["context"]).inc_by(figure("contextTokens") as u64);
    let phases = [
        ("rollout", "secondsEpisodes"),
        ("reward", "secondsAnswers"),
        ("wait", "secondsWaited"),
        ("update", "secondsUpdate"),
    ];
    for (phase, name) in phases {
        metrics.training_phase_seconds.with_label_values(&[phase]).observe(figure(name));
    }
}
