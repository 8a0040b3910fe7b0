//! The learning proof: policy gradients on GBR alone teach a tiny decoder to search, on three of three seeds.
//!
//! `search-world [--seeds 1,2,3] [--estimator rloo|grpo|reinforce]`. Warm starts are cached by digest.

use s3_artifacts::digest_json;
use s3_config::{AlgorithmConfig, Estimator};
use s3_model::{Decoder, DecoderConfig, load_tensors, save_tensors};
use s3_trainer::world::{Retriever, Vocabulary, WorldConfig, evaluate, reinforce, warm_start};
use std::path::PathBuf;

/// The gain that 40 steps must bring on every seed.
const BAR: f64 = 0.20;

#[derive(clap::Parser)]
struct Arguments {
    /// Seeds, each a world and a decoder of its own.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 3])]
    seeds: Vec<u64>,
    /// Advantage estimator.
    #[arg(long, default_value = "rloo")]
    estimator: String,
    /// Steps of the warm start.
    #[arg(long)]
    warm_steps: Option<u64>,
    /// Learning rate of the policy updates.
    #[arg(long)]
    rate: Option<f64>,
    /// Questions per policy step.
    #[arg(long)]
    questions: Option<usize>,
}

fn main() -> anyhow::Result<()> {
    let arguments = <Arguments as clap::Parser>::parse();
    let mut config = WorldConfig::default();
    config.warm_steps = arguments.warm_steps.unwrap_or(config.warm_steps);
    config.rate = arguments.rate.unwrap_or(config.rate);
    config.questions = arguments.questions.unwrap_or(config.questions);
    let estimator = match arguments.estimator.as_str() {
        "rloo" => Estimator::Rloo,
        "grpo" => Estimator::Grpo,
        "reinforce" => Estimator::Reinforce,
        other => anyhow::bail!("estimator {other:?} is none of rloo, grpo, reinforce"),
    };
    let algorithm =
        AlgorithmConfig { estimator, clip_high: 0.28, entropy_coefficient: 0.003, ..AlgorithmConfig::default() };
    println!(
        "search world: {} questions x {} samples, {} steps, {}, f32, n = {}",
        config.questions, config.samples, config.steps, arguments.estimator, config.evaluation
    );
    println!("seed  GBR(0)  GBR({})   gain  RL and evaluation  warm start", config.steps);
    let mut worst = f64::INFINITY;
    for seed in &arguments.seeds {
        let (mut decoder, warm) = cached_warm_start(&config, *seed)?;
        let started = cpu_seconds();
        let curve = reinforce(&config, &algorithm, &mut decoder, Retriever::Working, *seed, |step| {
            eprint!("\rseed {seed}: step {step}/{}   ", config.steps);
        })?;
        let (first, last) = (curve.gain[0].1, curve.gain[curve.gain.len() - 1].1);
        worst = worst.min(last - first);
        let spent = cpu_seconds() - started;
        eprintln!("{:?}", curve.gain);
        println!("{seed:>4}  {first:>6.3}  {last:>7.3}  {:>5.3}  {spent:>11.1} CPU-s  {warm:>7.1} CPU-s", last - first);
        if spent > 120.0 {
            anyhow::bail!("seed {seed} needed {spent:.0} CPU-s, more than the two minutes allowed");
        }
    }
    let control_seed = arguments.seeds[0];
    let (mut decoder, _) = cached_warm_start(&config, control_seed)?;
    let floor = evaluate(&config, &decoder, Retriever::Random, control_seed)?;
    let control = reinforce(&config, &algorithm, &mut decoder, Retriever::Random, control_seed, |_| {})?;
    let end = control.gain[control.gain.len() - 1].1;
    println!("control, random retriever, seed {control_seed}: GBR {floor:.3} -> {end:.3}");
    println!("ratio search-world {:.3}", worst / BAR);
    Ok(())
}

/// The warm start of a seed and the CPU time it took (0 from the cache).
fn cached_warm_start(config: &WorldConfig, seed: u64) -> anyhow::Result<(Decoder, f64)> {
    let key = digest_json(&(
        config.hidden,
        config.layers,
        config.warm_steps,
        config.warm_batch,
        config.warm_quality,
        config.warm_rate,
        seed,
    ))?;
    let path = cache_folder()?.join(format!("search-world-{key}.safetensors"));
    let shape = DecoderConfig::tiny(Vocabulary::PROOF.size(), config.hidden, config.layers);
    if path.exists() {
        let mut decoder = Decoder::random(shape, seed, &candle_core::Device::Cpu, candle_core::DType::F32)?;
        decoder.train_all()?;
        for (name, tensor) in load_tensors(&path)? {
            decoder.set_trained(&name, tensor)?;
        }
        return Ok((decoder, 0.0));
    }
    let started = cpu_seconds();
    let decoder = warm_start(config, seed, |step| {
        if step % 50 == 0 {
            eprint!("\rseed {seed}: warm start {step}/{}   ", config.warm_steps);
        }
    })?;
    eprintln!();
    let temporary = path.with_extension("tmp");
    save_tensors(&temporary, &decoder.trained_tensors())?;
    std::fs::rename(&temporary, &path)?;
    Ok((decoder, cpu_seconds() - started))
}

fn cache_folder() -> anyhow::Result<PathBuf> {
    let base = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(cache), _) => PathBuf::from(cache),
        (None, Some(home)) => PathBuf::from(home).join(".cache"),
        (None, None) => anyhow::bail!("neither XDG_CACHE_HOME nor HOME is set; set one to keep warm starts"),
    };
    let folder = base.join("s3-operator");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// CPU time of this process, user and system, seconds.
fn cpu_seconds() -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    getrusage(UsageWho::RUSAGE_SELF)
        .map_or(0.0, |usage| (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6)
}
