//! Traces of the search protocol, made from training questions.
//!
//! Where a gold answer stands in the initial passages, the trace selects them and stops. Where it does not,
//! queries made of the question's own words are tried, and the trace writes one that finds a gold passage,
//! selects it and stops. A few traces search in vain and stop with the best guess, so that the searcher learns
//! to end. Where the set marks evidence, the trace may follow it instead ([`super::evidence`]). Traces are played
//! through the episode itself: their tokens are those of real episodes.

use super::Trace;
use super::evidence::{Evidence, follow};
use super::queries::{telling, tried};
use crate::run::Run;
use rayon::prelude::*;
use s3_config::SftConfig;
use s3_rollout::{ModelCodec, Retrieve, RetrieverPeer, RolloutError};
use s3_search::protocol::write;
use s3_search::score::has_span;
use s3_search::{Action, Codec, Episode, Passage, Question, Role, Step};

/// Share of the searching traces that find nothing and stop with the best guess.
const VAIN_SHARE: f64 = 0.15;

/// What a trace does, before it is played.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Searches, in order.
    pub(super) hops: Vec<Hop>,
    /// Passages of the last block (ids from 1) that it selects before it stops.
    pub(super) last: Vec<usize>,
    /// Whether it found what it searched for.
    pub(super) found: bool,
}

/// One search of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hop {
    /// Passages of the block before it (ids from 1) that its turn selects.
    pub(super) ids: Vec<usize>,
    /// What it asks.
    pub(super) query: String,
    /// What the retriever answers.
    pub(super) found: Vec<Passage>,
}

impl Plan {
    fn stop(last: Vec<usize>) -> Self {
        Self { hops: Vec::new(), last, found: true }
    }

    fn search(query: String, passages: Vec<Passage>, last: Vec<usize>, found: bool) -> Self {
        Self { hops: vec![Hop { ids: Vec::new(), query, found: passages }], last, found }
    }
}

/// Queries tried together in one round of calls; bounds memory.
const QUESTIONS_AT_ONCE: usize = 256;

/// A question with its initial passages.
pub(super) type Opened<'q> = (&'q Question, Vec<Passage>);

/// The same with what its trace does.
pub(super) type Planned<'q> = (Opened<'q>, Plan);

/// Makes the traces of the given questions.
pub fn traces(
    run: &Run,
    codec: &ModelCodec,
    retriever: &RetrieverPeer,
    marked: &Evidence,
    questions: &[Question],
) -> Result<Vec<Trace>, RolloutError> {
    let search = &run.config.search;
    run.progress.phase("make traces", questions.len() as u64);
    let mut plans: Vec<Planned<'_>> = Vec::new();
    for part in questions.chunks(QUESTIONS_AT_ONCE) {
        run.check()?;
        let initial = if search.initial_top_k == 0 {
            vec![Vec::new(); part.len()]
        } else {
            let texts: Vec<String> = part.iter().map(|question| question.question.clone()).collect();
            retriever.retrieve(&texts, search.initial_top_k, search.method)?
        };
        let opened = part.iter().zip(initial).collect();
        let (followed, opened) = follow(search, retriever, marked, opened)?;
        plans.extend(followed);
        let golds = |passages: &[Passage], question: &Question| {
            supporting(passages, question, run.config.generator.passage_words as usize)
        };
        let mut open: Vec<Opened<'_>> = Vec::new();
        for (question, initial) in opened {
            let ids = golds(&initial, question);
            if ids.is_empty() {
                open.push((question, initial));
            } else {
                plans.push(((question, initial), Plan::stop(capped(ids, search.max_selected))));
            }
        }
        if search.max_searches > 0 {
            plans.extend(searches(run, retriever, open)?);
        }
        run.progress.done(plans.len() as u64);
    }
    let mut chosen = balanced(&run.config.sft, plans.iter().map(|(_, plan)| plan));
    chosen.truncate(run.config.sft.limit.unwrap_or(usize::MAX));
    let traces: Vec<Option<Trace>> = chosen
        .into_par_iter()
        .map(|at| {
            let ((question, initial), plan) = &plans[at];
            play(run, codec, question, initial.clone(), plan)
        })
        .collect::<Result<_, RolloutError>>()?;
    Ok(traces.into_iter().flatten().collect())
}

/// Tries queries for questions whose initial passages hold no gold.
fn searches<'q>(run: &Run, retriever: &RetrieverPeer, open: Vec<Opened<'q>>) -> Result<Vec<Planned<'q>>, RolloutError> {
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
                Plan::search(queries[trial].clone(), found[trial].clone(), ids, true)
            } else {
                // a right answer that finds nothing is no example of a vain search
                let plain = usize::from(sft.hindsight).min(queries.len().checked_sub(1)?);
                Plan::search(queries[plain].clone(), found[plain].clone(), vec![1], false)
            };
            Some(((question, initial), plan))
        })
        .collect();
    Ok(planned)
}

pub(super) fn capped(mut ids: Vec<usize>, limit: u32) -> Vec<usize> {
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

/// Indices of the plans that keep the configured share of searches, in order.
fn balanced<'p>(config: &SftConfig, plans: impl Iterator<Item = &'p Plan>) -> Vec<usize> {
    let (mut stops, mut hits, mut vain) = (Vec::new(), Vec::new(), Vec::new());
    for (at, plan) in plans.enumerate() {
        match plan {
            Plan { hops, .. } if hops.is_empty() => stops.push(at),
            Plan { found: true, .. } => hits.push(at),
            Plan { found: false, .. } => vain.push(at),
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
    for hop in &plan.hops {
        if !search(&mut episode, codec, hop)? {
            return Ok(None);
        }
    }
    if !write_turn(&mut episode, codec, &write(&plan.last, &Action::Complete))? {
        return Ok(None);
    }
    let trajectory = episode.finish();
    let wanted = plan.hops.iter().map(|hop| &hop.ids).chain([&plan.last]);
    let whole = trajectory.turns.iter().zip(wanted).all(|(turn, ids)| turn.selected.len() == ids.len());
    let positions: Vec<usize> =
        (0..trajectory.tokens.len()).filter(|at| trajectory.roles[*at] == Role::Action).collect();
    Ok(whole.then_some(Trace { tokens: trajectory.tokens, positions }))
}

fn search(episode: &mut Episode, codec: &ModelCodec, hop: &Hop) -> Result<bool, RolloutError> {
    let action = Action::Search { query: hop.query.clone() };
    if !write_turn(episode, codec, &write(&hop.ids, &action))? || !matches!(episode.next(), Step::Retrieve { .. }) {
        return Ok(false);
    }
    episode.retrieved(hop.found.clone(), codec)?;
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
    fn searches_and_stops_are_balanced() {
        let stop = Plan::stop(vec![1]);
        let hit = Plan::search("q".into(), vec![], vec![1], true);
        let vain = Plan::search("q".into(), vec![], vec![1], false);
        let plans: Vec<Plan> = [vec![stop; 700], vec![hit; 100], vec![vain; 200]].concat();
        let count = |share: f64| {
            let config = SftConfig { search_share: share, ..SftConfig::default() };
            let chosen = balanced(&config, plans.iter());
            let searching = chosen.iter().filter(|at| !plans[**at].hops.is_empty()).count();
            (searching, chosen.len())
        };
        assert_eq!(count(0.5), (117, 234));
        assert_eq!(count(0.0), (0, 700));
        assert_eq!(count(1.0), (117, 117));
        let (searching, all) = count(0.1);
        assert!(all >= 700 && (searching as f64 / all as f64 - 0.1).abs() < 0.01, "{searching} {all}");
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
