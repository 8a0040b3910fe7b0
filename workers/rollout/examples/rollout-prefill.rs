//! The benchmark `rollout-prefill`: tokens that went through the model while a batch of search episodes was
//! played, over the distinct ones. Distinct is a token after its whole context: what several episodes begin
//! with counts once, however they came by it. A reference that computes the whole context again each turn is
//! printed beside. The ratio is the bar of 1.05 over the figure.

// the tests' model: it unwraps as tests do
#[allow(clippy::unwrap_used)]
#[path = "../tests/support/tiny.rs"]
mod tiny;

use s3_config::{LoraConfig, ModelSpec, RetrievalMethod, SearchConfig};
use s3_model::{Decoder, TrainSequence};
use s3_rollout::{EpisodeRequest, ModelCodec, Player, Retrieve, RolloutError, Sampling, record::EpisodeRecord};
use s3_search::{Passage, Question};
use s3_telemetry::Shutdown;
use std::collections::HashSet;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const BAR: f64 = 1.05;

/// Answers every query with passages that name it.
struct Library;

impl Retrieve for Library {
    fn retrieve(
        &self,
        queries: &[String],
        top_k: u32,
        _: RetrievalMethod,
    ) -> std::result::Result<Vec<Vec<Passage>>, RolloutError> {
        Ok(queries.iter().map(|query| passages(query, top_k)).collect())
    }
}

fn passages(about: &str, count: u32) -> Vec<Passage> {
    (0..count)
        .map(|i| Passage { id: format!("{about}-{i}"), title: format!("T{i}"), text: format!("text {i} of {about}") })
        .collect()
}

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    tiny::write_model(folder.path());
    let spec: ModelSpec = serde_json::from_value(serde_json::json!({"path": folder.path(), "device": "Cpu"}))?;
    let (mut decoder, tokenizer) = Decoder::load(&spec)?;
    decoder.attach_lora(&LoraConfig::default(), 1)?;
    let codec = ModelCodec::new(tokenizer);
    let search = SearchConfig {
        max_searches: 3,
        top_k: 3,
        turn_tokens: 14,
        context_tokens: 950,
        observation_tokens: 300,
        ..SearchConfig::default()
    };
    let (mut computed, mut distinct, mut again, mut turns, mut episodes) = (0u64, 0u64, 0u64, 0usize, 0usize);
    let mut worst = 0f32;
    for step in 0..4 {
        let requests: Vec<EpisodeRequest> = (0..6)
            .flat_map(|q| (0..8).map(move |sample| (q, sample)))
            .map(|(q, sample)| EpisodeRequest {
                question: Question {
                    id: format!("q{step}-{q}"),
                    dataset: "d".into(),
                    question: format!("what is number {q} of {step}"),
                    answers: vec![],
                },
                sample,
                initial: passages(&format!("start {q}"), 3),
            })
            .collect();
        let player = Player {
            decoder: &decoder,
            codec: &codec,
            retriever: &Library,
            search: &search,
            sampling: Sampling { temperature: 1.0, top_p: 1.0, seed: 3, step },
            shutdown: &Shutdown::default(),
        };
        let (played, count) = player.play_counted(&requests)?;
        computed += count;
        let mut seen: HashSet<&[u32]> = HashSet::new();
        for episode in &played {
            // nothing reads the last token
            let read = episode.tokens.len().saturating_sub(1);
            seen.extend((1..=read).map(|end| &episode.tokens[..end]));
            episodes += 1;
            turns += episode.turns.len();
        }
        distinct += seen.len() as u64;
        let records: Vec<EpisodeRecord> =
            requests.iter().zip(&played).map(|(r, t)| EpisodeRecord::new(&r.question, t)).collect();
        for record in &records {
            // a turn ends where written tokens do; every turn's whole context would be read again
            let written = record.action_positions();
            let ends = written.iter().zip(written.iter().skip(1).chain([&usize::MAX])).filter(|(a, b)| **b != **a + 1);
            again += ends.map(|(end, _)| *end as u64).sum::<u64>();
        }
        let sequences: Vec<TrainSequence> = records
            .iter()
            .map(|r| TrainSequence { positions: r.action_positions(), tokens: r.tokens.clone() })
            .collect();
        let scored = decoder.score(&sequences, 1.0)?.logprob;
        let old = records.iter().flat_map(|r| r.logprobs.iter().copied());
        worst = scored.iter().zip(old).map(|(a, b)| (a - b).abs()).fold(worst, f32::max);
    }
    if worst > 1e-5 {
        return Err(format!("played and trained log-probabilities differ by {worst}").into());
    }
    let figure = computed as f64 / distinct as f64;
    println!("{episodes} episodes in groups of 8, {turns} turns, f32; log-probabilities as in training to {worst:.1e}");
    println!(
        "{computed} tokens computed, {distinct} distinct: {figure:.3} (bar {BAR}); the whole context again each turn {:.2}",
        again as f64 / distinct as f64
    );
    println!("ratio rollout-prefill {:.3}", BAR / figure);
    Ok(())
}
