//! The learning proof: policy gradients on GBR alone teach a tiny decoder to search, on three of three seeds.
//!
//! `search-world [--seeds 1,2,3] [--estimator rloo,ppo|all] [--outages 0.2] [--flips 0.15] [--retriever random]`.
//! Warm starts are cached by digest. Seeds run one after another, each on one core.

#[path = "common/warm.rs"]
mod warm;

use s3_config::{AlgorithmConfig, Estimator};
use s3_trainer::world::{Conditions, Retriever, WorldConfig, reinforce};
use warm::{cached_warm_start, cpu_seconds};

/// The gain that the steps must bring on every seed.
const BAR: f64 = 0.20;
/// CPU-seconds of learning and evaluation that a seed may take.
const BUDGET: f64 = 120.0;
/// The most that learning with a random retriever may show above the warm start's luck.
const LUCK: f64 = 0.05;

#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
enum Arm {
    Rloo,
    Ppo,
    Grpo,
    Reinforce,
    ReinforcePlusPlus,
    DrGrpo,
    /// The four that the bar names.
    All,
}

impl Arm {
    fn estimator(self) -> Estimator {
        match self {
            Self::Rloo | Self::All => Estimator::Rloo,
            Self::Ppo => Estimator::Ppo,
            Self::Grpo => Estimator::Grpo,
            Self::Reinforce => Estimator::Reinforce,
            Self::ReinforcePlusPlus => Estimator::ReinforcePlusPlus,
            Self::DrGrpo => Estimator::DrGrpo,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
enum Answers {
    Working,
    Random,
}

#[derive(clap::Parser)]
struct Arguments {
    /// Seeds, each a world and a decoder of its own.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 3])]
    seeds: Vec<u64>,
    /// Advantage estimators.
    #[arg(long, value_delimiter = ',', default_value = "rloo")]
    estimator: Vec<Arm>,
    /// Share of samples masked because their verdict was lost.
    #[arg(long, default_value_t = 0.0)]
    outages: f64,
    /// Share of samples with the opposite verdict.
    #[arg(long, default_value_t = 0.0)]
    flips: f64,
    /// With a random retriever nothing can be learned: then no arm may rise.
    #[arg(long, default_value = "working")]
    retriever: Answers,
    /// Name on the last line.
    #[arg(long, default_value = "search-world")]
    name: String,
    /// Steps of the warm start.
    #[arg(long)]
    warm_steps: Option<u64>,
    /// Learning rate of the policy updates.
    #[arg(long)]
    rate: Option<f64>,
    /// Questions per policy step.
    #[arg(long)]
    questions: Option<usize>,
    /// Policy steps.
    #[arg(long)]
    steps: Option<u64>,
}

fn main() -> anyhow::Result<()> {
    let arguments = <Arguments as clap::Parser>::parse();
    let mut config = WorldConfig::default();
    config.warm_steps = arguments.warm_steps.unwrap_or(config.warm_steps);
    config.rate = arguments.rate.unwrap_or(config.rate);
    config.questions = arguments.questions.unwrap_or(config.questions);
    config.steps = arguments.steps.unwrap_or(config.steps);
    let arms = if arguments.estimator.contains(&Arm::All) {
        vec![Arm::Rloo, Arm::Ppo, Arm::Grpo, Arm::Reinforce]
    } else {
        arguments.estimator.clone()
    };
    let retriever = match arguments.retriever {
        Answers::Working => Retriever::Working,
        Answers::Random => Retriever::Random,
    };
    let conditions = Conditions { retriever, outages: arguments.outages, flips: arguments.flips };
    println!(
        "search world: {} questions x {} samples, {} steps, rate {}, f32, n = {}; {retriever:?} retriever, \
         {:.0} % outages, {:.0} % flipped verdicts",
        config.questions,
        config.samples,
        config.steps,
        config.rate,
        config.evaluation,
        100.0 * conditions.outages,
        100.0 * conditions.flips,
    );
    println!("estimator  seed  GBR(0)  GBR({})    gain  RL and evaluation  warm start", config.steps);
    let (mut worst, mut best) = (f64::INFINITY, f64::NEG_INFINITY);
    for arm in &arms {
        for seed in &arguments.seeds {
            let gain = run(&config, *arm, conditions, *seed)?;
            (worst, best) = (worst.min(gain), best.max(gain));
        }
    }
    if retriever == Retriever::Random {
        // how far the arm that rose most stays below what luck allows
        anyhow::ensure!(best < LUCK, "with a random retriever an arm gained {best:.3}: something leaks the answer");
        println!("ratio {} {:.3}", arguments.name, LUCK / best.max(1e-3));
        return Ok(());
    }
    let seed = arguments.seeds.first().copied().unwrap_or(1);
    let control = run(&config, arms[0], Conditions { retriever: Retriever::Random, ..conditions }, seed)?;
    println!("the last line: control with a random retriever");
    anyhow::ensure!(control < LUCK, "with a random retriever the control gained {control:.3}: the answer leaks");
    println!("ratio {} {:.3}", arguments.name, worst / BAR);
    Ok(())
}

/// Trains one arm on one seed, prints its row, and returns its gain.
fn run(config: &WorldConfig, arm: Arm, conditions: Conditions, seed: u64) -> anyhow::Result<f64> {
    let estimator = arm.estimator();
    let algorithm =
        AlgorithmConfig { estimator, clip_high: 0.28, entropy_coefficient: 0.003, ..AlgorithmConfig::default() };
    let (mut decoder, warm) = cached_warm_start(config, seed)?;
    let started = cpu_seconds();
    let curve = reinforce(config, &algorithm, &mut decoder, conditions, seed, |step| {
        eprint!("\r{estimator:?}, seed {seed}: step {step}/{}   ", config.steps);
    })?;
    let spent = cpu_seconds() - started;
    eprintln!("{}", curve.gain.iter().map(|(step, gain)| format!("{step}: {gain:.3}")).collect::<Vec<_>>().join("  "));
    let (first, last) = (curve.gain[0].1, curve.gain[curve.gain.len() - 1].1);
    let gain = last - first;
    let name = format!("{estimator:?}");
    println!("{name:<9}  {seed:>4}  {first:>6.3}  {last:>7.3}  {gain:>6.3}  {spent:>11.1} CPU-s  {warm:>7.1} CPU-s");
    anyhow::ensure!(spent <= BUDGET, "seed {seed} needed {spent:.0} CPU-s, more than the {BUDGET:.0} allowed");
    Ok(gain)
}
