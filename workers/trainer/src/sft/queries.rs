//! The queries that a trace may try, made of the question's own words.

use s3_config::SftConfig;
use s3_search::Question;
use s3_search::score::normalize;
use sha2::{Digest, Sha256};

/// Words that carry nothing for a retriever.
const STOP_WORDS: &[&str] = &[
    "a", "an", "and", "are", "as", "at", "be", "been", "by", "did", "do", "does", "for", "from", "had", "has", "have",
    "how", "if", "in", "into", "is", "it", "its", "many", "most", "much", "of", "on", "or", "that", "the", "their",
    "there", "these", "they", "this", "to", "was", "were", "what", "when", "where", "which", "who", "whom", "whose",
    "why", "will", "with", "would", "s", "name", "called", "can", "you",
];

/// Words of a gold answer that a query takes.
const HINDSIGHT_WORDS: usize = 6;

/// The queries to try; with a gold answer after the question's words, where the searcher is to learn to search for
/// what it believes.
pub(super) fn tried(question: &Question, seed: u64, sft: &SftConfig) -> Vec<String> {
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

/// Golds that do not stand in passages by chance: at least four characters and no bare number; all golds when
/// none is such.
pub(super) fn telling(golds: &[String]) -> Vec<String> {
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

#[cfg(test)]
mod tests {
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
}
