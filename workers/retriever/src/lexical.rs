//! BM25 over an inverted index (Robertson and Zaragoza 2009), to the float as Lucene computes it, so that
//! rankings are those of Anserini, by which retrieval results are published.
//!
//! score(q, d) = Σ over the query's terms of count · idf · tf / (tf + k1 · (1 − b + b · |d| / avg|d|)),
//! idf = ln(1 + (N − df + 0.5) / (df + 0.5)), without the constant factor k1 + 1. As in Lucene a length is
//! rounded down to one of 256 values ([`length`]), a term's part is an f32, and the sum is rounded to f32.
//!
//! The parts ("impacts") are computed by the build. A search adds them up window by window, the rarest
//! words first; words that together cannot lift a passage into the best k are only looked up for the
//! passages that the others brought near (`MaxScore`: Turtle and Flood 1995). Sums of f32 in f64 are exact, so
//! their order changes nothing.

use crate::analyzer::terms;
use crate::rank::{Ranked, TopK};
use s3_config::LexicalConfig;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

/// Passages whose sums are kept at once: they fit the first cache.
const WINDOW: usize = 4096;

thread_local! {
    /// Sums of one window; all zero between searches.
    static SUMS: RefCell<Vec<f64>> = RefCell::new(vec![0.0; WINDOW]);
}

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
        let norms = self.norms(parameters);
        let documents = self.lengths.iter().filter(|length| **length > 0).count() as f64;
        let mut ids: Vec<(String, u32)> = self.ids.into_iter().collect();
        ids.sort_unstable();
        let mut index = LexicalIndex {
            k1: parameters.k1,
            b: parameters.b,
            len: self.lengths.len(),
            term_bytes: Vec::new(),
            term_ends: Vec::with_capacity(ids.len()),
            posting_ends: Vec::with_capacity(ids.len()),
            passages: Vec::new(),
            impacts: Vec::new(),
            maxima: Vec::new(),
        };
        for (term, id) in ids {
            index.term_bytes.extend_from_slice(term.as_bytes());
            index.term_ends.push(index.term_bytes.len() as u64);
            let postings = &self.postings[id as usize];
            let frequency = postings.len() as f64;
            let idf = (1.0 + (documents - frequency + 0.5) / (frequency + 0.5)).ln() as f32;
            for &(position, count) in postings {
                let norm = norms[usize::from(length::encode(self.lengths[position as usize]))];
                index.passages.push(position);
                index.impacts.push(idf - idf / (1.0 + count as f32 * norm));
            }
            index.posting_ends.push(index.passages.len() as u64);
        }
        index.maxima = index.maxima();
        index
    }

    /// 1 / (k1 · (1 − b + b · length / average)) for every encoded length.
    fn norms(&self, parameters: &LexicalConfig) -> Vec<f32> {
        let documents = self.lengths.iter().filter(|length| **length > 0).count();
        let total: u64 = self.lengths.iter().map(|length| u64::from(*length)).sum();
        let average = (total as f64 / documents.max(1) as f64) as f32;
        let (k1, b) = (parameters.k1 as f32, parameters.b as f32);
        (0..=u8::MAX).map(|code| 1.0 / (k1 * ((1.0 - b) + b * length::decode(code) as f32 / average))).collect()
    }
}

/// Lengths in one byte, as Lucene's `SmallFloat` has them: exact below 40, then four significant bits.
mod length {
    /// Lengths below this are their own code.
    const FREE: u32 = 24;

    /// The code of a length, rounded down.
    pub fn encode(length: u32) -> u8 {
        let Some(rest) = length.checked_sub(FREE) else { return length as u8 };
        let bits = u32::BITS - rest.leading_zeros();
        let code = if bits < 4 { rest } else { (rest >> (bits - 4)) & 7 | (bits - 3) << 3 };
        (FREE + code).min(255) as u8
    }

