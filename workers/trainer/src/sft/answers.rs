//! Traces of short answers, for a small generator: passages and question through the gateway's own template,
//! then a gold answer of a few words.

use super::Trace;
use super::evidence::{Evidence, passages};
use super::queries::Keyed;
use crate::run::Run;
use rayon::prelude::*;
use s3_generator_gateway::{Document, Template, Templates, render};
use s3_rollout::{ModelCodec, Retrieve, RetrieverPeer, RolloutError};
use s3_search::score::has_span;
use s3_search::{Codec, Passage, Question};
use s3_telemetry::Failure;

/// Longer golds teach sentences.
const MAX_WORDS: usize = 6;
/// Passages looked at for one that holds the answer.
const DEPTH: u32 = 20;
/// Passages of a varied trace at most.
const VARIED: usize = 4;

/// Passages beside the evidence at most.
const BESIDE: usize = 2;

/// Makes one trace of every question that has a short gold.
pub fn traces(
    run: &Run,
    codec: &ModelCodec,
    retriever: &RetrieverPeer,
    marked: &Evidence,
    questions: &[Question],
) -> Result<Vec<Trace>, Failure> {
    let config = &run.config;
    let templates = Templates::built_in().map_err(Failure::internal)?;
    let template = templates.get(&config.generator.template).map_err(Failure::input)?;
    let mut usable: Vec<(&Question, &str)> =
        questions.iter().filter_map(|question| Some((question, short_gold(question)?))).collect();
    usable.truncate(config.sft.limit.unwrap_or(usize::MAX));
    run.progress.phase("make traces", usable.len() as u64);
    let mut traces = Vec::with_capacity(usable.len());
    for part in usable.chunks(1024) {
        run.check()?;
        let queries: Vec<String> = part.iter().map(|(question, _)| question.question.clone()).collect();
        let depth = DEPTH.max(config.baseline.top_k);
        let found = retriever.retrieve(&queries, depth, config.search.method)?;
        let asked: Vec<&Question> = part.iter().map(|(question, _)| *question).collect();
        let evidence = passages(&config.search, retriever, marked, &asked)?;
        let made: Vec<Trace> = part
            .par_iter()
            .zip(found)
            .zip(evidence)
            .map(|(((question, gold), found), evidence)| {
                let top_k = config.baseline.top_k as usize;
                let passages = choose(question, &found, &evidence, top_k, config.seed);
                trace(codec, template, question, gold, &passages, config.generator.passage_words as usize)
            })
            .collect::<Result<_, RolloutError>>()?;
        traces.extend(made);
        run.progress.done(traces.len() as u64);
    }
    Ok(traces)
}

/// The first gold that is short enough.
fn short_gold(question: &Question) -> Option<&str> {
    let short = |gold: &&String| (1..=MAX_WORDS).contains(&gold.split_whitespace().count());
    question.answers.iter().find(short).map(|gold| gold.trim())
}

/// Half of the traces read what the baseline reads; a quarter one to four of the best passages; a quarter a
/// passage that holds the answer, where one was found, among others. So the generator learns to read few and
/// many passages, with and without the answer. Where all the evidence of a question is at hand, only a quarter read what
/// the baseline reads, the others the evidence in its order, with up to [`BESIDE`] of the best passages around it.
fn choose<'p>(
    question: &Question,
    found: &'p [Passage],
    evidence: &'p [Passage],
    top_k: usize,
    seed: u64,
) -> Vec<&'p Passage> {
    let mut random = Keyed::new(seed, &question.question, u64::MAX);
    let kind = random.below(4);
    if kind > 0 && !evidence.is_empty() {
        let mut chosen: Vec<&Passage> = evidence.iter().collect();
        let others = found.iter().filter(|passage| evidence.iter().all(|marked| marked.title != passage.title));
        for other in others.take(random.below(BESIDE + 1)) {
            chosen.insert(random.below(chosen.len() + 1), other);
        }
        return chosen;
    }
    if kind < 2 {
        return found.iter().take(top_k).collect();
    }
    let count = 1 + random.below(VARIED);
    let mut chosen: Vec<&Passage> = found.iter().take(count).collect();
    let golden = found.iter().find(|passage| has_span(&passage.text, &question.answers));
    if let Some(golden) = golden.filter(|golden| kind == 3 && !chosen.contains(golden)) {
        let place = random.below(chosen.len().max(1));
        match chosen.get_mut(place) {
            Some(slot) => *slot = golden,
            None => chosen.push(golden),
        }
    }
    chosen
}

fn trace(
    codec: &ModelCodec,
    template: &Template,
    question: &Question,
    gold: &str,
    passages: &[&Passage],
    words: usize,
) -> Result<Trace, RolloutError> {
    let documents: Vec<Document<'_>> =
        passages.iter().map(|passage| Document { title: &passage.title, text: &passage.text }).collect();
    let messages = render(template, &question.question, &documents, words);
    let mut tokens = codec.chat(messages.system.as_deref(), &messages.user)?;
    let start = tokens.len();
    tokens.extend(codec.encode(gold));
    tokens.push(codec.end_of_turn());
    Ok(Trace { positions: (start..tokens.len()).collect(), tokens })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn golds_are_short_and_passages_vary() {
        let found: Vec<Passage> = (0..20)
            .map(|i| Passage {
                id: i.to_string(),
                title: i.to_string(),
                text: if i == 11 { "Paris".into() } else { "x".into() },
            })
            .collect();
        let long = "one two three four five six seven".to_owned();
        let mut sizes = std::collections::BTreeSet::new();
        let mut golden = 0;
        for i in 0..200 {
            let question = Question {
                question: format!("q{i}"),
                answers: vec![long.clone(), "Paris".into()],
                ..Question::default()
            };
            assert_eq!(short_gold(&question), Some("Paris"));
            let chosen = choose(&question, &found, &[], 3, 1);
            sizes.insert(chosen.len());
            golden += usize::from(chosen.iter().any(|passage| passage.text == "Paris"));
        }
        let evidence = [found[12].clone(), found[11].clone()];
        let hops: Vec<usize> = (0..200)
            .map(|i| Question { question: format!("q{i}"), answers: vec!["Paris".into()], ..Question::default() })
            .map(|question| {
                let chosen = choose(&question, &found, &evidence, 3, 1);
                let first = chosen.iter().position(|passage| passage.id == "12");
                assert!(first.is_none_or(|first| chosen[first..].iter().any(|passage| passage.id == "11")));
                if first.is_some() { chosen.len() } else { 0 }
            })
            .collect();
        assert!([0, 2, 3, 4].iter().all(|size| hops.iter().filter(|hop| *hop == size).count() > 20), "{hops:?}");
        assert_eq!(sizes.into_iter().collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert!((30..70).contains(&golden), "{golden}");
        assert_eq!(short_gold(&Question { answers: vec![long], ..Question::default() }), None);
    }
}
