//! Which questions an evaluation may ask.
//!
//! A question is *eligible* when a gold answer can be found in the corpus at all, and is not given
//! away by the question. No ranking is consulted and no baseline is asked: a set filtered by whether
//! the baseline is right would make every gain free.

use crate::text::{contains, normalize, span_tokens, tokens};
use crate::types::Question;
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, HashMap};

/// Shorter golds (characters after normalisation) stand in too many passages by chance.
const MIN_GOLD_CHARS: usize = 4;

/// The golds of a question that could make it eligible, as span tokens: at least four characters, not
/// a bare number, not standing in the question.
fn candidates(question: &Question) -> Vec<Vec<String>> {
    let asked = span_tokens(&question.question);
    let mut found = Vec::new();
    for gold in &question.answers {
        let gold = normalize(gold);
        let number = gold.chars().all(|c| c.is_numeric() || c.is_whitespace());
        if number || gold.chars().count() < MIN_GOLD_CHARS {
            continue;
        }
        let gold = tokens(&gold);
        if !gold.is_empty() && !contains(&asked, &gold) {
            found.push(gold);
        }
    }
    found
}

/// All candidate golds of all questions as one prefix tree over interned tokens, so that the corpus
/// is read once, whatever the number of questions.
#[derive(Default)]
struct GoldTree {
    words: HashMap<String, u32>,
    edges: HashMap<(u32, u32), u32>,
    /// Per node: the questions one of whose golds ends there.
    ends: Vec<Vec<usize>>,
    found: Vec<bool>,
}

impl GoldTree {
    fn new(questions: &[Question]) -> Self {
        let mut tree = Self { ends: vec![Vec::new()], found: vec![false], ..Self::default() };
        for (index, question) in questions.iter().enumerate() {
            for gold in candidates(question) {
                tree.insert(index, gold);
            }
        }
        tree
    }

    fn insert(&mut self, question: usize, gold: Vec<String>) {
        let mut node = 0u32;
        for word in gold {
            let fresh = self.words.len() as u32;
            let word = *self.words.entry(word).or_insert(fresh);
            let fresh = self.ends.len() as u32;
            node = *self.edges.entry((node, word)).or_insert(fresh);
            if node == fresh {
                self.ends.push(Vec::new());
                self.found.push(false);
            }
        }
        self.ends[node as usize].push(question);
    }

    /// Marks every gold that stands in `text`.
    fn read(&mut self, text: &str) {
        for node in self.nodes(text) {
            self.found[node as usize] = true;
        }
    }

    /// Every node that a run of words of `text` leads to.
    fn nodes(&self, text: &str) -> Vec<u32> {
        let mut nodes = Vec::new();
        let words: Vec<Option<u32>> = span_tokens(text).iter().map(|word| self.words.get(word).copied()).collect();
        for start in 0..words.len() {
            let mut node = 0;
            for word in &words[start..] {
                let Some(&next) = word.and_then(|word| self.edges.get(&(node, word))) else { break };
                node = next;
                nodes.push(node);
            }
        }
        nodes
    }

    fn answerable(&self, questions: usize) -> Vec<bool> {
        let mut answerable = vec![false; questions];
        for (ends, found) in self.ends.iter().zip(&self.found) {
            for &question in ends.iter().filter(|_| *found) {
                answerable[question] = true;
            }
        }
        answerable
    }
}

/// Per question, whether one of its golds (≥ 4 characters, not a bare number, not in the question)
/// stands as a token span in some passage's title or text. `passages` yields (title, text); they are
/// read once and not kept.
pub fn answerable<T, U>(questions: &[Question], passages: impl IntoIterator<Item = (T, U)>) -> Vec<bool>
where
    T: AsRef<str>,
    U: AsRef<str>,
{
    let mut tree = GoldTree::new(questions);
    for (title, text) in passages {
        tree.read(title.as_ref());
        tree.read(text.as_ref());
    }
    tree.answerable(questions.len())
}

/// Per question, the places of the first `most` passages in which one of its golds stands as a token span; golds as in
/// [`answerable`], and where a question has no such gold, any of its golds. `passages` are read once and not kept.
pub fn holders<T, U>(questions: &[Question], passages: impl IntoIterator<Item = (T, U)>, most: usize) -> Vec<Vec<usize>>
where
    T: AsRef<str>,
    U: AsRef<str>,
{
    let mut tree = GoldTree { ends: vec![Vec::new()], found: vec![false], ..GoldTree::default() };
    for (index, question) in questions.iter().enumerate() {
        let mut golds = candidates(question);
        if golds.is_empty() {
            golds = question.answers.iter().map(|gold| tokens(&normalize(gold))).collect();
            golds.retain(|gold| !gold.is_empty());
        }
        for gold in golds {
            tree.insert(index, gold);
        }
    }
    let mut holders = vec![Vec::new(); questions.len()];
    for (place, (title, text)) in passages.into_iter().enumerate() {
        for node in tree.nodes(title.as_ref()).into_iter().chain(tree.nodes(text.as_ref())) {
            for &question in &tree.ends[node as usize] {
                let held: &mut Vec<usize> = &mut holders[question];
                if held.len() < most && held.last() != Some(&place) {
                    held.push(place);
                }
            }
        }
    }
    holders
}

/// A frozen evaluation set, and how it came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EligibleSet {
    /// The questions in their order.
    pub questions: Vec<Question>,
    /// [`digest`] of `questions`.
    pub sha256: String,
    /// Questions looked at.
    pub considered: usize,
    /// Left out because their normalised text is in the training split.
    pub in_training: usize,
    /// Left out because no gold of theirs stands in the corpus.
    pub unanswerable: usize,
}

