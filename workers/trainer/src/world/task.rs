//! Questions, documents and the retriever of the search world.

use sha2::{Digest, Sha256};

/// Entities and relations share one small vocabulary with three marker tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    /// Entities; their tokens are 0…entities.
    pub entities: u32,
    /// Relations; their tokens follow.
    pub relations: u32,
}

impl Vocabulary {
    /// The size used for the learning proof.
    pub const PROOF: Self = Self { entities: 16, relations: 4 };

    /// Token of a relation.
    pub fn relation(self, relation: u32) -> u32 {
        self.entities + relation
    }

    /// Opens the question.
    pub fn question(self) -> u32 {
        self.entities + self.relations
    }

    /// Asks for a query: entity, then relation.
    pub fn decide(self) -> u32 {
        self.question() + 1
    }

    /// Asks for a selection: token 0 or 1.
    pub fn select(self) -> u32 {
        self.question() + 2
    }

    /// Tokens in all.
    pub fn size(self) -> usize {
        self.question() as usize + 3
    }
}

/// Counter-based random numbers (`SplitMix64`) keyed by what they are for, never by what was drawn before.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A stream of its own for every (seed, purpose, index).
    pub fn new(seed: u64, purpose: &str, index: u64) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(seed.to_le_bytes());
        hasher.update(index.to_le_bytes());
        hasher.update(purpose.as_bytes());
        let digest = hasher.finalize();
        let mut key = [0; 8];
        key.copy_from_slice(&digest[..8]);
        Self(u64::from_le_bytes(key))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform below `n`.
    pub fn below(&mut self, n: u32) -> u32 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u32
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64 <= probability && probability > 0.0
    }

    fn permutation(&mut self, n: u32) -> Vec<u32> {
        let mut items: Vec<u32> = (0..n).collect();
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u32 + 1) as usize);
        }
        items
    }
}

/// A fact: subject, relation, object.
pub type Fact = [u32; 3];

/// One question with its own world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Puzzle {
    vocabulary: Vocabulary,
    /// Per relation the object of every subject.
    facts: Vec<Vec<u32>>,
    start: u32,
    first: u32,
    second: u32,
    /// What naive retrieval of the question brings.
    initial: [Fact; 3],
}

/// How queries are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retriever {
    /// The queried fact and a distractor, in random order.
    Working,
    /// A random fact instead of the queried one: the control under which nothing can be learned.
    Random,
}

impl Puzzle {
    /// Draws the question `index` of a stream.
    pub fn draw(vocabulary: Vocabulary, seed: u64, purpose: &str, index: u64) -> Self {
        let mut rng = Rng::new(seed, purpose, index);
        let facts: Vec<Vec<u32>> = (0..vocabulary.relations).map(|_| rng.permutation(vocabulary.entities)).collect();
        let start = rng.below(vocabulary.entities);
        let first = rng.below(vocabulary.relations);
        let second = (first + 1 + rng.below(vocabulary.relations - 1)) % vocabulary.relations;
        let fact = |subject: u32, relation: u32| [subject, relation, facts[relation as usize][subject as usize]];
        let stray = fact(rng.below(vocabulary.entities), rng.below(vocabulary.relations));
        let documents = [fact(start, first), fact(start, second), stray];
        let order = rng.permutation(3);
        let initial = [0, 1, 2].map(|i: usize| documents[order[i] as usize]);
        Self { vocabulary, facts, start, first, second, initial }
    }

    /// The bridge entity: object of the first hop.
    pub fn bridge(&self) -> u32 {
        self.facts[self.first as usize][self.start as usize]
    }

    fn answers(&self, fact: Fact) -> bool {
        fact[0] == self.bridge() && fact[1] == self.second
    }

    /// Whether the initial documents already hold the answer.
    pub fn baseline_right(&self) -> bool {
        self.initial.iter().any(|fact| self.answers(*fact))
    }

    /// Question and initial documents; the next two tokens are the query.
    pub fn prompt(&self) -> Vec<u32> {
        let v = self.vocabulary;
        let mut tokens = vec![v.question(), self.start, v.relation(self.first), v.relation(self.second)];
        for fact in self.initial {
            tokens.extend(self.render(fact));
        }
        tokens.push(v.decide());
        tokens
    }

    fn render(&self, fact: Fact) -> [u32; 3] {
        [fact[0], self.vocabulary.relation(fact[1]), fact[2]]
    }

    fn fact(&self, subject: u32, relation: u32) -> Fact {
        [subject, relation, self.facts[relation as usize][subject as usize]]
    }

    /// The two documents a query brings. A query that is no (entity, relation) finds only strays.
    pub fn retrieve(&self, retriever: Retriever, entity: u32, relation: u32, rng: &mut Rng) -> [Fact; 2] {
        let v = self.vocabulary;
        let stray = |rng: &mut Rng| self.fact(rng.below(v.entities), rng.below(v.relations));
        let readable = entity < v.entities && (v.entities..v.question()).contains(&relation);
        let found = if readable && retriever == Retriever::Working {
            self.fact(entity, relation - v.entities)
        } else {
            stray(rng)
        };
        let other = stray(rng);
        if rng.chance(0.5) { [other, found] } else { [found, other] }
    }

    /// The observation: both documents and the marker that asks for a selection.
    pub fn observation(&self, documents: [Fact; 2]) -> Vec<u32> {
        let mut tokens: Vec<u32> = documents.iter().flat_map(|fact| self.render(*fact)).collect();
        tokens.push(self.vocabulary.select());
        tokens
    }

    /// Whether the searcher's documents answer the question: the initial ones stay, the selected one is added.
    pub fn searcher_right(&self, documents: [Fact; 2], selection: u32) -> bool {
        self.baseline_right() || documents.get(selection as usize).is_some_and(|fact| self.answers(*fact))
    }

    /// What a perfect searcher does next: query entity and relation.
    pub fn best_query(&self) -> [u32; 2] {
        [self.bridge(), self.vocabulary.relation(self.second)]
    }

    /// What a perfect searcher selects.
    pub fn best_selection(&self, documents: [Fact; 2]) -> u32 {
        u32::from(self.answers(documents[1]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_perfect_searcher_is_always_right_and_the_baseline_only_by_luck() {
        let mut lucky = 0;
        for index in 0..2000 {
            let puzzle = Puzzle::draw(Vocabulary::PROOF, 7, "test", index);
            let mut rng = Rng::new(7, "retrieval", index);
            let [entity, relation] = puzzle.best_query();
            let documents = puzzle.retrieve(Retriever::Working, entity, relation, &mut rng);
            assert!(puzzle.searcher_right(documents, puzzle.best_selection(documents)));
            assert_eq!(puzzle.prompt().len(), 14);
            lucky += usize::from(puzzle.baseline_right());
        }
        // a stray or a fixed point answers by chance: 1/64, and 1/16 when the bridge is the start itself
        assert!((60..260).contains(&lucky), "{lucky}");
    }
}
