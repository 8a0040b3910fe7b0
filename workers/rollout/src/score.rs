//! From selected passages to answers and verdicts.

use crate::error::RolloutError;
use crate::peers::{AnswerOutcome, AnswerSource, Judged};
use s3_search::score::{Verdict, gen_acc};
use s3_search::{Passage, Question};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One question with the passages that it is answered from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask<'a> {
    /// The question.
    pub question: &'a Question,
    /// What the generator reads.
    pub passages: &'a [Passage],
}

/// An answer and what it is worth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scored {
    /// The generator's answer; none when it could not be had.
    pub answer: Option<String>,
    /// The judge's word, where there is a judge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge: Option<Verdict>,
    /// Why the judge did not decide, as the gateway says it; empty where it did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub judge_reason: String,
    /// Generation accuracy; `Failed` masks the sample.
    pub verdict: Verdict,
    /// Why there is no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Missing>,
}

/// Why an answer is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// What happened.
    pub reason: String,
    /// The service was out of reach, as opposed to refusing: asking again later may help.
    pub outage: bool,
}

impl Scored {
    /// An answer that a searcher gave itself, by exact match; none where it gave none.
    pub fn own(answer: Option<&str>, golds: &[String]) -> Self {
        let right = answer.is_some_and(|answer| s3_search::script::qa_em::matches(answer, golds));
        Self {
            answer: answer.map(str::to_owned),
            judge: None,
            judge_reason: String::new(),
            verdict: right.into(),
            failure: None,
        }
    }

    /// A sample without an answer; it is masked.
    pub fn missing(reason: String, outage: bool) -> Self {
        let failure = Some(Missing { reason, outage });
        Self { answer: None, judge: None, judge_reason: String::new(), verdict: Verdict::Failed, failure }
    }
}

