//! What gains are measured against: the top passages of the raw question, answered by the frozen generator, or any other
//! method that needs no model of its own; kept for good.
//!
//! Answers are stored under everything that they depend on: question, index, method with its settings, number of
//! passages, ranking, generator and its decoding. What is missing is computed, never guessed; a new index or generator has keys
//! of its own. One file holds the answers of one set of parameters.

use crate::data::{self, Candidates};
use crate::run::Run;
use s3_artifacts::{Journal, digest_bytes, digest_json, write_atomic};
use s3_config::{ArmMethod, TrainerConfig};
use s3_rollout::arms::{self, Surroundings};
use s3_rollout::{
    Ask, GeneratorPeer, Link, Missing, Retrieve, RetrieverPeer, RolloutError, Scored, all_failed, score_answers,
    score_own,
};
use s3_search::score::{Verdict, gen_acc};
use s3_search::{Passage, Question};
use s3_telemetry::{Failure, Outcome};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;

/// So many lost answers in a row are an outage that waiting within this call does not end.
const GONE: usize = 8;

/// Parts that are asked at once.
const PARTS: usize = 4;

/// One stored answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BaselineAnswer {
    /// For people.
    pub question: String,
    /// Ids of the passages, best first.
    pub passages: Vec<String>,
    /// The answer; none when the generator refuses this question.
    pub answer: Option<String>,
    /// The judge's word, where there is a judge.
    pub judge: Option<Verdict>,
    /// Why there is no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// The stored answers of one set of parameters.
pub struct BaselineStore<'a> {
    journal: Journal<BaselineAnswer>,
    config: &'a TrainerConfig,
    link: &'a Link,
    retriever: &'a RetrieverPeer,
    generator: &'a GeneratorPeer,
}

impl<'a> BaselineStore<'a> {
    /// Opens the store of the parameters in force.
    pub fn open(
        run: &'a Run,
        retriever: &'a RetrieverPeer,
        generator: &'a GeneratorPeer,
    ) -> Result<Self, RolloutError> {
        let config = &run.config;
        let generation = &config.generator;
        let mut parameters = json!({
            "index": retriever.index_digest(),
            "method": config.search.method,
            "topK": config.baseline.top_k,
            "generator": generator.digest(),
            "model": generation.model,
            "template": generation.template,
            "maxTokens": generation.max_tokens,
            "passageWords": generation.passage_words,
            "judge": generation.judge,
        });
        if let Some(method) = &config.baseline.method {
            if matches!(method, ArmMethod::S3 { .. } | ArmMethod::SameBudgetRag { .. }) {
                let reason = "a training compares with naive RAG or with a method of the generator's model".to_owned();
                return Err(RolloutError::Reply { service: "baseline.method", reason });
            }
            parameters["arm"] = serde_json::to_value(method)
                .map_err(|error| RolloutError::Reply { service: "baseline.method", reason: error.to_string() })?;
        }
        let name = digest_json(&parameters)?[..16].to_owned();
        write_atomic(&config.baseline_store.join(format!("{name}.json")), parameters.to_string().as_bytes())?;
        let journal = Journal::open(&config.baseline_store.join(format!("{name}.journal")))?;
        Ok(Self { journal, config, link: &run.link, retriever, generator })
    }

    /// A verdict depends on the golds, an answer alone does not.
    fn key(&self, question: &Question) -> String {
        let golds: &[String] = if self.config.generator.judge.is_some() { &question.answers } else { &[] };
        digest_bytes(json!([question.question, golds]).to_string().as_bytes())
    }

    /// The baseline of a question, if it is known.
    pub fn get(&self, question: &Question) -> Option<Scored> {
        let stored = self.journal.get(&self.key(question))?;
        Some(match &stored.answer {
            Some(answer) => {
                let limit = self.config.generator.max_answer_tokens as usize;
                let verdict = gen_acc(answer, &question.answers, limit, stored.judge);
                Scored {
                    answer: Some(answer.clone()),
                    judge: stored.judge,
                    judge_reason: String::new(),
                    verdict,
                    failure: None,
                }
            }
            None => Scored::missing(stored.refused.clone().unwrap_or_default(), false),
        })
    }

    /// The stored passages' ids of a question, best first.
    pub fn passages(&self, question: &Question) -> Option<&[String]> {
        self.journal.get(&self.key(question)).map(|stored| stored.passages.as_slice())
    }

