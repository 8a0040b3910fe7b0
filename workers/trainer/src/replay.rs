//! `s3-trainer replay`: one episode of a finished step again.
//!
//! Log-probabilities, reward, advantages and loss follow from the step's journal and the policy before its update;
//! that policy is the newest checkpoint before the step, on which the steps between are applied again from their
//! journals. What comes out is shown beside what was stored. Nothing is asked of other workers, nothing is written.

use crate::checkpoint::before;
use crate::run::Run;
use crate::train::{Again, Updater, needs_critic, reference, rewarded, round_again};
use s3_artifacts::digest_json;
use s3_config::TrainerConfig;
use s3_model::{AdamW, Decoder, Team};
use s3_rollout::record::{EpisodeRecord, Outcome as Graded, StepRecord, read_training};
use s3_rollout::{RolloutError, Scored, policy_of, question_key};
use s3_search::score::gen_acc;
use s3_telemetry::{Failure, Outcome};
use serde_json::json;
use std::collections::BTreeMap;
use std::str::FromStr;

/// Which episode: `STEP/DATASET/ID/SAMPLE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpisodeName {
    step: u32,
    /// Dataset and id.
    question: String,
    sample: u32,
}

impl FromStr for EpisodeName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} names no episode; write STEP/DATASET/ID/SAMPLE, as 3/nq-dev/nq-dev-17/0");
        let (step, rest) = text.split_once('/').ok_or_else(wrong)?;
        let (question, sample) = rest.rsplit_once('/').ok_or_else(wrong)?;
        let (step, sample) = (step.parse().map_err(|_| wrong())?, sample.parse().map_err(|_| wrong())?);
        if step == 0 || !question.contains('/') {
            return Err(wrong());
        }
        Ok(Self { step, question: question.to_owned(), sample })
    }
}

/// Replays the episode; the report is printed, the summary holds the same numbers.
pub fn command(run: &Run, wanted: &EpisodeName) -> Result<Outcome, Failure> {
    let config = &run.config;
    let steps = read_training(&config.runtime.state_dir.join("training"))?;
    let steps: BTreeMap<u32, StepRecord> = steps.into_iter().map(|step| (step.step, step)).collect();
    let (record, at) = find(&steps, wanted)?;

    let (mut decoder, _codec) = run.searcher()?;
    let reference = reference(config, &decoder);
    if needs_critic(&config.algorithm) {
        decoder.attach_value_head().map_err(RolloutError::from)?;
    }
    let mut optimizer = AdamW::new(&config.optimizer);
    let policy = policy_of(wanted.step, config.rollout.staleness);
    let (start, mut player) = start_from(config, wanted.step, policy, &mut decoder, &mut optimizer)?;
    let team = Team::alone();
    let updater = Updater { config, reference: reference.as_ref(), shutdown: &run.link.shutdown, team: &team };
    run.progress.phase("apply steps again", u64::from(wanted.step - start - 1));
    for step in start + 1..wanted.step {
        let Some(record) = finished(&steps, step) else {
            return Err(Failure::input(format!("the journal of step {step} is missing; the policy after it is lost")));
        };
        updater.update(&mut decoder, &mut optimizer, &round_again(record)?)?;
        if step == policy {
            player = Some(decoder.clone());
        }
        run.progress.done(u64::from(step - start));
    }

    let played = round_again(record)?;
    let (episode, outcome) = (&played.episodes[at], &played.outcomes[at]);
    let gone = || Failure::input(format!("the policy after {policy} updates, which played the episode, is lost"));
    let Again { logprobs, advantage, loss } = updater.again(&decoder, &player.ok_or_else(gone)?, &played, at)?;
    let differences: Vec<f64> =
        logprobs.iter().zip(&episode.logprobs).map(|(new, old)| f64::from((new - old).abs())).collect();
    let largest = (0..differences.len()).max_by(|a, b| differences[*a].total_cmp(&differences[*b]));
    let mean = differences.iter().sum::<f64>() / differences.len().max(1) as f64;
    let reward = rewarded_again(config, episode, outcome);
    let figures = updater.update(&mut decoder, &mut optimizer, &played)?;

    let mut text = vec![format!(
        "episode      {}, sample {}, step {}: {} action tokens of {}, {} searches, {:?}\nquestion     {}\n",
        wanted.question,
        wanted.sample,
        wanted.step,
        episode.logprobs.len(),
        episode.tokens.len(),
        episode.searches,
        episode.stop,
        episode.question.question,
    )];
    for turn in &episode.turns {
        text.push(format!("wrote        {}\n", turn.text.split_whitespace().collect::<Vec<_>>().join(" ")));
    }
    text.push(format!(
        "answer       {} ({:?}; the baseline's: {:?})\npolicy       {}, {} steps applied again{}\n",
        outcome.searcher.answer.as_deref().unwrap_or("none"),
        outcome.searcher.verdict,
        outcome.baseline.verdict,
        if start == 0 { "as it began".to_owned() } else { format!("checkpoint of step {start}") },
        wanted.step - start - 1,
        if policy + 1 == wanted.step { String::new() } else { format!("; played by that after {policy} updates") },
    ));
    if let Some(token) = largest {
        text.push(format!(
            "log-probs    mean difference {mean:.1e}, largest {:.1e} at action token {token}: stored {:.6}, again {:.6}\n",
            differences[token], episode.logprobs[token], logprobs[token],
        ));
    }
    let number = |value: Option<f64>| value.map_or_else(|| "masked".to_owned(), |value| format!("{value:.4}"));
    text.push(format!("reward       stored {}, again {}\n", number(outcome.reward), number(reward)));
    text.push(match (advantage.first(), loss) {
        (Some(first), Some(loss)) => {
            let (low, high) = advantage.iter().fold((*first, *first), |(low, high), a| (low.min(*a), high.max(*a)));
            format!("advantage    {low:.6} to {high:.6}\nloss         {loss:.3e} of the optimiser batch's\n")
        }
        _ => "advantage    none: the episode is masked or was filtered out\n".to_owned(),
    });
    let mut compared = serde_json::Map::new();
    for (name, again) in &figures {
        if let Some(stored) = record.figures.get(name) {
            text.push(format!(
                "{name:<22} stored {stored:<14.6e} again {again:<14.6e} difference {:.1e}\n",
                again - stored
            ));
            compared.insert(name.clone(), json!([stored, again]));
        }
    }
    print!("{}", text.concat());
    let summary = json!({
        "actionTokens": episode.logprobs.len(),
        "meanDifference": mean,
        "largestDifference": largest.map_or(0.0, |token| differences[token]),
        "reward": [outcome.reward, reward],
        "advantage": advantage,
        "loss": loss,
        "figures": compared,
    });
    Ok(Outcome { digest: digest_json(&summary).map_err(RolloutError::from)?, summary })
}

