#![allow(clippy::unwrap_used)]
//! What an observation says changes nothing that is learned, to the last bit, with the model's own backward pass.

use super::*;
use candle_core::{DType, Device, Tensor};
use s3_model::DecoderConfig;
use s3_rollout::Scored;
use s3_rollout::record::Outcome;
use s3_search::{Action, Question, StopReason, Turn};

const VOCAB: u32 = 40;

/// An episode of two turns: prompt, turn, observation, turn, and an observation that nobody reads.
fn episode(question: usize, sample: u32, unread: &[u32]) -> EpisodeRecord {
    let noise = |n: usize, salt: u32| -> Vec<u32> {
        (0..n as u32).map(|i| (i * 7 + salt * 13 + sample * 5 + question as u32) % VOCAB).collect()
    };
    let (prompt, first, seen, second) = (noise(6, 1), noise(3 + sample as usize, 2), noise(5, 3), noise(4, 4));
    let start = prompt.len();
    let turns = [(start, start + first.len()), (start + first.len() + 5, start + first.len() + 9)];
    let tokens = [prompt, first, seen, second, unread.to_vec()].concat();
    let turn = |tokens| Turn {
        text: String::new(),
        action: Action::Complete,
        window: Vec::new(),
        selected: Vec::new(),
        tokens,
    };
    let actions = turns.iter().map(|(from, to)| to - from).sum::<usize>();
    EpisodeRecord {
        question: Question { id: question.to_string(), dataset: "d".into(), ..Question::default() },
        sample,
        prompt_tokens: 6,
        logprobs: (0..actions).map(|at| -3.0 - 0.1 * at as f32).collect(),
        tokens,
        turns: turns.map(turn).to_vec(),
        selected: Vec::new(),
        stop: StopReason::Complete,
        searches: 1,
    }
}

fn round(unread: &dyn Fn(usize) -> Vec<u32>) -> Played {
    let places: Vec<(usize, u32)> = (0..3).flat_map(|question| (0..3).map(move |sample| (question, sample))).collect();
    let episodes = places.iter().enumerate().map(|(at, (q, sample))| episode(*q, *sample, &unread(at))).collect();
    let outcomes = (0..places.len())
        .map(|at| Outcome {
            searcher: Scored::missing(String::new(), true),
            baseline: Scored::missing(String::new(), true),
            reward: Some(f64::from(at as u32 * 5 % 7) / 3.0 - 0.8),
        })
        .collect();
    Played { episodes, outcomes, seconds: (0.0, 0.0) }
}

