//! Do the intervals cover, and is the test's size right? Seeded simulations of the situations an evaluation
//! meets.

use super::random::Stream;
use super::{bootstrap, mcnemar, wilson};

const REPEATS: usize = 2000;

/// Standard error of a simulated share near 95 % is 0.5 points with 2,000 repeats.
fn in_band(covered: usize, what: &str) {
    let share = covered as f64 / REPEATS as f64;
    println!("{what}: {share:.4}");
    assert!((0.93..=0.97).contains(&share), "{what}: {share}");
}

#[test]
fn wilson_covers() {
    for (n, p) in [(48, 0.3), (300, 0.12), (1000, 0.5)] {
        let covered = (0..REPEATS)
            .filter(|repeat| {
                let stream = Stream::new(11, *repeat as u64);
                let right = (0..n).filter(|at| stream.unit(*at as u64) < p).count();
                let found = wilson::interval(right, n, 0.95);
                found.low <= p && p <= found.high
            })
            .count();
        in_band(covered, &format!("wilson n={n} p={p}"));
    }
}

#[test]
fn the_bootstrap_covers_gains() {
    // wins, losses: shares of questions with a gain of +1 and −1
    for (n, wins, losses) in [(120, 0.15, 0.10), (300, 0.12, 0.05)] {
        let covered = (0..REPEATS)
            .filter(|repeat| {
                let stream = Stream::new(12, *repeat as u64);
                let values: Vec<f64> = (0..n)
                    .map(|at| {
                        let draw = stream.unit(at);
                        if draw < wins {
                            1.0
                        } else if draw < wins + losses {
                            -1.0
                        } else {
                            0.0
                        }
                    })
                    .collect();
                let found = bootstrap::mean(&values, 1.0, 0.95, 400, *repeat as u64);
                let truth = wins - losses;
                found.low <= truth + 1e-12 && truth - 1e-12 <= found.high
            })
            .count();
        in_band(covered, &format!("gain n={n} +{wins} -{losses}"));
    }
}

#[test]
fn the_bootstrap_covers_f1() {
    // F1 is mostly 0, sometimes 1, and between
    let f1 = |draw: f64| if draw < 0.55 { 0.0 } else { ((draw - 0.55) / 0.3).min(1.0) };
    let truth = 0.3 / 2.0 + 0.15;
    let covered = (0..REPEATS)
        .filter(|repeat| {
            let stream = Stream::new(13, *repeat as u64);
            let values: Vec<f64> = (0..100).map(|at| f1(stream.unit(at))).collect();
            let found = bootstrap::mean(&values, 1.0, 0.95, 400, *repeat as u64);
            found.low <= truth && truth <= found.high
        })
        .count();
    in_band(covered, "f1 n=100");
}

#[test]
fn mcnemar_keeps_its_size() {
    for (n, discordant) in [(48, 0.2), (400, 0.25)] {
        let rejected = (0..REPEATS)
            .filter(|repeat| {
                let stream = Stream::new(14, *repeat as u64);
                let draws = (0..n).map(|at| stream.unit(at));
                let (mut wins, mut losses) = (0, 0);
                for draw in draws {
                    wins += usize::from(draw < discordant / 2.0);
                    losses += usize::from((discordant / 2.0..discordant).contains(&draw));
                }
                mcnemar::p_value(wins, losses) <= 0.05
            })
            .count();
        let size = rejected as f64 / REPEATS as f64;
        println!("mcnemar n={n}: size {size:.4}");
        // two standard errors above 5 %
        assert!(size <= 0.06, "n={n}: {size}");
    }
}
