//! Judging a batch: every wording in turn until a reply is readable, and a second judge where one must agree.

use crate::engine::{Ask, Gateway, GatewayError, Lane};
use crate::judge::{Candidate, Decision, WORDINGS, ask as question, read};
use std::sync::Arc;

/// What came of judging one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// The judge decided.
    Decided(Decision),
    /// It replied, but neither yes nor no, or two judges disagree.
    Undecided(String),
    /// It could not be asked.
    Failed(String),
}

/// Judges answers in their order.
pub async fn judge(
    gateway: &Arc<Gateway>,
    lane: &Arc<Lane>,
    candidates: &[Candidate<'_>],
    ask: &Ask,
) -> Result<Vec<Ruling>, GatewayError> {
    let mut rulings = alone(gateway, lane, candidates, ask).await?;
    let Some(second) = gateway.second_judge(lane.provider().name()) else { return Ok(rulings) };
    let again: Vec<usize> = (0..rulings.len())
        .filter(|at| matches!(rulings[*at], Ruling::Decided(_)) && !is_plain(&candidates[*at]))
        .collect();
    let asked: Vec<Candidate<'_>> = again.iter().map(|at| candidates[*at]).collect();
    let others = alone(gateway, second, &asked, ask).await?;
    for (at, other) in again.into_iter().zip(others) {
        rulings[at] = match (std::mem::replace(&mut rulings[at], Ruling::Failed(String::new())), other) {
            (Ruling::Decided(one), Ruling::Decided(two)) if one == two => Ruling::Decided(one),
            (Ruling::Decided(_), Ruling::Decided(_)) => Ruling::Undecided("the two judges disagree".to_owned()),
            (_, other) => other,
        };
    }
    Ok(rulings)
}

/// Nothing can be contained: a judge would only be tempted.
fn is_plain(candidate: &Candidate<'_>) -> bool {
    candidate.answer.trim().is_empty() || candidate.gold.iter().all(|gold| gold.trim().is_empty())
}

async fn alone(
    gateway: &Arc<Gateway>,
    lane: &Arc<Lane>,
    candidates: &[Candidate<'_>],
    ask: &Ask,
) -> Result<Vec<Ruling>, GatewayError> {
    let unread = || Ruling::Undecided("no reply of the judge could be read as yes or no".to_owned());
    let mut rulings: Vec<Ruling> = candidates
        .iter()
        .map(|candidate| if is_plain(candidate) { Ruling::Decided(Decision::Incorrect) } else { unread() })
        .collect();
    let mut open: Vec<usize> = (0..candidates.len()).filter(|at| !is_plain(&candidates[*at])).collect();
    for wording in 0..WORDINGS {
        if open.is_empty() {
            break;
        }
        let calls = open.iter().map(|at| question(&candidates[*at], wording)).collect();
        let answers = gateway.complete(lane, calls, ask).await?;
        let mut again = Vec::new();
        for (at, answer) in open.into_iter().zip(answers) {
            match answer.map(|answered| read(&answered.completion.text)) {
                Ok(Some(decision)) => rulings[at] = Ruling::Decided(decision),
                Ok(None) => again.push(at),
                Err(why) => rulings[at] = Ruling::Failed(format!("{}: {}", why.kind.label(), why.message)),
            }
        }
        open = again;
    }
    Ok(rulings)
}
