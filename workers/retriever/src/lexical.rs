//! BM25 over an inverted index (Robertson and Zaragoza 2009, in Lucene's form without the constant
//! factor k1 + 1).
//!
//! score(q, d) = Σ over the query's terms of count · idf · tf / (tf + k1 · (1 − b + b · |d| / avg|d|)),
//! idf = ln(1 + (N − df + 0.5) / (df + 0.5)). Lengths are exact; Lucene rounds them to a byte.

use crate::analyzer::terms;
use crate::rank::{Ranked, TopK};
use s3_config::LexicalConfig;
use std::collections::{BTreeMap, HashMap};

/// Collects terms passage by passage, in corpus order.
#[derive(Default)]
pub struct LexicalBuilder {
    ids: HashMap<String, u32>,
    /// Per term: passage and frequency, by rising passage.
    postings: Vec<Vec<(u32, u32)>>,
    lengths: Vec<u32>,
}

impl LexicalBuilder {
    /// Adds the next passage.
    pub fn add(&mut self, title: &str, text: &str) {
        let position = self.lengths.len() as u32;
        let mut length = 0;
        for term in terms(title).chain(terms(text)) {
            length += 1;
            let fresh = self.postings.len() as u32;
            let id = *self.ids.entry(term).or_insert(fresh);
            if id == fresh {
                self.postings.push(Vec::new());
            }
            let list = &mut self.postings[id as usize];
            match list.last_mut() {
                Some((last, count)) if *last == position => *count += 1,
                _ => list.push((position, 1)),
            }
        }
        self.lengths.push(length);
    }

    /// The finished index, terms sorted by their bytes.
    pub fn finish(self, parameters: &LexicalConfig) -> LexicalIndex {
        let mut ids: Vec<(String, u32)> = self.ids.into_iter().collect();
        ids.sort_unstable();
        let mut index = LexicalIndex {
            k1: parameters.k1,
            b: parameters.b,
            lengths: self.lengths,
            term_bytes: Vec::new(),
            term_ends: Vec::with_capacity(ids.len()),
            posting_ends: Vec::with_capacity(ids.len()),
            passages: Vec::new(),
            frequencies: Vec::new(),
        };
        for (term, id) in ids {
            index.term_bytes.extend_from_slice(term.as_bytes());
            index.term_ends.push(index.term_bytes.len() as u64);
            for &(position, frequency) in &self.postings[id as usize] {
                index.passages.push(position);
                index.frequencies.push(frequency);
            }
            index.posting_ends.push(index.passages.len() as u64);
        }
        index
    }
}

/// The inverted index in memory. Its file form is in [`crate::lexical_file`].
#[derive(Clone, Debug, PartialEq)]
pub struct LexicalIndex {
    pub(crate) k1: f64,
    pub(crate) b: f64,
    /// Terms per passage.
    pub(crate) lengths: Vec<u32>,
    /// All terms run together, sorted; `term_ends` cuts them.
    pub(crate) term_bytes: Vec<u8>,
    pub(crate) term_ends: Vec<u64>,
    /// End of each term's part of `passages` and `frequencies`.
    pub(crate) posting_ends: Vec<u64>,
    pub(crate) passages: Vec<u32>,
    pub(crate) frequencies: Vec<u32>,
}

fn range(ends: &[u64], at: usize) -> std::ops::Range<usize> {
    let start = if at == 0 { 0 } else { ends[at - 1] as usize };
    start..ends[at] as usize
}

impl LexicalIndex {
    /// Number of passages.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether no passage is in it.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    fn find(&self, term: &str) -> Option<usize> {
        let (mut low, mut high) = (0, self.term_ends.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            match self.term_bytes[range(&self.term_ends, middle)].cmp(term.as_bytes()) {
                std::cmp::Ordering::Equal => return Some(middle),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// The best `k` passages that share a term with the query; fewer when fewer do.
    pub fn search(&self, query: &str, k: usize) -> Vec<Ranked> {
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for term in terms(query) {
            *counts.entry(term).or_default() += 1;
        }
        let total: u64 = self.lengths.iter().map(|length| u64::from(*length)).sum();
        let average = total as f64 / self.len().max(1) as f64;
        let mut scores = vec![0f64; self.len()];
        // Terms in their sorted order: a sum is the same however the query was worded.
        for (term, count) in counts {
            let Some(at) = self.find(&term) else { continue };
            let postings = range(&self.posting_ends, at);
            let frequency = postings.len() as f64;
            let idf = (1.0 + (self.len() as f64 - frequency + 0.5) / (frequency + 0.5)).ln();
            let weight = f64::from(count) * idf;
            for (&passage, &tf) in self.passages[postings.clone()].iter().zip(&self.frequencies[postings]) {
                let length = f64::from(self.lengths[passage as usize]);
                let tf = f64::from(tf);
                scores[passage as usize] += weight * tf / (tf + self.k1 * (1.0 - self.b + self.b * length / average));
            }
        }
        let mut top = TopK::new(k);
        for (position, score) in scores.into_iter().enumerate() {
            // idf is positive: a score of zero means no common term
            if score > 0.0 {
                top.push(position as u32, score);
            }
        }
        top.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::LN_2;

    fn index(texts: &[&str]) -> LexicalIndex {
        let mut builder = LexicalBuilder::default();
        for text in texts {
            builder.add("", text);
        }
        builder.finish(&LexicalConfig::default())
    }

    /// N = 4, lengths 3 2 5 2 (stop words are no terms), average 3; k1 = 0.9, b = 0.4.
    /// cat: df 2, idf ln(1 + 2.5/2.5) = ln 2; fish: df 2, the same; dog: df 1, idf ln(1 + 3.5/1.5) = 1.203973.
    #[test]
    fn scores_by_hand() {
        let index = index(&["the cat eats fish", "a cat nap", "dog dog bird fish bone", "green tree"]);
        let check = |query: &str, expected: &[(u32, f64)]| {
            let found = index.search(query, 10);
            assert_eq!(found.len(), expected.len(), "{query}: {found:?}");
            for (found, (position, score)) in found.iter().zip(expected) {
                assert_eq!(found.position, *position, "{query}");
                assert!((found.score - score).abs() < 1e-6, "{query}: {} is not {score}", found.score);
            }
        };
        // 1/(1 + .9·(.6 + .4·2/3)) = 0.561798; 1/(1 + .9·1) = 0.526316
        check("Cats", &[(1, LN_2 * 0.561_798), (0, LN_2 * 0.526_316)]);
        // 2/(2 + .9·(.6 + .4·5/3)) = 0.636943
        check("dog", &[(2, 1.203_973 * 0.636_943)]);
        // a repeated word counts twice: 1/(1 + .9·(.6 + .4·5/3)) = 0.467290
        check("fish and fish", &[(0, 2.0 * LN_2 * 0.526_316), (2, 2.0 * LN_2 * 0.467_290)]);
        check("cat fish", &[(0, 2.0 * LN_2 * 0.526_316), (1, 0.389_409), (2, 0.323_901)]);
        check("the unicorn", &[]);
    }

    #[test]
    fn equal_scores_keep_corpus_order() {
        let texts: Vec<&str> = (0..300).map(|at| if at % 3 == 0 { "apple tree" } else { "tree apple" }).collect();
        let found = index(&texts).search("tree", 40);
        assert_eq!(found.iter().map(|r| r.position).collect::<Vec<_>>(), (0..40).collect::<Vec<_>>());
    }
}
