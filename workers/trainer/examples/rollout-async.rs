//! The benchmark `rollout-async`: how much faster a run's steps follow each other when episodes wait for nobody but
//! themselves and rounds are played ahead, than in lock-step; and whether the searcher learns as well.
//!
//! The search world's searcher is trained by RLOO with truncated importance weights, behind a retriever and a
//! generator with log-normal latencies, the same draw for the same call in every arm. The arms take turns, seed
//! after seed. In lock-step all searches of a round are made together, then all answers; a service answers
//! `--at-once` calls at a time, of all rounds together. The ratio is lock-step's seconds a step over those at
//! staleness 1.

#[path = "common/warm.rs"]
mod warm;

use s3_config::{AlgorithmConfig, Estimator, ImportanceConfig, ImportanceCorrection};
use s3_trainer::world::{Latency, Services, Way, WorldConfig, reinforce_served};
use std::time::Duration;

/// The gain that the steps must bring in every arm; how much they can bring is the benchmark `search-world`'s.
const GAIN: f64 = 0.10;

#[derive(clap::Parser)]
struct Arguments {
    /// Seeds, each a world and a warm start of its own.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 3])]
    seeds: Vec<u64>,
    /// Policy steps.
    #[arg(long, default_value_t = 40)]
    steps: u64,
    /// Median of a search, milliseconds.
    #[arg(long, default_value_t = 40)]
    search: u64,
    /// Median of an answer with its verdict, milliseconds.
    #[arg(long, default_value_t = 40)]
    answer: u64,
    /// Standard deviation of the latencies' logarithms: of searches, of answers.
    #[arg(long, value_delimiter = ',', default_values_t = [1.2, 1.2])]
    sigma: Vec<f64>,
    /// Calls that a service answers at a time.
    #[arg(long, default_value_t = 512)]
    at_once: usize,
    /// Steps of the warm start.
    #[arg(long)]
    warm_steps: Option<u64>,
    /// Learning rate of the policy updates; at twice this one a searcher that is one update behind learns worse.
    #[arg(long, default_value_t = 0.0005)]
    rate: f64,
    /// Clip around the policy that played, instead of weighing by how much likelier a token has become.
    #[arg(long)]
    uncorrected: bool,
    /// Also the rounds in which episodes go for themselves, but none is played ahead.
    #[arg(long)]
    on_policy: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = <Arguments as clap::Parser>::parse();
    let mut config = WorldConfig { steps: arguments.steps, ..WorldConfig::default() };
    config.rate = arguments.rate;
    config.warm_steps = arguments.warm_steps.unwrap_or(config.warm_steps);
    let latency = |median: u64, sigma: usize| Latency {
        median: Duration::from_millis(median),
        sigma: arguments.sigma.get(sigma).copied().unwrap_or(1.0),
    };
    let services = Services {
        retriever: latency(arguments.search, 0),
        generator: latency(arguments.answer, 1),
        at_once: arguments.at_once,
    };
    let algorithm = AlgorithmConfig {
        estimator: Estimator::Rloo,
        clip_high: 0.28,
        entropy_coefficient: 0.003,
        importance: ImportanceConfig {
            correction: if arguments.uncorrected {
                ImportanceCorrection::None
            } else {
                ImportanceCorrection::TokenTruncated
            },
            ..ImportanceConfig::default()
        },
        ..AlgorithmConfig::default()
    };
    println!(
        "search world: {} questions x {} samples, {} steps, rate {}, f32, n = {}; searches {} ms (sigma {}), answers {} ms (sigma {}), \
         log-normal, {} at once",
        config.questions,
        config.samples,
        config.steps,
        config.rate,
        config.evaluation,
        arguments.search,
        services.retriever.sigma,
        arguments.answer,
        services.generator.sigma,
        services.at_once
    );
    println!("seed  arm            GBR(0)  GBR({})  seconds a step", config.steps);
    let mut arms = vec![("lock-step", Way::LockStep), ("staleness 1", Way::Ahead(1))];
    if arguments.on_policy {
        arms.push(("staleness 0", Way::Ahead(0)));
    }
    let (mut seconds, mut gains) = (vec![0.0; arms.len()], vec![Vec::new(); arms.len()]);
    for seed in &arguments.seeds {
        let (start, _) = warm::cached_warm_start(&config, *seed)?;
        for (at, (name, way)) in arms.iter().copied().enumerate() {
            let mut decoder = start.clone();
            let (curve, spent) = reinforce_served(&config, &algorithm, &mut decoder, services, way, *seed, |step| {
                eprint!("\rseed {seed}, {name}: step {step}/{}   ", config.steps);
            })?;
            eprintln!();
            let (first, last) = (curve.gain[0].1, curve.gain[curve.gain.len() - 1].1);
            let each = spent / config.steps as f64;
            println!("{seed:>4}  {name:<13} {first:>7.3} {last:>8.3} {each:>15.2}");
            anyhow::ensure!(last - first >= GAIN, "{name} gained {:.3}, less than {GAIN}", last - first);
            seconds[at] += spent;
            gains[at].push(last);
        }
    }
    for at in 1..arms.len() {
        let (mean, half) = paired(&gains[at], &gains[0]);
        println!(
            "{}: {:.2}x lock-step; GBR differs by {mean:+.3}, 95 % interval over {} seeds {:+.3} to {:+.3}",
            arms[at].0,
            seconds[0] / seconds[at],
            gains[at].len(),
            mean - half,
            mean + half
        );
        anyhow::ensure!(mean.abs() <= half.max(0.02), "the searcher learns otherwise at {}", arms[at].0);
    }
    println!("{:.0} CPU-seconds in all", warm::cpu_seconds());
    println!("published, other loads and machines: verl's asynchronous rollouts 1.6x, AReaL 2.8x");
    println!("ratio rollout-async {:.3}", seconds[0] / seconds[1]);
    Ok(())
}

/// Mean of the differences and half of its 95 % interval.
fn paired(a: &[f64], b: &[f64]) -> (f64, f64) {
    /// Student's t, two-sided 95 %, by degrees of freedom.
    const T: [f64; 10] = [f64::INFINITY, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26];
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let n = differences.len() as f64;
    let mean = differences.iter().sum::<f64>() / n;
    let variance = differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, T.get(differences.len() - 1).copied().unwrap_or(1.96) * (variance / n).sqrt())
}