fn config(more: &str) -> TrainerConfig {
    let text = format!(
        "runtime: {{name: t, stateDir: s}}\nseed: 5\nsearcher: {{path: m}}\nretriever: {{address: 'http://a'}}\n\
         generator: {{endpoint: {{address: 'http://a'}}}}\ndata: {{datasets: []}}\nbaselineStore: b\nsteps: 9\n\
         checkpoint: {{dir: c}}\nexport: e\nrollout: {{questions: 3, samples: 3, microBatch: 2}}\n\
         optimizer: {{learningRate: 0.01}}\n{more}\n"
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.yaml");
    std::fs::write(&path, text).unwrap();
    s3_config::load(&path).unwrap()
}

/// Adapter and critic head with values that matter.
fn policy() -> Decoder {
    let shape = DecoderConfig::tiny(VOCAB as usize, 32, 2);
    let mut decoder = Decoder::random(shape, 3, &Device::Cpu, DType::F32).unwrap();
    decoder.attach_lora(&s3_config::LoraConfig { rank: 4, alpha: 8.0 }, 4).unwrap();
    decoder.attach_value_head().unwrap();
    for (name, tensor) in decoder.trained_tensors() {
        let values: Vec<f32> = (0..tensor.elem_count()).map(|i| 0.1 * (i as f32 * 1.7).sin()).collect();
        decoder.set_trained(&name, Tensor::from_vec(values, tensor.shape(), &Device::Cpu).unwrap()).unwrap();
    }
    decoder
}

fn bits(tensors: &BTreeMap<String, Tensor>) -> BTreeMap<String, Vec<u32>> {
    let of = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect();
    tensors.iter().map(|(name, tensor)| (name.clone(), of(tensor))).collect()
}

/// What one round teaches: returns and advantages, the gradients of all optimiser batches, the policy afterwards.
#[derive(Debug, PartialEq)]
struct Learned {
    tokens: Vec<(Vec<u32>, Vec<u32>, Vec<u32>)>,
    gradients: BTreeMap<String, Vec<u32>>,
    after: BTreeMap<String, Vec<u32>>,
    figures: BTreeMap<String, u64>,
}

fn learned(config: &TrainerConfig, played: &Played) -> Learned {
    let (mut decoder, shutdown) = (policy(), Shutdown::default());
    let reference = policy();
    let team = Team::alone();
    let updater = Updater { config, reference: Some(&reference), shutdown: &shutdown, team: &team };
    let (samples, _) = updater.prepared(&decoder, played).unwrap();
    let f = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
    let tokens = samples
        .iter()
        .map(|s| {
            let (values, returns) = (s.values.as_deref(), s.returns.as_deref());
            (f(&s.advantage), f(values.unwrap_or_default()), f(returns.unwrap_or_default()))
        })
        .collect();
    let mut gradients = Gradients::default();
    for micro in updater.weighted(&samples).chunks(2) {
        gradients.add(&updater.micro(&decoder, micro, true, &mut Sums::default()).unwrap()).unwrap();
    }
    let mut optimizer = AdamW::new(&config.optimizer);
    let figures = updater.update(&mut decoder, &mut optimizer, played).unwrap();
    Learned {
        tokens,
        gradients: bits(&gradients.0),
        after: bits(&decoder.trained_tensors()),
        figures: figures.into_iter().map(|(name, value)| (name, value.to_bits())).collect(),
    }
}

const PPO: &str = "algorithm: {estimator: Ppo, lambda: 0.9, gamma: 0.95, klCoefficient: 0.05, \
     entropyCoefficient: 0.01, epochs: 2, importance: {correction: TokenTruncated}}";
const REWARD_KL: &str = "algorithm: {estimator: Ppo, klCoefficient: 0.05, klPlacement: Reward}";

#[test]
fn what_an_observation_says_changes_no_bit_of_what_is_learned() {
    let noise = |salt: u32| {
        move |at: usize| -> Vec<u32> { (0..6u32).map(|i| (i * 11 + salt * (3 + at as u32)) % VOCAB).collect() }
    };
    for algorithm in [PPO, REWARD_KL, "algorithm: {estimator: Rloo}", "algorithm: {estimator: ReinforcePlusPlus}"] {
        let config = config(algorithm);
        let one = learned(&config, &round(&noise(1)));
        assert!(one.gradients.values().flatten().any(|bits| f32::from_bits(*bits).abs() > 0.0));
        let head = one.gradients.get("value_head.weight").into_iter().flatten();
        let moved = head.filter(|bits| f32::from_bits(**bits).abs() > 0.0).count();
        assert_eq!(moved > 0, needs_critic(&config.algorithm));
        assert!(one == learned(&config, &round(&noise(2))), "{algorithm}");
        // the reference lets it, which shows that the test would see it
        if algorithm == PPO {
            let config = self::config(&format!("{algorithm}\nsearch: {{compatibility: S3}}"));
            let (one, other) = (learned(&config, &round(&noise(1))), learned(&config, &round(&noise(2))));
            assert_ne!(one.tokens, other.tokens);
            assert_ne!(one.gradients["value_head.weight"], other.gradients["value_head.weight"]);
        }
    }
}

/// Where observations are chosen, too, the derivative by their log-probability, entropy (and so by every logit at
/// their places) is exactly 0, whatever they were given; the gradient is that of the action tokens alone.
#[test]
fn no_logit_at_an_observation_has_a_gradient() {
    let config = config("algorithm: {estimator: Rloo, entropyCoefficient: 0.01, klCoefficient: 0.05}");
    let (decoder, shutdown) = (policy(), Shutdown::default());
    let played = round(&|_| vec![1, 2, 3]);
    let team = Team::alone();
    let updater = Updater { config: &config, reference: Some(&decoder), shutdown: &shutdown, team: &team };
    let (narrow, _) = updater.prepared(&decoder, &played).unwrap();
    // the same samples with all tokens of the response chosen
    let wide: Vec<Sample> = samples(&played, Some(0))
        .into_iter()
        .zip(&narrow)
        .map(|(wide, narrow)| Sample { advantage: narrow.advantage.clone(), ..wide })
        .collect();
    let weighted = updater.weighted(&wide);
    assert!(wide.iter().all(|sample| sample.action.iter().filter(|action| !**action).count() == 8));
    let mut zeros = 0;
    for of in &weighted {
        let sample = of.sample;
        let ones = vec![1.0f32; sample.old.len()];
        for (value, action) in sample.to_chosen(&ones).iter().zip(&sample.action) {
            assert_eq!(value.to_bits(), if *action { 1f32.to_bits() } else { 0 });
            zeros += usize::from(!action);
        }
    }
    assert_eq!(zeros, 8 * weighted.len());
    let gradient = |weighted: &[Weighted<'_>]| {
        let mut sum = Gradients::default();
        for micro in weighted.chunks(2) {
            sum.add(&updater.micro(&decoder, micro, true, &mut Sums::default()).unwrap()).unwrap();
        }
        sum
    };
    let (all, actions) = (gradient(&weighted), gradient(&updater.weighted(&narrow)));
    for (name, tensor) in &all.0 {
        let Some(other) = actions.0.get(name) else {
            // the critic's head, which has no loss here
            assert!(bits(&all.0)[name].iter().all(|bits| f32::from_bits(*bits).abs() <= 0.0), "{name}");
            continue;
        };
        let (a, b): (Vec<f32>, Vec<f32>) =
            (tensor.flatten_all().unwrap().to_vec1().unwrap(), other.flatten_all().unwrap().to_vec1().unwrap());
        let largest = b.iter().fold(0f32, |m, x| m.max(x.abs()));
        let worst = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= 1e-6 * largest.max(1e-3), "{name}: {worst} of {largest}");
    }
}
