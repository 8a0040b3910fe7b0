//! The compared methods. An arm gathers passages for questions; the same frozen generator answers from them, unless
//! the method answers itself.
//!
//! * [`s3_rollout::arms`]: nothing, the top passages of the raw question, and every other paper's method.
//! * `budget`: as many of the top passages as another arm's.
//! * `searcher`: s3, a trained searcher's episodes.
//! * `place`, `control`: where an arm searches.

mod budget;
mod control;
mod place;
mod searcher;

pub use place::Places;
pub use s3_rollout::arms::{Arm, Gathered, Searcher, Surroundings};
use searcher::SearcherArm;

use crate::error::EvalError;
use crate::units::ArmResults;
use s3_config::{AnswerBy, ArmConfig, ArmMethod, BudgetUnit, Control};
use s3_rollout::arms::{self, asked, raw};

/// Makes an arm; a searcher is loaded here. `budgets`: per question of the set, what the arm named by `budgetFrom`
/// handed over.
pub fn open<'a>(
    arm: &'a ArmConfig,
    around: Surroundings<'a>,
    budgets: Vec<usize>,
) -> Result<Box<dyn Arm + 'a>, EvalError> {
    if let Some(simple) = arms::open(&arm.method, around)? {
        return Ok(simple);
    }
    let Surroundings { retriever, passage_words, .. } = around;
    match &arm.method {
        ArmMethod::SameBudgetRag { budget_by, ranking, .. } => {
            let (by, ranking) = (*budget_by, *ranking);
            Ok(Box::new(budget::SameBudget { retriever, budgets, by, ranking, passage_words }))
        }
        ArmMethod::S3 { searcher, search, temperature, top_p, batch } => {
            let searcher = Searcher::load(searcher)?;
            let (temperature, top_p, batch) = (*temperature, *top_p, *batch);
            Ok(Box::new(SearcherArm { searcher, search, temperature, top_p, batch, around }))
        }
        _ => Err(EvalError::Config(format!("arm {:?}: its method cannot be made", arm.name))),
    }
}

/// The arm that this one takes its budgets from, and what is counted.
pub fn budget_from(arm: &ArmConfig) -> Option<(&str, BudgetUnit)> {
    match &arm.method {
        ArmMethod::SameBudgetRag { budget_from, budget_by, .. } => Some((budget_from, *budget_by)),
        _ => None,
    }
}

/// What an arm handed over, question by question.
pub fn budgets(of: &ArmResults, by: BudgetUnit, passage_words: u32) -> Vec<usize> {
    of.gathered.iter().map(|one| budget::budget(&one.passages, by, passage_words)).collect()
}

/// Whether the arm plays episodes.
pub fn has_searcher(arm: &ArmConfig) -> bool {
    matches!(arm.method, ArmMethod::S3 { .. }) || arm.method.played().is_some()
}

/// What a reader of the table must know of the arms themselves.
pub fn notes(arms: &[ArmConfig]) -> Vec<String> {
    let mut notes = Vec::new();
    for arm in arms {
        let (name, control) = (&arm.name, arm.retriever.as_ref().and_then(|own| own.control));
        match control {
            Some(Control::Oracle) => notes.push(format!(
                "{name}: an oracle, no method: its retriever looks at the gold answers and finds passages with one first."
            )),
            Some(Control::Evidence) => notes.push(format!(
                "{name}: an oracle, no method: its retriever finds the passages that the set marks as evidence first."
            )),
            Some(Control::Random) => notes.push(format!("{name}: a control: its retriever finds random passages.")),
            Some(Control::Empty) => notes.push(format!("{name}: a control: its retriever finds nothing.")),
            None => {}
        }
        if arm.method.played().is_some_and(|(_, played)| played.answer == AnswerBy::Own) {
            notes.push(format!("{name}: answers itself; the generator reads none of its passages."));
        }
    }
    notes
}

