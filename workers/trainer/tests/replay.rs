//! An episode computed again equals what the run stored of it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code)] // each test file uses its part
mod support;

use s3_rollout::question_key;
use s3_rollout::record::{StepRecord, read_training};
use support::{World, replay, run};

/// The number after `word` in a line that starts with `line`.
fn number(text: &str, line: &str, word: &str) -> f64 {
    let line = text.lines().find(|l| l.starts_with(line)).unwrap_or_else(|| panic!("no {line} in {text}"));
    let rest = line.split_once(word).unwrap_or_else(|| panic!("no {word} in {line}")).1;
    rest.trim_start().split([' ', ',']).next().unwrap().parse().unwrap()
}

#[test]
fn an_episode_comes_out_as_it_was_stored() {
    let world = World::start();
    let ahead = "{importance: {correction: TokenTruncated}}";
    for (name, algorithm, staleness) in [("rloo", "{}", 0), ("ppo", "{estimator: Ppo}", 0), ("ahead", ahead, 2)] {
        let more = format!(
            "steps: 5\nalgorithm: {algorithm}\nrollout: {{questions: 4, samples: 4, batch: 8, microBatch: 4, miniBatch: 8, \
             staleness: {staleness}}}"
        );
        let config = world.config(name, &more);
        let (code, _, stderr) = run("train", &config);
        assert_eq!(code, 0, "{stderr}");
        let folder = world.dir.path().join(name);
        let result = std::fs::read(folder.join("result.json")).unwrap();
        let steps: Vec<StepRecord> = read_training(&folder.join("state/training")).unwrap();
        // checkpoints are of steps 4 and 5, so step 3 starts from the beginning and step 5 from a checkpoint
        for (step, from) in [(3, "as it began, 2 steps"), (5, "checkpoint of step 4, 0 steps")] {
            let record = steps.iter().find(|record| record.step == step).unwrap();
            let rewarded = record.episodes.iter().find(|one| one.outcome.as_ref().unwrap().reward.is_some()).unwrap();
            let name = format!("{step}/{}/{}", question_key(&rewarded.episode.question), rewarded.episode.sample);
            let (code, text, stderr) = replay(&config, &name);
            assert_eq!(code, 0, "{stderr}");
            assert!(text.contains(from), "{text}");
            assert!(number(&text, "log-probs", "largest") <= 1e-5, "{text}");
            assert_eq!(text.contains("; played by that after"), staleness > 0, "{text}");
            let reward = rewarded.outcome.as_ref().unwrap().reward.unwrap();
            assert!((number(&text, "reward", "again") - reward).abs() < 1e-9, "{text}");
            for figure in ["loss", "gradNorm", "entropy", "mismatchKl"] {
                let line = format!("{figure:<22} stored");
                assert!(
                    number(&text, &line, "difference").abs() <= 0.0,
                    "{figure} is not the stored one bit for bit: {text}"
                );
            }
            assert!(text.lines().last().unwrap().starts_with("digest "), "{text}");
        }
        assert_eq!(std::fs::read(folder.join("result.json")).unwrap(), result, "a replay leaves the run alone");
        for wrong in ["9/d/q1/0", "3/d/nobody/0", "3/d/q1/77", "x"] {
            let (code, _, stderr) = replay(&config, wrong);
            assert_eq!(code, 64, "{wrong}: {stderr}");
        }
    }
}
