//! Traces of the search protocol, made from training questions.
//!
//! Where a gold answer stands in the initial passages, the trace selects them and stops. Where it does not,
//! queries made of the question's own words are tried, and the trace writes one that finds a gold passage,
//! selects it and stops. A few traces search in vain and stop with the best guess, so that the searcher learns
//! to end. Traces are played through the episode itself: their tokens are those of real episodes.

use super::Trace;
use crate::run::Run;
use rayon::prelude::*;
use s3_config::SftConfig;
use s3_rollout::{ModelCodec, Retrieve, RetrieverPeer, RolloutError};
use s3_search::protocol::write;
use s3_search::score::{has_span, normalize};
use s3_search::{Action, Codec, Episode, Passage, Question, Role, Step};
use sha2::{Digest, Sha256};

/// Share of the searching traces that find nothing and stop with the best guess.
const VAIN_SHARE: f64 = 0.15;

/// Words that carry nothing for a retriever.
const STOP_WORDS: &[&str] = &[
    "a", "an", "and", "are", "as", "at", "be", "been", "by", "did", "do", "does", "for", "from", "had", "has", "have",
    "how", "if", "in", "into", "is", "it", "its", "many", "most", "much", "of", "on", "or", "that", "the", "their",
    "there", "these", "they", "this", "to", "was", "were", "what", "when", "where", "which", "who", "whom", "whose",
    "why", "will", "with", "would", "s", "name", "called", "can", "you",
];

/// What a trace does, before it is played.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Plan {
    /// Select these of the initial passages (ids from 1) and stop.
    Stop(Vec<usize>),
    /// Search, then select these of the result and stop.
    Search { query: String, found: Vec<Passage>, ids: Vec<usize> },
    /// Search in vain, then stop with the first result.
    Vain { query: String, found: Vec<Passage> },
}

/// Words of a gold answer that a query takes.
const HINDSIGHT_WORDS: usize = 6;

/// Queries tried together in one round of calls; bounds memory.
const QUESTIONS_AT_ONCE: usize = 256;

/// Makes the traces of the given questions.
pub fn traces(
    run: &Run,
    codec: &ModelCodec,
    retriever: &RetrieverPeer,
    questions: &[Question],
) -> Result<Vec<Trace>, RolloutError> {
    let search = &run.config.search;
    run.progress.phase("make traces", questions.len() as u64);
    let mut plans: Vec<(&Question, Vec<Passage>, Plan)> = Vec::new();
    for part in questions.chunks(QUESTIONS_AT_ONCE) {
        run.check()?;
        let initial = if search.initial_top_k == 0 {
            vec![Vec::new(); part.len()]
        } else {
            let texts: Vec<String> = part.iter().map(|question| question.question.clone()).collect();
            retriever.retrieve(&texts, search.initial_top_k, search.method)?
        };
        let golds = |passages: &[Passage], question: &Question| {
            supporting(passages, question, run.config.generator.passage_words as usize)
        };
        let mut open: Vec<Opened<'_>> = Vec::new();
        for (question, initial) in part.iter().zip(initial) {
            let ids = golds(&initial, question);
            if ids.is_empty() {
                open.push((question, initial));
            } else {
                plans.push((question, initial, Plan::Stop(capped(ids, search.max_selected))));
            }
        }
        if search.max_searches > 0 {
            for ((question, initial), plan) in searches(run, retriever, open)? {
                plans.push((question, initial, plan));
            }
        }
        run.progress.done(plans.len() as u64);
    }
    let mut chosen = balanced(&run.config.sft, plans.iter().map(|(_, _, plan)| plan));
    chosen.truncate(run.config.sft.limit.unwrap_or(usize::MAX));
    let traces: Vec<Option<Trace>> = chosen
        .into_par_iter()
        .map(|at| {
            let (question, initial, plan) = &plans[at];
            play(run, codec, question, initial.clone(), plan)
        })
        .collect::<Result<_, RolloutError>>()?;
    Ok(traces.into_iter().flatten().collect())
}

/// A question with its initial passages.
type Opened<'q> = (&'q Question, Vec<Passage>);