    /// The length of a code.
    pub fn decode(code: u8) -> u32 {
        let Some(rest) = u32::from(code).checked_sub(FREE) else { return u32::from(code) };
        FREE + if rest < 8 { rest } else { (rest & 7 | 8) << ((rest >> 3) - 1) }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn codes_round_down_as_in_lucene() {
            for length in 0..40 {
                assert_eq!(decode(encode(length)), length);
            }
            // SmallFloat.byte4ToInt(SmallFloat.intToByte4(n))
            for (length, rounded) in [(40, 40), (41, 40), (42, 42), (57, 56), (100, 96), (1000, 984), (100_000, 98_328)]
            {
                assert_eq!(decode(encode(length)), rounded, "{length}");
            }
            for code in 0..=254u8 {
                assert_eq!(encode(decode(code)), code);
            }
        }
    }
}

/// The inverted index in memory. Its file form is in [`crate::lexical_file`].
#[derive(Clone, Debug, PartialEq)]
pub struct LexicalIndex {
    pub(crate) k1: f64,
    pub(crate) b: f64,
    /// Number of passages.
    pub(crate) len: usize,
    /// All terms run together, sorted; `term_ends` cuts them.
    pub(crate) term_bytes: Vec<u8>,
    pub(crate) term_ends: Vec<u64>,
    /// End of each term's part of `passages` and `impacts`.
    pub(crate) posting_ends: Vec<u64>,
    pub(crate) passages: Vec<u32>,
    /// What a term adds to a passage's score.
    pub(crate) impacts: Vec<f32>,
    /// The largest impact of each term.
    pub(crate) maxima: Vec<f32>,
}

fn range(ends: &[u64], at: usize) -> std::ops::Range<usize> {
    let start = if at == 0 { 0 } else { ends[at - 1] as usize };
    start..ends[at] as usize
}

/// A query's term in the index.
struct List<'a> {
    /// What is left of its postings.
    passages: &'a [u32],
    impacts: &'a [f32],
    /// How often the query has it.
    count: f64,
    /// The most that it adds.
    bound: f64,
}

impl List<'_> {
    /// Passes over passages before `position`.
    fn skip_to(&mut self, position: u32) {
        let passed = self.passages.partition_point(|passage| *passage < position);
        self.passages = &self.passages[passed..];
        self.impacts = &self.impacts[passed..];
    }

    /// Number of postings before `limit`; found by doubling steps, as it is near.
    fn before(&self, limit: u32) -> usize {
        let mut step = 16;
        while step < self.passages.len() && self.passages[step] < limit {
            step *= 2;
        }
        let (low, high) = (step / 2, self.passages.len().min(step + 1));
        let low = if self.passages.get(low).is_some_and(|passage| *passage < limit) { low } else { 0 };
        low + self.passages[low..high].partition_point(|passage| *passage < limit)
    }

    /// What it adds to a passage.
    fn of(&self, position: u32) -> f64 {
        self.passages.binary_search(&position).map_or(0.0, |at| self.count * f64::from(self.impacts[at]))
    }
}

impl LexicalIndex {
    /// Number of passages.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no passage is in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn maxima(&self) -> Vec<f32> {
        let largest = |at| self.impacts[range(&self.posting_ends, at)].iter().copied().fold(0f32, f32::max);
        (0..self.term_ends.len()).map(largest).collect()
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

    /// The lists of a query's terms, the least important first.
    fn lists(&self, query: &str) -> Vec<List<'_>> {
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for term in terms(query) {
            *counts.entry(term).or_default() += 1;
        }
        let list = |(term, count): (String, u32)| {
            let at = self.find(&term)?;
            let postings = range(&self.posting_ends, at);
            let (passages, impacts) = (&self.passages[postings.clone()], &self.impacts[postings]);
            let count = f64::from(count);
            Some(List { passages, impacts, count, bound: count * f64::from(self.maxima[at]) })
        };
        let mut lists: Vec<List<'_>> = counts.into_iter().filter_map(list).collect();
        lists.sort_by(|a, b| a.bound.total_cmp(&b.bound));
        lists
    }

    /// The same of the passages at `positions` only, which rise.
    pub fn search_among(&self, query: &str, k: usize, positions: &[u32]) -> Vec<Ranked> {
        let lists = self.lists(query);
        let mut top = TopK::new(k);
        for position in positions {
            let sum: f64 = lists.iter().map(|list| list.of(*position)).sum();
            if sum > 0.0 {
                top.push(*position, f64::from(sum as f32));
            }
        }
        top.finish()
    }

    /// The best `k` passages that share a term with the query; fewer when fewer do.
    pub fn search(&self, query: &str, k: usize) -> Vec<Ranked> {
        let mut lists = self.lists(query);
        // the most that the first so many lists add together
        let mut sum = 0.0;
        let bounds: Vec<f64> = lists
            .iter()
            .map(|list| {
                sum += list.bound;
                sum
            })
            .collect();
        let mut top = TopK::new(k);
        SUMS.with_borrow_mut(|sums| {
            let mut start = 0;
            while start < self.len {
                // passages can be found by these lists only; the others add to what they find
                let helpers = bounds.partition_point(|bound| f64::from(*bound as f32) < top.floor());
                if helpers == lists.len() {
                    break;
                }
                window(&mut lists, helpers, &bounds, start as u32, sums, &mut top);
                start += WINDOW;
            }
        });
        top.finish()
    }
}

