//! Episodes of the search world, played over a decoder.

use super::task::{Puzzle, Retriever, Rng, Vocabulary};
use s3_model::{Decoder, ModelError, SampleKey, sample};

/// One played episode.
#[derive(Clone, Debug, PartialEq)]
pub struct Rollout {
    /// Index of the puzzle in the round.
    pub question: usize,
    /// All tokens.
    pub tokens: Vec<u32>,
    /// Positions of the three action tokens.
    pub positions: [usize; 3],
    /// Their log-probabilities at sampling.
    pub logprobs: [f32; 3],
    /// Whether the searcher's documents answer.
    pub right: bool,
    /// Whether naive retrieval's documents answer.
    pub baseline_right: bool,
}

impl Rollout {
    /// Gain beyond RAG: −1, 0 or 1 (never −1 here: the initial documents stay).
    pub fn gain(&self) -> f64 {
        f64::from(u8::from(self.right)) - f64::from(u8::from(self.baseline_right))
    }
}

/// Who chooses the action tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Policy {
    /// The model at this temperature; 0 is greedy.
    Model {
        /// Sampling temperature.
        temperature: f32,
    },
    /// For the warm start: right with this probability, else a random token of the right kind.
    Oracle {
        /// Probability of the right action.
        quality: f64,
    },
}

/// Plays `samples` episodes of every puzzle; the prompt is computed once per puzzle.
pub fn play(
    decoder: &Decoder,
    vocabulary: Vocabulary,
    puzzles: &[Puzzle],
    samples: usize,
    policy: Policy,
    retriever: Retriever,
    (seed, step): (u64, u64),
) -> Result<Vec<Rollout>, ModelError> {
    let rows = puzzles.len() * samples;
    let prompts: Vec<Vec<u32>> = puzzles.iter().map(Puzzle::prompt).collect();
    let question = |row: usize| row / samples;
    let mut tokens: Vec<Vec<u32>> = (0..rows).map(|row| prompts[question(row)].clone()).collect();
    let mut rngs: Vec<Rng> =
        (0..rows).map(|row| Rng::new(seed, "episode", step.wrapping_mul(1 << 20).wrapping_add(row as u64))).collect();
    let mut positions = vec![[0; 3]; rows];
    let mut logprobs = vec![[0.0; 3]; rows];
    let mut documents = Vec::new();

    let mut model = match policy {
        Policy::Oracle { .. } => None,
        Policy::Model { .. } => {
            let mut shared = decoder.cache(puzzles.len())?;
            let logits = decoder.step(&mut shared, &prompts)?.to_vec2::<f32>()?;
            let from: Vec<usize> = (0..rows).map(question).collect();
            Some((shared.fork(&from)?, from.iter().map(|&q| logits[q].clone()).collect::<Vec<_>>()))
        }
    };
    for action in 0..3 {
        let mut fresh: Vec<Vec<u32>> = Vec::with_capacity(rows);
        for row in 0..rows {
            let puzzle = &puzzles[question(row)];
            let (token, logprob) = match (policy, &model) {
                (Policy::Model { temperature }, Some((_, logits))) => {
                    let name = question(row).to_string();
                    let sampled = (row % samples) as u32;
                    let key = SampleKey { seed, step, question: &name, sample: sampled, turn: action as u32, token: 0 };
                    let chosen = sample(&logits[row], temperature, 1.0, &key);
                    (chosen.token, chosen.logprob)
                }
                (policy, _) => {
                    let quality = if let Policy::Oracle { quality } = policy { quality } else { 0.0 };
                    (oracle(puzzle, vocabulary, action, documents.get(row).copied(), quality, &mut rngs[row]), 0.0)
                }
            };
            positions[row][action] = tokens[row].len();
            logprobs[row][action] = logprob;
            tokens[row].push(token);
            fresh.push(vec![token]);
        }
        if action == 1 {
            for row in 0..rows {
                let query = &tokens[row][tokens[row].len() - 2..];
                let found = puzzles[question(row)].retrieve(retriever, query[0], query[1], &mut rngs[row]);
                let observation = puzzles[question(row)].observation(found);
                documents.push(found);
                tokens[row].extend(&observation);
                fresh[row].extend(&observation);
            }
        }
        if let Some((cache, logits)) = &mut model
            && action < 2
        {
            *logits = decoder.step(cache, &fresh)?.to_vec2::<f32>()?;
        }
    }
    Ok((0..rows)
        .map(|row| {
            let puzzle = &puzzles[question(row)];
            let selection = tokens[row][positions[row][2]];
            Rollout {
                question: question(row),
                tokens: std::mem::take(&mut tokens[row]),
                positions: positions[row],
                logprobs: logprobs[row],
                right: puzzle.searcher_right(documents[row], selection),
                baseline_right: puzzle.baseline_right(),
            }
        })
        .collect())
}

fn oracle(
    puzzle: &Puzzle,
    vocabulary: Vocabulary,
    action: usize,
    documents: Option<[[u32; 3]; 2]>,
    quality: f64,
    rng: &mut Rng,
) -> u32 {
    let (best, lowest, count) = match (action, documents) {
        (0, _) => (puzzle.best_query()[0], 0, vocabulary.entities),
        (1, _) => (puzzle.best_query()[1], vocabulary.entities, vocabulary.relations),
        (_, documents) => (documents.map_or(0, |found| puzzle.best_selection(found)), 0, 2),
    };
    if rng.chance(quality) { best } else { lowest + rng.below(count) }
}