/// Puts back the newest checkpoint before `step`: its step, and the policy after `policy` updates where it holds it.
fn start_from(
    config: &TrainerConfig,
    step: u32,
    policy: u32,
    decoder: &mut Decoder,
    optimizer: &mut AdamW,
) -> Result<(u32, Option<Decoder>), Failure> {
    let Some(checkpoint) = before(&config.checkpoint.dir, step)? else {
        return Ok((0, (policy == 0).then(|| decoder.clone())));
    };
    checkpoint.restore(decoder, optimizer)?;
    if checkpoint.step == policy {
        return Ok((checkpoint.step, Some(decoder.clone())));
    }
    let Some((updates, steps)) = checkpoint.earlier()?.into_iter().find(|(updates, _)| *updates == policy) else {
        return Ok((checkpoint.step, None));
    };
    let mut earlier = decoder.clone();
    checkpoint.lay_earlier(updates, steps, &mut earlier)?;
    Ok((checkpoint.step, Some(earlier)))
}

/// A step whose update is done.
fn finished(steps: &BTreeMap<u32, StepRecord>, step: u32) -> Option<&StepRecord> {
    steps.get(&step).filter(|record| !record.figures.is_empty())
}

/// The reward by the verdicts that the stored answers have now.
fn rewarded_again(config: &TrainerConfig, episode: &EpisodeRecord, outcome: &Graded) -> Option<f64> {
    let limit = config.generator.max_answer_tokens as usize;
    let again = |scored: &Scored| match &scored.answer {
        Some(answer) if !config.answers_itself() => {
            let verdict = gen_acc(answer, &episode.question.answers, limit, scored.judge);
            Scored { verdict, ..scored.clone() }
        }
        _ => scored.clone(),
    };
    rewarded(config, episode, &again(&outcome.searcher), &again(&outcome.baseline))
}

/// The episode's step, and its place there.
fn find<'s>(steps: &'s BTreeMap<u32, StepRecord>, wanted: &EpisodeName) -> Result<(&'s StepRecord, usize), Failure> {
    let Some(record) = finished(steps, wanted.step) else {
        let last = steps.keys().rev().copied().find(|step| finished(steps, *step).is_some()).unwrap_or_default();
        return Err(Failure::input(format!("step {} is not finished; the last finished one is {last}", wanted.step)));
    };
    let at = record
        .episodes
        .iter()
        .position(|one| one.episode.sample == wanted.sample && question_key(&one.episode.question) == wanted.question);
    let Some(at) = at else {
        let known: Vec<String> =
            record.episodes.iter().take(3).map(|one| question_key(&one.episode.question)).collect();
        return Err(Failure::input(format!(
            "step {} has no sample {} of {}; it has {} episodes, the first of {}",
            wanted.step,
            wanted.sample,
            wanted.question,
            record.episodes.len(),
            known.join(", ")
        )));
    };
    Ok((record, at))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn episodes_are_named() {
        let name: EpisodeName = "12/nq-dev/a/b/3".parse().unwrap();
        assert_eq!(name, EpisodeName { step: 12, question: "nq-dev/a/b".into(), sample: 3 });
        for wrong in ["", "1", "1/2", "1/q/3", "x/d/q/3", "0/d/q/3", "1/d/q/x"] {
            assert!(wrong.parse::<EpisodeName>().unwrap_err().contains("STEP/DATASET/ID/SAMPLE"), "{wrong}");
        }
    }
}