/// Asks once what is asked several times (the samples of a group often select the same passages): the first
/// place of every distinct item, and for each item the index of its representative.
pub fn distinct(items: &[Ask<'_>]) -> (Vec<usize>, Vec<usize>) {
    let mut seen: BTreeMap<(&str, &[Passage]), usize> = BTreeMap::new();
    let mut first = Vec::new();
    let of = items
        .iter()
        .enumerate()
        .map(|(at, item)| {
            *seen.entry((item.question.question.as_str(), item.passages)).or_insert_with(|| {
                first.push(at);
                first.len() - 1
            })
        })
        .collect();
    (first, of)
}

/// Answers and scores items, in parts of the configured chunk. An item that could not be answered or judged is
/// masked; see [`all_failed`] for when that is no longer a few lost samples.
pub fn score_answers(source: &dyn AnswerSource, items: &[Ask<'_>]) -> Result<Vec<Scored>, RolloutError> {
    let config = source.config();
    let mut scored = Vec::with_capacity(items.len());
    for part in items.chunks(config.chunk.max(1)) {
        let asked: Vec<(&Question, &[Passage])> = part.iter().map(|item| (item.question, item.passages)).collect();
        let outcomes = source.answer(&asked)?;
        scored.extend(score_part(source, part, outcomes)?);
    }
    Ok(scored)
}

/// Scores answers that methods gave themselves, by the same rule. No answer at all is a wrong one.
pub fn score_own(
    source: &dyn AnswerSource,
    questions: &[&Question],
    answers: &[String],
) -> Result<Vec<Scored>, RolloutError> {
    let mut scored = Vec::with_capacity(questions.len());
    let items: Vec<(Ask<'_>, &String)> =
        questions.iter().map(|question| Ask { question, passages: &[] }).zip(answers).collect();
    for part in items.chunks(source.config().chunk.max(1)) {
        let asks: Vec<Ask<'_>> = part.iter().map(|(ask, _)| *ask).collect();
        let given = part.iter().map(|(_, answer)| AnswerOutcome::Answer((*answer).clone())).collect();
        scored.extend(score_part(source, &asks, given)?);
    }
    Ok(scored)
}

fn score_part(
    source: &dyn AnswerSource,
    part: &[Ask<'_>],
    outcomes: Vec<AnswerOutcome>,
) -> Result<Vec<Scored>, RolloutError> {
    let limit = source.config().max_answer_tokens as usize;
    let verdicts = judged(source, part, &outcomes)?;
    let scored = part.iter().zip(outcomes).zip(verdicts).map(|((item, outcome), judged)| match outcome {
        AnswerOutcome::Answer(answer) => {
            let (judge, judge_reason) = judged.map(|judged| (judged.verdict, judged.reason)).unzip();
            let verdict = gen_acc(&answer, &item.question.answers, limit, judge);
            let judge_reason = judge_reason.unwrap_or_default();
            Scored { answer: Some(answer), judge, judge_reason, verdict, failure: None }
        }
        AnswerOutcome::Failed { reason, outage } => Scored::missing(reason, outage),
    });
    Ok(scored.collect())
}

/// The error to end with when not one item has an answer: the service is down or refuses everything. Nothing
/// should be recorded then, so that a later run asks again. None when some item was answered or none was asked.
pub fn all_failed(scored: &[Scored]) -> Option<RolloutError> {
    let missing: Vec<&Missing> = scored.iter().map(|one| one.failure.as_ref()).collect::<Option<_>>()?;
    let reason = missing.first()?.reason.clone();
    Some(RolloutError::AllFailed { reason, outage: missing.iter().any(|one| one.outage) })
}

/// The judge's word on every answered item; `None` where there is no judge or no answer.
fn judged(
    source: &dyn AnswerSource,
    items: &[Ask<'_>],
    outcomes: &[AnswerOutcome],
) -> Result<Vec<Option<Judged>>, RolloutError> {
    let mut verdicts = vec![None; items.len()];
    if source.config().judge.is_none() {
        return Ok(verdicts);
    }
    let answered: Vec<(usize, &str)> = outcomes
        .iter()
        .enumerate()
        .filter_map(|(at, outcome)| match outcome {
            // an answer of no word states nothing, whatever a judge would say
            AnswerOutcome::Answer(answer) if !answer.is_empty() => Some((at, answer.as_str())),
            AnswerOutcome::Answer(_) | AnswerOutcome::Failed { .. } => None,
        })
        .collect();
    if answered.is_empty() {
        return Ok(verdicts);
    }
    let asked: Vec<(&Question, &str)> = answered.iter().map(|&(at, answer)| (items[at].question, answer)).collect();
    for ((at, _), verdict) in answered.iter().zip(source.judge(&asked)?) {
        verdicts[*at] = Some(verdict);
    }
    Ok(verdicts)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use s3_config::{Endpoint, GeneratorConfig};

    /// Answers with the first passage's text; questions that start with "down" fail.
    struct Fake(GeneratorConfig);

    impl AnswerSource for Fake {
        fn config(&self) -> &GeneratorConfig {
            &self.0
        }
        fn answer(&self, items: &[(&Question, &[Passage])]) -> Result<Vec<AnswerOutcome>, RolloutError> {
            Ok(items
                .iter()
                .map(|(question, passages)| {
                    if question.question.starts_with("down") {
                        return AnswerOutcome::Failed { reason: "no route".into(), outage: true };
                    }
                    AnswerOutcome::Answer(passages[0].text.clone())
                })
                .collect())
        }
        fn judge(&self, items: &[(&Question, &str)]) -> Result<Vec<Judged>, RolloutError> {
            let one = |answer: &str| match answer {
                "Berlin" => Judged { verdict: Verdict::Undecided, reason: "the two judges disagree".into() },
                answer => Judged { verdict: Verdict::from(!answer.contains("not")), reason: String::new() },
            };
            Ok(items.iter().map(|(_, answer)| one(answer)).collect())
        }
    }

    fn fake(judge: bool) -> Fake {
        let endpoint = Endpoint { address: "http://127.0.0.1:1".into(), deadline_ms: 1, attempts: 1, tls: None };
        Fake(GeneratorConfig {
            endpoint,
            model: String::new(),
            template: "t".into(),
            max_tokens: 8,
            max_answer_tokens: 4,
            passage_words: 0,
            judge: judge.then(|| "judge".into()),
            caller: String::new(),
            token_file: None,
            chunk: 2,
        })
    }

    fn question(text: &str) -> Question {
        Question { id: text.into(), dataset: "d".into(), question: text.into(), answers: vec!["Paris".into()] }
    }

    fn passage(text: &str) -> Vec<Passage> {
        vec![Passage { id: text.into(), title: String::new(), text: text.into() }]
    }

    #[test]
    fn failures_are_masked_and_never_wrong() {
        let questions = [question("a"), question("down b"), question("c"), question("d")];
        let passages = [passage("Paris"), passage("Paris"), passage("Rome"), passage("not Paris")];
        let items: Vec<Ask> =
            questions.iter().zip(&passages).map(|(question, passages)| Ask { question, passages }).collect();
        let scored = score_answers(&fake(true), &items).unwrap();
        let verdicts: Vec<Verdict> = scored.iter().map(|one| one.verdict).collect();
        assert_eq!(verdicts, [Verdict::Correct, Verdict::Failed, Verdict::Correct, Verdict::Incorrect]);
        let scored = score_answers(&fake(false), &items).unwrap();
        let verdicts: Vec<Verdict> = scored.iter().map(|one| one.verdict).collect();
        // a denied span states nothing, with a judge or without
        assert_eq!(verdicts, [Verdict::Correct, Verdict::Failed, Verdict::Incorrect, Verdict::Incorrect]);
        assert!(all_failed(&scored).is_none());
        let berlin = passage("Berlin");
        let undecided = score_answers(&fake(true), &[Ask { question: &questions[0], passages: &berlin }]).unwrap();
        assert_eq!(undecided[0].judge_reason, "the two judges disagree");
        let down = score_answers(&fake(false), &items[1..2]).unwrap();
        assert!(matches!(all_failed(&down), Some(RolloutError::AllFailed { outage: true, .. })));
        assert!(all_failed(&score_answers(&fake(true), &[]).unwrap()).is_none());
    }

    #[test]
    fn equal_items_are_asked_once() {
        let questions = [question("a"), question("b")];
        let passages = [passage("x"), passage("y")];
        let ask = |q: usize, p: usize| Ask { question: &questions[q], passages: &passages[p] };
        let (first, of) = distinct(&[ask(0, 0), ask(0, 1), ask(0, 0), ask(1, 0), ask(0, 1)]);
        assert_eq!((first, of), (vec![0, 1, 3], vec![0, 1, 0, 2, 1]));
    }
}
