//! Which questions a step asks: consecutive ones of a sequence that goes through all of them again and again, and, with a
//! difficulty buffer, a share of those whose last episodes were neither all right nor all wrong.
//!
//! A step's questions are settled as soon as the policy that plays them is there, from the rounds that are over by then.
//! What was settled stands in the position, and so in every checkpoint: rounds under way are asked the same again after
//! any interruption.

use s3_config::{DifficultyBufferConfig, TrainerConfig};
use s3_rollout::record::Outcome;
use s3_search::Question;
use s3_search::eligible::sample;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// The sequence of all questions: each pass in another order. It gives places in the training set.
pub struct Sequence<'a> {
    all: &'a [Question],
    seed: u64,
    orders: BTreeMap<usize, Vec<usize>>,
}

impl<'a> Sequence<'a> {
    /// Of a training set.
    pub fn new(all: &'a [Question], seed: u64) -> Self {
        Self { all, seed, orders: BTreeMap::new() }
    }

    /// The question at a place of the sequence.
    fn at(&mut self, place: usize) -> usize {
        let (pass, at) = (place / self.all.len(), place % self.all.len());
        if pass == 0 {
            return at;
        }
        let (all, seed) = (self.all, self.seed);
        let order = self.orders.entry(pass).or_insert_with(|| {
            let salt = (pass as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let numbers: HashMap<&str, usize> =
                all.iter().enumerate().map(|(number, question)| (question.question.as_str(), number)).collect();
            let order = sample(all.to_vec(), seed ^ salt, all.len());
            order.iter().filter_map(|question| numbers.get(question.question.as_str()).copied()).collect()
        });
        order.get(at).copied().unwrap_or(at)
    }
}

/// The questions of a step without a buffer. A question is asked once in a step.
pub fn consecutive(all: &[Question], config: &TrainerConfig, step: u32) -> Vec<Question> {
    let count = config.rollout.questions;
    let first = (step as usize - 1) * count;
    let mut sequence = Sequence::new(all, config.seed);
    let mut seen = BTreeSet::new();
    (first..first + count)
        .filter_map(|place| {
            let question = all[sequence.at(place)].clone();
            seen.insert((question.dataset.clone(), question.id.clone())).then_some(question)
        })
        .collect()
}

/// A settled step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Settled {
    /// Places in the training set; those of the buffer come first.
    questions: Vec<usize>,
    /// How many of them are the buffer's.
    drawn: usize,
}

/// What a difficulty buffer remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Curriculum {
    /// Digest of the training set: places mean nothing in another one.
    of: String,
    /// Places of the sequence that are behind.
    cursor: usize,
    /// Questions that still teach, the longest unasked first.
    buffer: VecDeque<usize>,
    /// Steps that are settled and not over.
    steps: BTreeMap<u32, Settled>,
}

impl Curriculum {
    /// Nothing is remembered of a training set yet.
    pub fn new(of: String) -> Self {
        Self { of, ..Self::default() }
    }

    /// Whether its places are of this training set.
    pub fn is_of(&self, digest: &str) -> bool {
        self.of == digest
    }

    /// Settles every step up to `last` that is not settled yet.
    pub fn settle(
        &mut self,
        rule: &DifficultyBufferConfig,
        count: usize,
        sequence: &mut Sequence<'_>,
        steps: std::ops::RangeInclusive<u32>,
    ) {
        for step in steps {
            if !self.steps.contains_key(&step) {
                let settled = self.next(rule, count, sequence);
                self.steps.insert(step, settled);
            }
        }
    }

    fn next(&mut self, rule: &DifficultyBufferConfig, count: usize, sequence: &mut Sequence<'_>) -> Settled {
        let drawn = ((rule.share * count as f64).floor() as usize).min(self.buffer.len()).min(count);
        let mut questions: Vec<usize> = self.buffer.drain(..drawn).collect();
        let mut seen: BTreeSet<usize> = questions.iter().copied().collect();
        // no further than two passes, one of which is whole: a step may ask more than there are
        for _ in 0..2 * sequence.all.len() {
            if questions.len() >= count {
                break;
            }
            let question = sequence.at(self.cursor);
            self.cursor += 1;
            if seen.insert(question) {
                // its turn has come by itself
                self.buffer.retain(|other| *other != question);
                questions.push(question);
            }
        }
        Settled { questions, drawn }
    }

    /// The questions of a settled step.
    pub fn questions(&self, step: u32, all: &[Question]) -> Vec<Question> {
        let places = self.steps.get(&step).map(|settled| settled.questions.as_slice()).unwrap_or_default();
        places.iter().filter_map(|place| all.get(*place).cloned()).collect()
    }

