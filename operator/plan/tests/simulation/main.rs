//! Lives of a job component, simulated: the real decisions over a cluster that shows itself late and in parts, an
//! operator that crashes anywhere, users who change their minds, nodes that are lost.
//!
//! Every execution is drawn from a seed and held to the promises of `world.rs` and `operator.rs`. The bugs of other operators in
//! `bugs.rs`, put back one at a time, must each break a promise: else the promises would prove nothing.
//! `S3_EXECUTIONS` sets how many executions run (100,000).
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bugs;
mod operator;
mod world;

use bugs::Bug;
use world::World;

/// Executions within which every bug must be caught.
const SOON: u64 = 20_000;

#[test]
fn every_execution_keeps_every_promise() {
    let executions = std::env::var("S3_EXECUTIONS").ok().map_or(100_000, |text| text.parse().unwrap());
    let (mut decisions, mut ends) = (0, std::collections::BTreeMap::<&str, u64>::new());
    for seed in 0..executions {
        let mut world = World::new(seed, None);
        match world.live() {
            Ok(end) => *ends.entry(end).or_default() += 1,
            Err(broken) => panic!("seed {seed}: {broken}"),
        }
        decisions += world.decisions;
    }
    println!("{executions} executions, {decisions} decisions, ends {ends:?}");
    // a simulation that never gets anywhere would keep every promise
    for end in ["done", "failed", "stopped"] {
        assert!(ends.get(end).is_some_and(|count| *count > executions / 50), "{ends:?}");
    }
}

#[test]
fn bugs_of_other_operators_are_caught() {
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        let caught = (0..SOON).find_map(|seed| World::new(seed, Some(bug)).live().err().map(|broken| (seed, broken)));
        match caught {
            Some((seed, broken)) => println!("{bug:?}: seed {seed}: {broken}"),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not caught in {SOON} executions: {missed:?}");
}