    /// Computes what is missing, in parts of the generator's chunk, each kept as it comes. Questions whose answer was lost in an
    /// outage stay missing and are counted; when nothing comes back any more, the call fails.
    pub fn ensure(&mut self, questions: &[Question], mut each: impl FnMut(usize)) -> Result<usize, RolloutError> {
        let missing: Vec<&Question> = {
            let mut seen = std::collections::BTreeSet::new();
            let new = |question: &&Question| {
                let key = self.key(question);
                self.journal.get(&key).is_none() && seen.insert(key)
            };
            questions.iter().filter(new).collect()
        };
        let parts: Vec<&[&Question]> = missing.chunks(self.config.generator.chunk.max(1)).collect();
        let (config, link, retriever, generator) = (self.config, self.link, self.retriever, self.generator);
        let ask = |part: &[&Question]| -> Result<(Vec<Vec<Passage>>, Vec<Scored>), RolloutError> {
            link.check()?;
            let Some(method) = &config.baseline.method else {
                let queries: Vec<String> = part.iter().map(|question| question.question.clone()).collect();
                let found = retriever.retrieve(&queries, config.baseline.top_k, config.search.method)?;
                let asks: Vec<Ask> =
                    part.iter().zip(&found).map(|(question, passages)| Ask { question, passages }).collect();
                let scored = score_answers(generator, &asks)?;
                return Ok((found, scored));
            };
            let around = Surroundings {
                retriever,
                chat: generator,
                passage_words: config.generator.passage_words,
                shutdown: &link.shutdown,
                seed: config.seed,
            };
            gathered(method, around, generator, part)
        };
        let (next, given_up) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (mut lost, mut gone, mut done) = (0, 0, 0);
        std::thread::scope(|scope| {
            let (sender, answers) = channel();
            for _ in 0..PARTS.min(parts.len()) {
                let sender = sender.clone();
                scope.spawn(|| {
                    let sender = sender;
                    while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if given_up.load(Ordering::Relaxed) || sender.send((*part, ask(part))).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            for (part, answer) in answers {
                let kept = answer.and_then(|(found, scored)| {
                    gone = if scored.iter().all(is_outage) { gone + scored.len() } else { 0 };
                    if let Some(error) = all_failed(&scored).filter(|_| gone >= part.len().max(GONE)) {
                        return Err(error);
                    }
                    lost += self.store(part, &found, scored)?;
                    Ok(())
                });
                if kept.is_err() {
                    given_up.store(true, Ordering::Relaxed);
                    return kept;
                }
                done += part.len();
                each(done);
            }
            Ok(())
        })?;
        Ok(lost)
    }

    /// Keeps a part's answers; how many were lost.
    fn store(
        &mut self,
        part: &[&Question],
        found: &[Vec<Passage>],
        scored: Vec<Scored>,
    ) -> Result<usize, RolloutError> {
        let mut units = Vec::with_capacity(part.len());
        for ((question, passages), one) in part.iter().zip(found).zip(scored) {
            // an outage is no property of the question; a refusal is, and so is a verdict
            if is_outage(&one) || one.judge == Some(Verdict::Failed) {
                continue;
            }
            let stored = BaselineAnswer {
                question: question.question.clone(),
                passages: passages.iter().map(|passage| passage.id.clone()).collect(),
                answer: one.answer,
                judge: one.judge,
                refused: one.failure.map(|missing| missing.reason),
            };
            units.push((self.key(question), stored));
        }
        let lost = part.len() - units.len();
        self.journal.append_all(units)?;
        Ok(lost)
    }
}

/// What a method finds and answers itself, or what the generator answers from it.
fn gathered(
    method: &ArmMethod,
    around: Surroundings<'_>,
    generator: &GeneratorPeer,
    part: &[&Question],
) -> Result<(Vec<Vec<Passage>>, Vec<Scored>), RolloutError> {
    let questions: Vec<Question> = part.iter().map(|question| (*question).clone()).collect();
    let none = || RolloutError::Reply { service: "baseline.method", reason: "it needs a model of its own".to_owned() };
    let all = arms::open(method, around)?.ok_or_else(none)?.gather(0, &questions)?;
    let mut scored: Vec<Option<Scored>> =
        all.iter().map(|one| one.refused.as_ref().map(|reason| Scored::missing(reason.clone(), false))).collect();
    let places = |own: bool| -> Vec<usize> {
        (0..all.len()).filter(|&at| all[at].refused.is_none() && all[at].own.is_some() == own).collect()
    };
    let (owned, read) = (places(true), places(false));
    let whose: Vec<&Question> = owned.iter().map(|&at| part[at]).collect();
    let answers: Vec<String> = owned.iter().filter_map(|&at| all[at].own.clone()).collect();
    let asks: Vec<Ask> = read.iter().map(|&at| Ask { question: part[at], passages: &all[at].passages }).collect();
    let found = score_own(generator, &whose, &answers)?.into_iter().chain(score_answers(generator, &asks)?);
    for (at, one) in owned.into_iter().chain(read).zip(found) {
        scored[at] = Some(one);
    }
    let lost = || Scored::missing("the generator answered nothing".into(), false);
    let scored = scored.into_iter().map(|one| one.unwrap_or_else(lost)).collect();
    Ok((all.into_iter().map(|one| one.passages).collect(), scored))
}

fn is_outage(one: &Scored) -> bool {
    matches!(one.failure, Some(Missing { outage: true, .. }))
}

/// The questions of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Chosen {
    /// To train on, in order.
    pub train: Vec<Question>,
    /// Held out.
    pub probe: Vec<Question>,
    /// Left out because the baseline answers them.
    pub solved: usize,
}

/// Reads the files and applies the filters that need no other worker.
pub fn candidates(run: &Run) -> Result<Candidates, Failure> {
    let config = &run.config;
    run.progress.phase("choose questions", 0);
    let train = data::load_questions(&config.data.datasets)?;
    let held_out = match &config.probe {
        Some(probe) => data::load_questions(&probe.datasets)?,
        None => Vec::new(),
    };
    let mut corpus = Vec::new();
    if let Some(path) = &config.data.corpus {
        data::read_corpus(path, |passage| corpus.push((passage.title, passage.text)))?;
    }
    let corpus = config.data.corpus.is_some().then_some(corpus.as_slice());
    let chosen = data::candidates(&config.data, config.probe.as_ref(), config.seed, train, held_out, corpus)?;
    if chosen.train.is_empty() {
        return Err(Failure::input(
            "no training question is left after the filters of `data`; relax them or add files",
        ));
    }
    Ok(chosen)
}

/// Chooses the questions; asks the baseline, where there is one, only as far as the choice needs it.
pub fn choose(run: &Run, store: Option<&mut BaselineStore<'_>>) -> Result<Chosen, Failure> {
    let config = &run.config;
    let Candidates { train, probe } = candidates(run)?;
    let limit = config.data.limit.unwrap_or(usize::MAX);
    if !config.data.drop_baseline_solved {
        return Ok(Chosen { train: train.into_iter().take(limit).collect(), probe, solved: 0 });
    }
    let Some(store) = store else {
        return Err(Failure::input(
            "data.dropBaselineSolved needs a baseline, and the searcher answers itself; set it to false",
        ));
    };
    let (mut kept, mut solved) = (Vec::new(), 0);
    let total = if limit == usize::MAX { train.len() } else { limit } as u64;
    run.progress.phase("baseline answers", total);
    for part in train.chunks(config.generator.chunk.max(1)) {
        if kept.len() >= limit {
            break;
        }
        let lost = store.ensure(part, |_| ())?;
        if lost > 0 {
            // which questions are trained on may not depend on an outage
            let reason = format!("{lost} baseline answers could not be had");
            return Err(RolloutError::Incomplete { reason }.into());
        }
        for question in part {
            match store.get(question).map(|scored| scored.verdict) {
                Some(Verdict::Correct) => solved += 1,
                Some(Verdict::Incorrect | Verdict::Undecided) => kept.push(question.clone()),
                // the generator refuses this question: nothing can be gained or lost on it
                Some(Verdict::Failed) | None => {}
            }
        }
        run.progress.done((if limit == usize::MAX { kept.len() + solved } else { kept.len() }) as u64);
    }
    kept.truncate(limit);
    if kept.is_empty() {
        return Err(Failure::input("the baseline answers every training question; set data.dropBaselineSolved: false"));
    }
    Ok(Chosen { train: kept, probe, solved })
}

/// `s3-trainer baseline`: answers the chosen and the held-out questions.
pub fn command(run: &Run) -> Result<Outcome, Failure> {
    let (retriever, generator) = (run.retriever()?, run.generator()?);
    let mut store = BaselineStore::open(run, &retriever, &generator)?;
    let chosen = choose(run, Some(&mut store))?;
    let mut all = chosen.train.clone();
    all.extend(chosen.probe.iter().cloned());
    run.progress.phase("baseline answers", all.len() as u64);
    let lost = store.ensure(&all, |done| run.progress.done(done as u64))?;
    if lost > 0 {
        let reason = format!("{lost} of {} baseline answers could not be had", all.len());
        return Err(RolloutError::Incomplete { reason }.into());
    }
    let scored: Vec<(String, Option<Scored>)> =
        all.iter().map(|question| (s3_rollout::question_key(question), store.get(question))).collect();
    let right =
        |of: &[Question]| of.iter().filter(|q| store.get(q).is_some_and(|one| one.verdict == Verdict::Correct)).count();
    let digest = digest_json(&scored).map_err(RolloutError::from)?;
    let summary = json!({
        "questions": chosen.train.len(),
        "solvedAndLeftOut": chosen.solved,
        "right": right(&chosen.train),
        "probeQuestions": chosen.probe.len(),
        "probeRight": right(&chosen.probe),
    });
    Ok(Outcome { digest, summary })
}
