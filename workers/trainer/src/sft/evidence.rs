//! Traces that follow a set's marked evidence: each search asks for the next title that no block has shown yet.
//!
//! That is how a question of several hops is walked: its own words find the first passage, which names the second.
//! The title asked for stands in what was seen, so the searcher learns to read the way on, not to know it.

use super::protocol::{Hop, Opened, Plan, Planned, capped};
use s3_config::SearchConfig;
use s3_rollout::{Retrieve, RetrieverPeer, RolloutError, question_key};
use s3_search::score::normalize;
use s3_search::{Passage, Question};
use std::collections::BTreeMap;

/// Titles of the evidence by [`question_key`], in the set's order.
pub type Evidence = BTreeMap<String, Vec<String>>;

/// A trace being made.
struct Walk<'q> {
    opened: Opened<'q>,
    wanted: Vec<String>,
    hops: Vec<Hop>,
}

impl Walk<'_> {
    /// What the searcher sees now: the last search's passages, or the initial ones.
    fn window(&self) -> &[Passage] {
        self.hops.last().map_or(&self.opened.1, |hop| &hop.found)
    }

    /// Ids (from 1) of the evidence in the window.
    fn shown(&self, search: &SearchConfig) -> Vec<usize> {
        let wanted: Vec<String> = self.wanted.iter().map(|title| normalize(title)).collect();
        let held = |passage: &Passage| wanted.contains(&normalize(&passage.title));
        let ids = self.window().iter().enumerate().filter(|(_, passage)| held(passage)).map(|(at, _)| at + 1);
        capped(ids.collect(), search.max_selected)
    }

    /// The first title that no block has shown.
    fn next(&self) -> Option<&String> {
        let seen: Vec<String> = self
            .opened
            .1
            .iter()
            .chain(self.hops.iter().flat_map(|hop| &hop.found))
            .map(|passage| normalize(&passage.title))
            .collect();
        self.wanted.iter().find(|title| !seen.contains(&normalize(title)))
    }
}

/// Plans for the questions whose evidence can be reached within the searches allowed, and the other questions.
pub(super) fn follow<'q>(
    search: &SearchConfig,
    retriever: &RetrieverPeer,
    marked: &Evidence,
    opened: Vec<Opened<'q>>,
) -> Result<(Vec<Planned<'q>>, Vec<Opened<'q>>), RolloutError> {
    let (mut walks, mut rest) = (Vec::new(), Vec::new());
    for opened in opened {
        match marked.get(&question_key(opened.0)) {
            Some(wanted) => walks.push(Walk { opened, wanted: wanted.clone(), hops: Vec::new() }),
            None => rest.push(opened),
        }
    }
    let mut plans = Vec::new();
    for searches in 0..=search.max_searches {
        let (open, done): (Vec<Walk<'_>>, Vec<Walk<'_>>) = walks.into_iter().partition(|walk| walk.next().is_some());
        plans.extend(done.into_iter().map(|walk| {
            let last = walk.shown(search);
            (walk.opened, Plan { hops: walk.hops, last, found: true })
        }));
        walks = open;
        if searches == search.max_searches || walks.is_empty() {
            break;
        }
        let asked: Vec<String> = walks.iter().filter_map(|walk| walk.next().cloned()).collect();
        let found = retriever.retrieve(&asked, search.top_k, search.method)?;
        for ((walk, query), found) in walks.iter_mut().zip(asked).zip(found) {
            let ids = walk.shown(search);
            walk.hops.push(Hop { ids, query, found });
        }
    }
    // a title that its own name does not find is no example to learn from
    rest.extend(walks.into_iter().map(|walk| walk.opened));
    Ok((plans, rest))
}

/// Passages that a title is looked for among, when it is asked for.
const DEPTH: u32 = 5;

/// The evidence of each question, in the set's order: empty where none is marked, or where some title's name does not
/// find it.
pub(super) fn passages(
    search: &SearchConfig,
    retriever: &RetrieverPeer,
    marked: &Evidence,
    questions: &[&Question],
) -> Result<Vec<Vec<Passage>>, RolloutError> {
    let wanted: Vec<&[String]> = questions
        .iter()
        .map(|question| marked.get(&question_key(question)).map(Vec::as_slice).unwrap_or_default())
        .collect();
    let asked: Vec<String> = wanted.iter().copied().flatten().cloned().collect();
    if asked.is_empty() {
        return Ok(vec![Vec::new(); questions.len()]);
    }
    let found = retriever.retrieve(&asked, DEPTH, search.method)?;
    let mut titled = asked.iter().zip(found).map(|(title, found)| {
        let title = normalize(title);
        found.into_iter().find(|passage| normalize(&passage.title) == title)
    });
    Ok(wanted
        .iter()
        .map(|titles| titled.by_ref().take(titles.len()).collect::<Vec<_>>())
        .map(|passages| passages.into_iter().collect::<Option<Vec<_>>>().unwrap_or_default())
        .collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_next_title_is_the_first_unseen() {
        let question = Question { question: "q".into(), ..Question::default() };
        let passage = |title: &str| Passage { id: String::new(), title: title.into(), text: "text".into() };
        let search = SearchConfig { max_selected: 2, ..SearchConfig::default() };
        let mut walk = Walk {
            opened: (&question, vec![passage("Else"), passage("hamlet")]),
            wanted: vec!["Hamlet".into(), "William Shakespeare".into()],
            hops: Vec::new(),
        };
        assert_eq!((walk.next().unwrap().as_str(), walk.shown(&search)), ("William Shakespeare", vec![2]));
        let found = vec![passage("William Shakespeare"), passage("Hamlet"), passage("Hamlet")];
        walk.hops.push(Hop { ids: vec![2], query: "William Shakespeare".into(), found });
        assert_eq!((walk.next(), walk.shown(&search)), (None, vec![1, 2]));
    }
}