    /// Takes what a step's episodes were worth, in question order, and says figures: what the buffer holds then, and how
    /// many questions of the step were its.
    pub fn played(
        &mut self,
        rule: &DifficultyBufferConfig,
        step: u32,
        samples: usize,
        outcomes: &[Outcome],
    ) -> [(String, f64); 2] {
        let settled = self.steps.remove(&step);
        let drawn = settled.as_ref().map_or(0, |settled| settled.drawn);
        let questions = settled.map(|settled| settled.questions).unwrap_or_default();
        for (question, group) in questions.into_iter().zip(outcomes.chunks(samples.max(1))) {
            let known: Vec<bool> = group.iter().filter_map(Outcome::right).collect();
            let right = known.iter().filter(|right| **right).count();
            self.buffer.retain(|other| *other != question);
            if right > 0 && right < known.len() {
                self.buffer.push_back(question);
            }
        }
        let over = self.buffer.len().saturating_sub(rule.capacity);
        self.buffer.drain(..over);
        [("bufferQuestions".to_owned(), self.buffer.len() as f64), ("bufferDrawn".to_owned(), drawn as f64)]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use s3_rollout::Scored;
    use s3_search::score::Verdict;

    fn all(count: usize) -> Vec<Question> {
        (0..count).map(|i| Question { id: i.to_string(), question: format!("q{i}"), ..Question::default() }).collect()
    }

    fn outcomes(groups: &[&str]) -> Vec<Outcome> {
        let one = |letter: char| {
            let verdict = match letter {
                '+' => Verdict::Correct,
                '-' => Verdict::Incorrect,
                _ => Verdict::Failed,
            };
            let scored = Scored { verdict, ..Scored::own(None, &[]) };
            Outcome { searcher: scored.clone(), baseline: scored, reward: None }
        };
        groups.concat().chars().map(one).collect()
    }

    fn ids(curriculum: &Curriculum, step: u32, all: &[Question]) -> Vec<usize> {
        curriculum.questions(step, all).iter().map(|question| question.id.parse().unwrap()).collect()
    }

    #[test]
    fn steps_go_through_all_questions_before_any_comes_again() {
        let all = all(7);
        let text = "runtime: {name: t, stateDir: s}\nseed: 5\nsearcher: {path: m}\nretriever: {address: 'http://a'}\n\
            generator: {endpoint: {address: 'http://a'}}\ndata: {datasets: []}\nbaselineStore: b\nsteps: 9\n\
            checkpoint: {dir: c}\nexport: e\nrollout: {questions: 3}\n";
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        std::fs::write(&path, text).unwrap();
        let config: TrainerConfig = s3_config::load(&path).unwrap();
        let ids = |step| consecutive(&all, &config, step).into_iter().map(|q| q.id).collect::<Vec<_>>();
        assert_eq!([ids(1), ids(2)].concat(), ["0", "1", "2", "3", "4", "5"]);
        let mut two_passes: Vec<String> = (1..=7).flat_map(ids).collect();
        assert!(two_passes.len() >= 20 && two_passes.len() <= 21, "a pass may end inside a step");
        two_passes.sort();
        two_passes.dedup();
        assert_eq!(two_passes.len(), 7);
        assert_eq!(ids(5), ids(5));
    }

    #[test]
    fn what_still_teaches_comes_again_and_the_rest_waits_for_its_turn() {
        let all = all(40);
        let rule = DifficultyBufferConfig { capacity: 3, share: 0.5 };
        let mut sequence = Sequence::new(&all, 5);
        let mut of = Curriculum::new("d".into());
        let mut step = |of: &mut Curriculum, number: u32, groups: &[&str]| {
            of.settle(&rule, 4, &mut sequence, number..=number);
            let asked = ids(of, number, &all);
            let figures = of.played(&rule, number, 3, &outcomes(groups)).map(|(_, value)| value);
            (asked, figures)
        };
        // mixed ones are kept, lost verdicts decide nothing
        assert_eq!(step(&mut of, 1, &["++-", "+++", "---", "+?-"]), (vec![0, 1, 2, 3], [2.0, 0.0]));
        // half of the step is theirs; one has become easy
        assert_eq!(step(&mut of, 2, &["+++", "-+-", "++-", "?++"]), (vec![0, 3, 4, 5], [2.0, 2.0]));
        // no more are remembered than there is room for, the oldest goes
        assert_eq!(step(&mut of, 3, &["-+-", "-+-", "-+-", "-+-"]), (vec![3, 4, 6, 7], [3.0, 2.0]));
        assert_eq!(step(&mut of, 4, &["---", "---", "---", "---"]), (vec![4, 6, 8, 9], [1.0, 2.0]));
        assert_eq!(step(&mut of, 5, &["---", "---", "---", "---"]), (vec![7, 10, 11, 12], [0.0, 1.0]));
        let text = serde_json::to_string(&of).unwrap();
        assert_eq!(serde_json::from_str::<Curriculum>(&text).unwrap(), of);
    }

    #[test]
    fn steps_under_way_stay_as_they_were_settled() {
        let all = all(6);
        let rule = DifficultyBufferConfig { capacity: 9, share: 1.0 };
        let mut of = Curriculum::new("d".into());
        of.settle(&rule, 2, &mut Sequence::new(&all, 5), 1..=2);
        of.played(&rule, 1, 2, &outcomes(&["+-", "+-"]));
        of.settle(&rule, 2, &mut Sequence::new(&all, 5), 2..=3);
        assert_eq!((ids(&of, 2, &all), ids(&of, 3, &all)), (vec![2, 3], vec![0, 1]));
        // a step that wants more than there is asks each once
        of.settle(&rule, 9, &mut Sequence::new(&all, 5), 4..=4);
        let mut asked = ids(&of, 4, &all);
        asked.sort_unstable();
        assert_eq!(asked, [0, 1, 2, 3, 4, 5]);
    }
}