/// The eligible set: questions not in the training split that the corpus can answer, in the order of
/// sha256(seed ‖ question), the first `n` (fewer when there are not so many).
pub fn select<'t, T, U>(
    questions: &[Question],
    training: impl IntoIterator<Item = &'t str>,
    passages: impl IntoIterator<Item = (T, U)>,
    seed: u64,
    n: usize,
) -> EligibleSet
where
    T: AsRef<str>,
    U: AsRef<str>,
{
    let training: BTreeSet<String> = training.into_iter().map(normalize).collect();
    let fresh: Vec<Question> =
        questions.iter().filter(|question| !training.contains(&normalize(&question.question))).cloned().collect();
    let answerable = answerable(&fresh, passages);
    let (considered, unseen) = (questions.len(), fresh.len());
    let eligible: Vec<Question> =
        fresh.into_iter().zip(&answerable).filter_map(|(question, &yes)| yes.then_some(question)).collect();
    let unanswerable = unseen - eligible.len();
    let questions = sample(eligible, seed, n);
    EligibleSet { sha256: digest(&questions), questions, considered, in_training: considered - unseen, unanswerable }
}

/// The first `n` in the order of [`order_key`], ties by dataset and id.
pub fn sample(mut questions: Vec<Question>, seed: u64, n: usize) -> Vec<Question> {
    questions.sort_by_cached_key(|question| {
        (order_key(seed, &question.question), question.dataset.clone(), question.id.clone())
    });
    questions.truncate(n);
    questions
}

/// sha256(seed ‖ question): the seed as eight little-endian bytes, then the question's UTF-8.
pub fn order_key(seed: u64, question: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update(question.as_bytes());
    hash.finalize().into()
}

/// sha256 (hex) of a list of questions: per question one line of JSON, `[dataset, id, question,
/// [answers…]]`.
pub fn digest(questions: &[Question]) -> String {
    let mut hash = Sha256::new();
    for question in questions {
        let fields = serde_json::json!([question.dataset, question.id, question.question, question.answers]);
        hash.update(fields.to_string().as_bytes());
        hash.update(b"\n");
    }
    hex::encode(hash.finalize())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn question(id: &str, text: &str, answers: &[&str]) -> Question {
        Question {
            id: id.into(),
            dataset: "d".into(),
            question: text.into(),
            answers: answers.iter().map(ToString::to_string).collect(),
        }
    }

    const CORPUS: [(&str, &str); 3] = [
        ("Seine", "The river runs through Paris, France."),
        ("Omar Sharif", "An actor born in 1932 in Alexandria"),
        ("Kyiv", "New-York is not here; naïve café"),
    ];

    #[test]
    fn eligible_by_the_definition() {
        for (text, answers, eligible) in [
            ("Where?", &["Paris"][..], true),
            ("Where?", &["paris france"], true),
            ("Who acted?", &["Omar Sharif"], true),
            ("Is Paris a town?", &["Paris"], false),
            ("Is Paris a town?", &["Paris", "Alexandria"], true),
            ("When?", &["1932"], false),
            ("Who?", &["Kyi"], false),
            ("Who?", &["ris"], false),
            ("What?", &["New York"], false),
            ("What?", &["naïve cafe"], false),
            ("What?", &["naïve café"], true),
            ("What?", &["Sharif An actor"], false),
            ("What?", &["the"], false),
            ("What?", &[], false),
        ] {
            assert_eq!(answerable(&[question("1", text, answers)], CORPUS), [eligible], "{text} {answers:?}");
        }
    }

    #[test]
    fn the_set_is_frozen() {
        let questions = [
            question("1", "Where is it?", &["Paris"]),
            question("2", "Who played?", &["Omar Sharif"]),
            question("3", "In training?", &["Paris"]),
            question("4", "Unknown?", &["Atlantis"]),
        ];
        let set = select(&questions, ["the In-Training"], CORPUS, 7, 10);
        assert_eq!((set.considered, set.in_training, set.unanswerable, set.questions.len()), (4, 0, 1, 3));
        let set = select(&questions, ["  in TRAINING "], CORPUS, 7, 10);
        assert_eq!((set.considered, set.in_training, set.unanswerable), (4, 1, 1));
        let keys: Vec<_> = set.questions.iter().map(|question| order_key(7, &question.question)).collect();
        assert!(keys.is_sorted() && keys.len() == 2);
        assert_eq!(set.sha256, digest(&set.questions));
        let reversed: Vec<Question> = questions.iter().rev().cloned().collect();
        assert_eq!(select(&reversed, ["in training"], CORPUS, 7, 10), set, "the order of files does not matter");
        assert_eq!(select(&questions, ["in training"], CORPUS, 7, 1).questions, set.questions[..1]);
    }

    #[test]
    fn ten_thousand_passages_by_fifteen_thousand_questions() {
        let word = |n: usize| format!("w{}", n % 9973);
        let passages = (0..10_000).map(|n| {
            let text: Vec<String> = (0..60).map(|k| word(n * 61 + k * k)).collect();
            (format!("title {n}"), text.join(" "))
        });
        let questions: Vec<Question> = (0..15_000)
            .map(|n| question(&n.to_string(), "?", &[&format!("{} {}", word(n * 61), word(n * 61 + 1)), "zzzz zzzz"]))
            .collect();
        let start = std::time::Instant::now();
        let found = answerable(&questions, passages).into_iter().filter(|yes| *yes).count();
        assert!(found >= 10_000, "{found}");
        assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
    }
}
