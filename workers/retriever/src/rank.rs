//! Ranked lists: order, the best k, and fusion of several lists.

use s3_config::FusionConfig;
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// A passage by its position in the corpus, with its score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ranked {
    /// Position in the corpus, from zero.
    pub position: u32,
    /// Higher is better; its meaning is the method's.
    pub score: f64,
}

/// Falling score; equal scores in corpus order, so that a ranking never depends on how it was found.
fn order(a: &Ranked, b: &Ranked) -> Ordering {
    b.score.total_cmp(&a.score).then(a.position.cmp(&b.position))
}

/// A number that passages are ranked by.
pub trait Score: Copy + PartialOrd + Into<f64> {
    /// The least score that can still be kept, given the floor of a collector of such scores.
    fn floor(floor: f64) -> Self;
}

impl Score for f32 {
    fn floor(floor: f64) -> Self {
        // a collector of f32 scores has an f32 floor
        floor as Self
    }
}

impl Score for i32 {
    fn floor(floor: f64) -> Self {
        floor as Self
    }
}

/// Keeps the best k of what is pushed, by partial selection.
pub struct TopK {
    k: usize,
    kept: Vec<Ranked>,
    /// No entry scoring below this can still be among the best k.
    floor: f64,
}

impl TopK {
    /// A collector of the best `k`.
    pub fn new(k: usize) -> Self {
        Self { k, kept: Vec::new(), floor: f64::NEG_INFINITY }
    }

    /// Below this no entry is kept any more; it rises as better ones come.
    pub fn floor(&self) -> f64 {
        self.floor
    }

    /// Offers one entry.
    pub fn push(&mut self, position: u32, score: f64) {
        // written so that a score that is no number is left out
        let can_stay = score >= self.floor;
        if !can_stay || self.k == 0 {
            return;
        }
        // adding zero turns -0 into 0: they are equal, so they must rank as equal
        self.kept.push(Ranked { position, score: score + 0.0 });
        if self.kept.len() >= 2 * self.k.max(16) {
            self.shrink();
        }
    }

    /// Offers entries of consecutive positions. Most are too low; sixteen are passed over at a time.
    pub fn offer<S: Score>(&mut self, first: u32, scores: &[S]) {
        for (at, chunk) in scores.chunks(16).enumerate() {
            let floor = S::floor(self.floor);
            // counted, not searched: so that it is done with wide registers
            if chunk.iter().map(|score| u8::from(*score >= floor)).sum::<u8>() > 0 {
                for (lane, score) in chunk.iter().enumerate() {
                    self.push(first + (at * 16 + lane) as u32, (*score).into());
                }
            }
        }
    }

    fn shrink(&mut self) {
        if self.kept.len() > self.k {
            self.kept.select_nth_unstable_by(self.k - 1, order);
            self.kept.truncate(self.k);
            self.floor = self.kept[self.k - 1].score;
        }
    }

    /// Takes in another collector's entries.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        for Ranked { position, score } in other.kept {
            self.push(position, score);
        }
        self
    }

    /// The best k in order.
    pub fn finish(mut self) -> Vec<Ranked> {
        self.kept.sort_unstable_by(order);
        self.kept.truncate(self.k);
        self.kept
    }
}

/// Reciprocal rank fusion: the sum over the lists of weight / (constant + rank), ranks from one.
pub fn fuse(lexical: &[Ranked], dense: &[Ranked], fusion: &FusionConfig, k: usize) -> Vec<Ranked> {
    let mut scores: BTreeMap<u32, f64> = BTreeMap::new();
    for (list, weight) in [(lexical, fusion.lexical_weight), (dense, fusion.dense_weight)] {
        for (at, ranked) in list.iter().enumerate() {
            *scores.entry(ranked.position).or_default() += weight / (fusion.constant + (at + 1) as f64);
        }
    }
    let mut top = TopK::new(k);
    for (position, score) in scores {
        top.push(position, score);
    }
    top.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(positions: &[u32]) -> Vec<Ranked> {
        positions.iter().map(|&position| Ranked { position, score: 0.0 }).collect()
    }

    #[test]
    fn fusion_by_hand() {
        let fusion = FusionConfig { constant: 60.0, lexical_weight: 1.0, dense_weight: 2.0, depth: 3 };
        let fused = fuse(&list(&[7, 3, 9]), &list(&[3, 5]), &fusion, 3);
        let expected = [(3, 1.0 / 62.0 + 2.0 / 61.0), (5, 2.0 / 62.0), (7, 1.0 / 61.0)];
        assert_eq!(fused.len(), 3);
        for (ranked, (position, score)) in fused.iter().zip(expected) {
            assert_eq!(ranked.position, position);
            assert!((ranked.score - score).abs() < 1e-15);
        }
        // equal scores: corpus order
        let even = FusionConfig { dense_weight: 1.0, ..fusion };
        let tied = fuse(&list(&[8]), &list(&[2]), &even, 2);
        assert_eq!(tied.iter().map(|r| r.position).collect::<Vec<_>>(), [2, 8]);
    }

    proptest! {
        #[test]
        fn partial_selection_equals_sorting(scores in prop::collection::vec(0u8..6, 0..900), k in 0usize..40, cut in 0usize..900) {
            let mut expected: Vec<Ranked> = scores.iter().enumerate()
                .map(|(at, score)| Ranked { position: at as u32, score: f64::from(*score) }).collect();
            expected.sort_by(order);
            expected.truncate(k);
            let (mut a, mut b) = (TopK::new(k), TopK::new(k));
            for (at, score) in scores.iter().enumerate() {
                let side = if at < cut { &mut a } else { &mut b };
                side.push(at as u32, f64::from(*score));
            }
            prop_assert_eq!(b.merge(a).finish(), expected);
        }
    }
}