/// Offers the passages of one window that can still be among the best.
fn window(lists: &mut [List<'_>], helpers: usize, bounds: &[f64], start: u32, sums: &mut [f64], top: &mut TopK) {
    let limit = start.saturating_add(WINDOW as u32);
    let (helping, leading) = lists.split_at_mut(helpers);
    let rest = helpers.checked_sub(1).map_or(0.0, |last| bounds[last]);
    let mut ends = [0usize; 64];
    for (at, list) in leading.iter_mut().enumerate() {
        if list.passages.first().is_some_and(|first| *first < start) {
            list.skip_to(start);
        }
        let end = list.before(limit);
        if let Some(kept) = ends.get_mut(at) {
            *kept = end;
        }
        for (passage, impact) in list.passages[..end].iter().zip(&list.impacts[..end]) {
            sums[(passage - start) as usize % WINDOW] += list.count * f64::from(*impact);
        }
    }
    let mut ready = false;
    for (at, list) in leading.iter_mut().enumerate() {
        let end = ends.get(at).copied().unwrap_or_else(|| list.before(limit));
        for passage in &list.passages[..end] {
            let sum = std::mem::take(&mut sums[(passage - start) as usize % WINDOW]);
            // zero: seen with an earlier list
            if sum == 0.0 || f64::from((sum + rest) as f32) < top.floor() {
                continue;
            }
            if !ready {
                for list in helping.iter_mut() {
                    list.skip_to(start);
                }
                ready = true;
            }
            let score = helping.iter().rev().fold(sum, |sum, list| sum + list.of(*passage));
            top.push(*passage, f64::from(score as f32));
        }
        list.passages = &list.passages[end..];
        list.impacts = &list.impacts[end..];
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::f64::consts::LN_2;
    use std::fmt::Write as _;

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

    /// Every passage's sum, sorted: what the windows and bounds must come to.
    fn exhaustive(index: &LexicalIndex, query: &str, k: usize) -> Vec<Ranked> {
        index.search_among(query, k, &(0..index.len() as u32).collect::<Vec<_>>())
    }

    #[test]
    fn windows_and_bounds_change_nothing() {
        let mut builder = LexicalBuilder::default();
        let mut state = 7u32;
        for _ in 0..3 * WINDOW + 100 {
            let mut text = String::new();
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            for word in 0..(state >> 24) % 12 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // few words in most passages, many in few
                let rank = 1.0 / (f64::from((state >> 9) % 4096 + 1) / 4096.0);
                let common = if word % 5 == 0 { "common " } else { "" };
                write!(text, "w{} {common}", (rank * 1.7) as u32).unwrap();
            }
            builder.add("", &text);
        }
        let index = builder.finish(&LexicalConfig::default());
        for query in
            ["common w3", "w1 w2 w3 w5 w8 w13 w21 w34", "w900 common", "w2 w2 common w77", "none", "w40 w41 w42 w1"]
        {
            for k in [0, 1, 3, 10, 100, 20_000] {
                assert_eq!(index.search(query, k), exhaustive(&index, query, k), "{query} {k}");
            }
        }
    }

    #[test]
    fn equal_scores_keep_corpus_order() {
        let texts: Vec<&str> = (0..300).map(|at| if at % 3 == 0 { "apple tree" } else { "tree apple" }).collect();
        let found = index(&texts).search("tree", 40);
        assert_eq!(found.iter().map(|r| r.position).collect::<Vec<_>>(), (0..40).collect::<Vec<_>>());
    }
}