/// Tries queries for questions whose initial passages hold no gold.
fn searches<'q>(
    run: &Run,
    retriever: &RetrieverPeer,
    open: Vec<Opened<'q>>,
) -> Result<Vec<(Opened<'q>, Plan)>, RolloutError> {
    let (search, sft) = (&run.config.search, &run.config.sft);
    let tried: Vec<Vec<String>> = open.iter().map(|(question, _)| tried(question, run.config.seed, sft)).collect();
    let flat: Vec<String> = tried.iter().flatten().cloned().collect();
    let found = retriever.retrieve(&flat, search.top_k, search.method)?;
    let mut rest = found.as_slice();
    let mut work = Vec::with_capacity(open.len());
    for (item, queries) in open.into_iter().zip(tried) {
        let (own, later) = rest.split_at(queries.len());
        rest = later;
        work.push((item, queries, own));
    }
    let words = run.config.generator.passage_words as usize;
    let planned: Vec<_> = work
        .into_par_iter()
        .filter_map(|((question, initial), queries, found)| {
            let hits = found.iter().enumerate().filter_map(|(trial, passages)| {
                let ids = supporting(passages, question, words);
                Some((*ids.first()?, trial, ids))
            });
            let plan = if let Some((_, trial, ids)) = hits.min() {
                let ids = capped(ids, search.max_selected);
                Plan::Search { query: queries[trial].clone(), found: found[trial].clone(), ids }
            } else {
                // a right answer that finds nothing is no example of a vain search
                let plain = usize::from(sft.hindsight).min(queries.len().checked_sub(1)?);
                Plan::Vain { query: queries[plain].clone(), found: found[plain].clone() }
            };
            Some(((question, initial), plan))
        })
        .collect();
    Ok(planned)
}

/// The queries to try; with a gold answer after the question's words, where the searcher is to learn to search for
/// what it believes.
fn tried(question: &Question, seed: u64, sft: &SftConfig) -> Vec<String> {
    let mut tried = queries(&question.question, seed, sft.query_trials);
    if sft.hindsight
        && let (Some(words), Some(gold)) = (tried.first(), telling(&question.answers).first())
    {
        let gold: Vec<&str> = gold.split_whitespace().take(HINDSIGHT_WORDS).collect();
        let query = format!("{words} {}", gold.join(" "));
        tried.insert(0, query);
    }
    tried
}

fn capped(mut ids: Vec<usize>, limit: u32) -> Vec<usize> {
    ids.truncate(limit.max(1) as usize);
    ids
}

/// Ids (from 1) of the passages in which a gold stands, in the part of them that the generator reads.
fn supporting(passages: &[Passage], question: &Question, words: usize) -> Vec<usize> {
    let golds = telling(&question.answers);
    let seen = |passage: &Passage| {
        let take = if words == 0 { usize::MAX } else { words };
        let text = passage.text.split_whitespace().take(take).collect::<Vec<_>>().join(" ");
        has_span(&text, &golds) || has_span(&passage.title, &golds)
    };
    passages.iter().enumerate().filter(|(_, passage)| seen(passage)).map(|(at, _)| at + 1).collect()
}

/// Golds that do not stand in passages by chance: at least four characters and no bare number; all golds when
/// none is such.
fn telling(golds: &[String]) -> Vec<String> {
    let strong = |gold: &&String| {
        let gold = normalize(gold);
        gold.chars().count() >= 4 && !gold.chars().all(|c| c.is_numeric() || c.is_whitespace())
    };
    let kept: Vec<String> = golds.iter().filter(strong).cloned().collect();
    if kept.is_empty() { golds.to_vec() } else { kept }
}

