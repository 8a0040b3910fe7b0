//! The compared methods. An arm gathers passages for questions; the same frozen generator answers from them.

mod budget;
mod direct;
mod rag;
mod searcher;

pub use searcher::{Searcher, SearcherArm};

use crate::error::EvalError;
use s3_config::{ArmConfig, ArmMethod};
use s3_rollout::record::EpisodeRecord;
use s3_rollout::{Retrieve, RolloutError};
use s3_search::{Passage, Question};
use s3_telemetry::Shutdown;
use serde::{Deserialize, Serialize};

/// What an arm hands to the generator for one question.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gathered {
    /// In the order the generator reads them.
    pub passages: Vec<Passage>,
    /// Searches beside the raw question's.
    pub searches: u32,
    /// The searcher's episode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub episode: Option<EpisodeRecord>,
}

/// One method.
pub trait Arm {
    /// Passages for consecutive questions of the set; `first` is the place of the first one. Infrastructure
    /// failures are errors: nothing is handed over in their place.
    fn gather(&mut self, first: usize, questions: &[Question]) -> Result<Vec<Gathered>, RolloutError>;
}

/// What arms are made of.
pub struct Surroundings<'a> {
    /// Ranks passages.
    pub retriever: &'a dyn Retrieve,
    /// Stops episodes.
    pub shutdown: &'a Shutdown,
    /// Seed of the run.
    pub seed: u64,
}

/// Makes an arm; a searcher is loaded here. `budgets`: per question of the set, the passages that the arm
/// named by `budgetFrom` handed over.
pub fn open<'a>(
    arm: &'a ArmConfig,
    around: &'a Surroundings<'a>,
    budgets: Vec<usize>,
) -> Result<Box<dyn Arm + 'a>, EvalError> {
    Ok(match &arm.method {
        ArmMethod::Direct {} => Box::new(direct::Direct),
        ArmMethod::Rag { top_k } => Box::new(rag::Rag { retriever: around.retriever, top_k: *top_k }),
        ArmMethod::SameBudgetRag { .. } => Box::new(budget::SameBudget { retriever: around.retriever, budgets }),
        ArmMethod::S3 { searcher, search, temperature, batch } => {
            let searcher = Searcher::load(searcher)?;
            Box::new(SearcherArm { searcher, search, temperature: *temperature, batch: *batch, around })
        }
    })
}

/// The arm that this one takes its budgets from.
pub fn budget_from(arm: &ArmConfig) -> Option<&str> {
    match &arm.method {
        ArmMethod::SameBudgetRag { budget_from } => Some(budget_from),
        ArmMethod::Direct {} | ArmMethod::Rag { .. } | ArmMethod::S3 { .. } => None,
    }
}

/// Whether the arm plays episodes.
pub fn has_searcher(arm: &ArmConfig) -> bool {
    match &arm.method {
        ArmMethod::S3 { .. } => true,
        ArmMethod::Direct {} | ArmMethod::Rag { .. } | ArmMethod::SameBudgetRag { .. } => false,
    }
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
        let Some(from) = budget_from(arm) else { continue };
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

/// The questions' own texts, as queries.
fn raw(questions: &[Question]) -> Vec<String> {
    questions.iter().map(|question| question.question.clone()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use s3_config::RetrievalMethod;

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

    fn arm(name: &str, method: ArmMethod) -> ArmConfig {
        ArmConfig { name: name.into(), method }
    }

    #[test]
    fn budgets_are_equal_question_by_question() {
        let questions: Vec<Question> =
            (0..7).map(|at| Question { question: format!("q{at}"), ..Question::default() }).collect();
        let budgets = vec![0, 3, 1, 5, 2, 2, 4];
        let config = arm("same", ArmMethod::SameBudgetRag { budget_from: "s3".into() });
        let around = Surroundings { retriever: &Numbered, shutdown: &Shutdown::default(), seed: 1 };
        let mut same = open(&config, &around, budgets.clone()).unwrap();
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
        let same = |from: &str| ArmMethod::SameBudgetRag { budget_from: from.into() };
        let arms =
            [arm("same", same("rag")), arm("rag", ArmMethod::Rag { top_k: 3 }), arm("none", ArmMethod::Direct {})];
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