/// The order in which arms run: those whose budgets others take come first, else as configured. Also refuses
/// arms that cannot be told apart or that name no other arm.
pub fn order(arms: &[ArmConfig]) -> Result<Vec<usize>, EvalError> {
    if arms.is_empty() {
        return Err(EvalError::Config("arms: name at least one method to evaluate".into()));
    }
    for (at, arm) in arms.iter().enumerate() {
        if arm.name.is_empty() || arm.name.contains('/') {
            return Err(EvalError::Config(format!("arm name {:?} is empty or has a slash", arm.name)));
        }
        if arms[..at].iter().any(|other| other.name == arm.name) {
            return Err(EvalError::Config(format!("arm name {:?} stands twice; give each arm its own", arm.name)));
        }
        let Some((from, _)) = budget_from(arm) else { continue };
        match arms.iter().find(|other| other.name == from) {
            None => {
                return Err(EvalError::Config(format!("arm {:?}: budgetFrom names no arm: {from:?}", arm.name)));
            }
            Some(other) if budget_from(other).is_some() => {
                return Err(EvalError::Config(format!(
                    "arm {:?}: budgetFrom names {from:?}, which has no budget of its own",
                    arm.name
                )));
            }
            Some(_) => {}
        }
    }
    let (mut order, mut later) = (Vec::new(), Vec::new());
    for (at, arm) in arms.iter().enumerate() {
        if budget_from(arm).is_none() { &mut order } else { &mut later }.push(at);
    }
    order.append(&mut later);
    Ok(order)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use s3_config::RetrievalMethod;
    use s3_rollout::{ChatSource, Retrieve, RolloutError};
    use s3_search::{Passage, Question};
    use s3_telemetry::Shutdown;

    pub(super) struct Numbered;

    impl Retrieve for Numbered {
        fn retrieve(
            &self,
            queries: &[String],
            top_k: u32,
            _: RetrievalMethod,
        ) -> Result<Vec<Vec<Passage>>, RolloutError> {
            let passage = |query: &String, at| Passage { id: format!("{query}/{at}"), ..Passage::default() };
            Ok(queries.iter().map(|query| (0..top_k).map(|at| passage(query, at)).collect()).collect())
        }
    }

    struct Silent;

    impl ChatSource for Silent {
        fn complete(
            &self,
            _: &[(&[s3_search::Message], Vec<String>)],
            _: s3_rollout::ChatSampling,
        ) -> Result<Vec<s3_rollout::CompletionOutcome>, RolloutError> {
            Ok(Vec::new())
        }
    }

    fn same_budget(from: &str) -> ArmMethod {
        let ranking = RetrievalMethod::Default;
        ArmMethod::SameBudgetRag { budget_from: from.into(), budget_by: BudgetUnit::Passages, ranking }
    }

    fn arm(name: &str, method: ArmMethod) -> ArmConfig {
        ArmConfig { name: name.into(), retriever: None, method }
    }

    #[test]
    fn budgets_are_equal_question_by_question() {
        let questions: Vec<Question> =
            (0..7).map(|at| Question { question: format!("q{at}"), ..Question::default() }).collect();
        let budgets = vec![0, 3, 1, 5, 2, 2, 4];
        let config = arm("same", same_budget("s3"));
        let shutdown = Shutdown::default();
        let around =
            Surroundings { retriever: &Numbered, chat: &Silent, passage_words: 0, shutdown: &shutdown, seed: 1 };
        let mut same = open(&config, around, budgets.clone()).unwrap();
        let mut counts = Vec::new();
        for first in [0, 3, 6] {
            let chunk = &questions[first..(first + 3).min(7)];
            for (question, gathered) in chunk.iter().zip(same.gather(first, chunk).unwrap()) {
                let wanted: Vec<String> =
                    (0..gathered.passages.len()).map(|at| format!("{}/{at}", question.question)).collect();
                let ids: Vec<&str> = gathered.passages.iter().map(|passage| passage.id.as_str()).collect();
                assert_eq!(ids, wanted, "the top passages of the raw question, in order");
                counts.push(gathered.passages.len());
            }
        }
        assert_eq!(counts, budgets);
    }

    #[test]
    fn budgets_are_taken_after_they_are_known() {
        let same = same_budget;
        let rag = ArmMethod::Rag { top_k: 3, ranking: RetrievalMethod::Default };
        let arms = [arm("same", same("rag")), arm("rag", rag), arm("none", ArmMethod::Direct {})];
        assert_eq!(order(&arms).unwrap(), [1, 2, 0]);
        for bad in [
            vec![arm("a", same("b"))],
            vec![arm("a", same("a"))],
            vec![arm("a", ArmMethod::Direct {}), arm("a", ArmMethod::Direct {})],
            vec![arm("a/b", ArmMethod::Direct {})],
            vec![],
        ] {
            assert!(order(&bad).is_err(), "{bad:?}");
        }
    }
}