/// The question without stop words first, then random sub-sets of its words in their order; each once.
fn queries(question: &str, seed: u64, trials: usize) -> Vec<String> {
    let all: Vec<String> = question
        .split_whitespace()
        .map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()).to_owned())
        .filter(|word| !word.is_empty())
        .collect();
    let mut content: Vec<&String> =
        all.iter().filter(|word| !STOP_WORDS.contains(&word.to_lowercase().as_str())).collect();
    if content.is_empty() {
        content = all.iter().collect();
    }
    if content.is_empty() {
        return Vec::new();
    }
    let join = |words: &[&String]| words.iter().map(|word| word.as_str()).collect::<Vec<_>>().join(" ");
    let mut queries = vec![join(&content)];
    for trial in 1..trials {
        let mut random = Keyed::new(seed, question, trial as u64);
        let size = 1 + random.below(content.len());
        let mut places: Vec<usize> = (0..content.len()).collect();
        for at in 0..size {
            places.swap(at, at + random.below(content.len() - at));
        }
        places.truncate(size);
        places.sort_unstable();
        let words: Vec<&String> = places.into_iter().map(|at| content[at]).collect();
        queries.push(join(&words));
    }
    let mut seen = std::collections::BTreeSet::new();
    queries.retain(|query| !query.is_empty() && seen.insert(query.clone()));
    queries
}

/// Counter-based randomness that belongs to a question and a trial.
pub(super) struct Keyed {
    key: [u8; 32],
    counter: u64,
}

impl Keyed {
    pub(super) fn new(seed: u64, text: &str, salt: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(seed.to_le_bytes());
        hash.update(salt.to_le_bytes());
        hash.update(text.as_bytes());
        Self { key: hash.finalize().into(), counter: 0 }
    }

    /// Uniform in 0..n (n ≥ 1); the bias of 64 bits is beyond notice.
    pub(super) fn below(&mut self, n: usize) -> usize {
        let mut hash = Sha256::new();
        hash.update(self.key);
        hash.update(self.counter.to_le_bytes());
        self.counter += 1;
        let mut first = [0; 8];
        first.copy_from_slice(&hash.finalize()[..8]);
        (u64::from_le_bytes(first) % n.max(1) as u64) as usize
    }
}

/// Indices of the plans that keep the configured share of searches, in order.
fn balanced<'p>(config: &SftConfig, plans: impl Iterator<Item = &'p Plan>) -> Vec<usize> {
    let (mut stops, mut hits, mut vain) = (Vec::new(), Vec::new(), Vec::new());
    for (at, plan) in plans.enumerate() {
        match plan {
            Plan::Stop(_) => stops.push(at),
            Plan::Search { .. } => hits.push(at),
            Plan::Vain { .. } => vain.push(at),
        }
    }
    vain.truncate((hits.len() as f64 * VAIN_SHARE / (1.0 - VAIN_SHARE)) as usize);
    let share = config.search_share.clamp(0.0, 1.0);
    let searching = (hits.len() + vain.len()) as f64;
    if share <= 0.0 {
        return stops;
    }
    if share < 1.0 {
        let fitting = stops.len() as f64 * share / (1.0 - share);
        let kept = (fitting / searching).min(1.0);
        hits.truncate((hits.len() as f64 * kept) as usize);
        vain.truncate((vain.len() as f64 * kept) as usize);
        stops.truncate(((hits.len() + vain.len()) as f64 * (1.0 - share) / share) as usize);
    } else {
        stops.clear();
    }
    let mut all = [stops, hits, vain].concat();
    all.sort_unstable();
    all
}

/// Plays a plan through a real episode. None when a budget kept the selected passages out of sight.
fn play(
    run: &Run,
    codec: &ModelCodec,
    question: &Question,
    initial: Vec<Passage>,
    plan: &Plan,
) -> Result<Option<Trace>, RolloutError> {
    let mut episode = Episode::new(question, 0, initial, &run.config.search, codec)?;
    let ids = match plan {
        Plan::Stop(ids) => ids.clone(),
        Plan::Search { query, found, ids } => {
            if !search(&mut episode, codec, query, found)? {
                return Ok(None);
            }
            ids.clone()
        }
        Plan::Vain { query, found } => {
            if !search(&mut episode, codec, query, found)? {
                return Ok(None);
            }
            vec![1]
        }
    };
    if !write_turn(&mut episode, codec, &write(&ids, &Action::Complete))? {
        return Ok(None);
    }
    let trajectory = episode.finish();
    let whole = trajectory.turns.last().is_some_and(|turn| turn.selected.len() == ids.len());
    let positions: Vec<usize> =
        (0..trajectory.tokens.len()).filter(|at| trajectory.roles[*at] == Role::Action).collect();
    Ok(whole.then_some(Trace { tokens: trajectory.tokens, positions }))
}

fn search(episode: &mut Episode, codec: &ModelCodec, query: &str, found: &[Passage]) -> Result<bool, RolloutError> {
    let action = Action::Search { query: query.to_owned() };
    if !write_turn(episode, codec, &write(&[], &action))? || !matches!(episode.next(), Step::Retrieve { .. }) {
        return Ok(false);
    }
    episode.retrieved(found.to_vec(), codec)?;
    Ok(matches!(episode.next(), Step::Generate { .. }))
}

/// Writes a turn as if it had been sampled; false when it is longer than a turn may be.
fn write_turn(episode: &mut Episode, codec: &ModelCodec, text: &str) -> Result<bool, RolloutError> {
    let tokens = codec.encode(text);
    let Step::Generate { max_new_tokens, .. } = episode.next() else { return Ok(false) };
    if tokens.len() > max_new_tokens {
        return Ok(false);
    }
    episode.generated(&tokens, &vec![0.0; tokens.len()], codec)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn queries_are_word_subsets_and_repeat() {
        let question = "who sings does he love me with reba?";
        let made = queries(question, 1, 30);
        assert_eq!(made[0], "sings he love me reba");
        assert_eq!(made, queries(question, 1, 30));
        assert_ne!(made, queries(question, 2, 30));
        assert!(made.len() > 10);
        for query in &made {
            let mut words = question.trim_end_matches('?').split(' ');
            assert!(query.split(' ').all(|word| words.any(|w| w == word)), "{query} is in order");
        }
        assert_eq!(queries("who is it?", 1, 3)[0], "who is it");
        assert!(queries("???", 1, 3).is_empty());
    }

    #[test]
    fn searches_and_stops_are_balanced() {
        let stop = Plan::Stop(vec![1]);
        let hit = Plan::Search { query: "q".into(), found: vec![], ids: vec![1] };
        let vain = Plan::Vain { query: "q".into(), found: vec![] };
        let plans: Vec<Plan> = [vec![stop; 700], vec![hit; 100], vec![vain; 200]].concat();
        let count = |share: f64| {
            let config = SftConfig { search_share: share, ..SftConfig::default() };
            let chosen = balanced(&config, plans.iter());
            let searching = chosen.iter().filter(|at| !matches!(plans[**at], Plan::Stop(_))).count();
            (searching, chosen.len())
        };
        assert_eq!(count(0.5), (117, 234));
        assert_eq!(count(0.0), (0, 700));
        assert_eq!(count(1.0), (117, 117));
        let (searching, all) = count(0.1);
        assert!(all >= 700 && (searching as f64 / all as f64 - 0.1).abs() < 0.01, "{searching} {all}");
    }

    #[test]
    fn hindsight_adds_an_answer() {
        let question = Question {
            question: "who sings it?".into(),
            answers: vec!["12".into(), "Reba".into()],
            ..Question::default()
        };
        let plain = SftConfig { query_trials: 3, ..SftConfig::default() };
        let hindsight = SftConfig { hindsight: true, ..plain.clone() };
        let without = tried(&question, 1, &plain);
        assert!(without.iter().all(|query| !query.contains("Reba")), "{without:?}");
        let with = tried(&question, 1, &hindsight);
        assert_eq!((with[0].as_str(), &with[1..]), ("sings Reba", without.as_slice()));
    }

    #[test]
    fn support_is_what_the_generator_reads() {
        let passage = |text: &str| Passage { id: String::new(), title: "A title".into(), text: text.into() };
        let question = Question { answers: vec!["US".into(), "Omar Sharif".into()], ..Question::default() };
        let passages = [passage("one two three Omar Sharif"), passage("the US army")];
        assert_eq!(supporting(&passages, &question, 0), [1]);
        assert_eq!(supporting(&passages, &question, 4), [0usize; 0]);
        let short = Question { answers: vec!["US".into()], ..Question::default() };
        assert_eq!(supporting(&passages, &short, 0), [2]);
    }
}
