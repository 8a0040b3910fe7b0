//! The API server itself is killed right after the n-th write of a kind's life, and started again on the same etcd.
//!
//! `S3_RESTARTS` says after how many of the writes of each kind: so many, drawn from `S3_RESTART_SEED` (3 and 1);
//! `all` for every one of them (`make soak`).

use crate::faults::{MORE_WRITES, Numbers};
use crate::proxy::Fault;
use crate::scenario::{self, NAME};
use crate::setup::{PATIENCE, Setup};
use crate::snapshot::{made, settled};
use futures_util::future::join_all;
use s3_crds::Kind;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Instant;

/// Lives that one restart interrupts.
const SIDE_BY_SIDE: usize = 9;

/// A life without a restart.
struct Calm {
    state: Value,
    /// Writes until it has settled at its end.
    writes: usize,
    /// Writes of its deletion.
    deletion: usize,
}

/// A life that is interrupted.
struct Life {
    kind: Kind,
    setup: Setup,
    /// After this write; those of the deletion count on.
    write: usize,
}

/// Kills the API server and waits until it answers again.
async fn restart() {
    let plane = std::env::var("S3_TEST_PLANE").expect("no S3_TEST_PLANE: run the tests with `make test-cluster`");
    let status = tokio::process::Command::new(plane).arg("restart-api").status().await.unwrap();
    assert!(status.success(), "the API server did not come back");
}

async fn begin(kind: Kind, fault: Fault) -> Setup {
    let mut setup = Setup::new("restart").await;
    // The server is away for some seconds, which a leader should live through.
    setup.lease_seconds = 30;
    setup.start().await;
    setup.fault(fault);
    scenario::begin(&setup, kind).await;
    setup
}

async fn delete(kind: Kind, setup: &Setup) {
    if kind != Kind::RetrieverIndex {
        setup.delete(kind, NAME).await;
    }
    setup.delete(Kind::RetrieverIndex, NAME).await;
}

async fn until_nothing_is_left(setup: &Setup) {
    setup
        .until("nothing is left", async || {
            let left = made(setup).await;
            left.len() == 1 && left["running pods"] == ["0"]
        })
        .await;
}

async fn calm(kind: Kind) -> Calm {
    let setup = begin(kind, Fault::None).await;
    scenario::ended(&setup, kind).await;
    let (state, writes) = settled(&setup).await;
    delete(kind, &setup).await;
    until_nothing_is_left(&setup).await;
    let deletion = setup.proxy.writes().len() - writes;
    setup.done().await;
    Calm { state, writes, deletion }
}

/// A life up to the write whose answer is lost; from then on the server does not answer.
async fn reach(kind: Kind, write: usize, calm: &Calm) -> Life {
    let lost = |write: usize| Fault::AnswerLost(u32::try_from(write).unwrap());
    let setup = if write <= calm.writes {
        begin(kind, lost(write)).await
    } else {
        let setup = begin(kind, Fault::None).await;
        scenario::ended(&setup, kind).await;
        settled(&setup).await;
        setup.fault(lost(write - calm.writes));
        delete(kind, &setup).await;
        setup
    };
    // Two equal lives may differ by a write or two: then the restart comes after its last.
    if tokio::time::timeout(PATIENCE / 6, setup.proxy.crashed()).await.is_err() {
        println!("{}: write {write} of {} never came", kind.name(), calm.writes + calm.deletion);
        setup.fault(Fault::Outage);
    }
    Life { kind, setup, write }
}

/// The rest of a life ends as an undisturbed one, with few more writes, and leaves nothing.
async fn go_on(Life { kind, setup, write }: Life, calm: &Calm) {
    if write <= calm.writes {
        scenario::ended(&setup, kind).await;
        let end = Instant::now() + PATIENCE;
        let (mut state, mut writes) = settled(&setup).await;
        // What Kubernetes itself collects comes late after its own restart.
        while state != calm.state && Instant::now() < end {
            (state, writes) = settled(&setup).await;
        }
        println!("{} after write {write}: {writes} writes, undisturbed {}", kind.name(), calm.writes);
        assert_eq!(state, calm.state, "{} after write {write}: another end\n{}", kind.name(), setup.tail());
        assert!(
            writes <= calm.writes + MORE_WRITES,
            "{} after write {write}: {writes} writes, undisturbed {}",
            kind.name(),
            calm.writes
        );
        delete(kind, &setup).await;
    }
    until_nothing_is_left(&setup).await;
    setup.done().await;
}

/// The writes after which the server is killed, ascending.
fn chosen(seed: u64, kind: usize, calm: &Calm) -> BTreeSet<usize> {
    let all = calm.writes + calm.deletion;
    let wanted = std::env::var("S3_RESTARTS").unwrap_or_else(|_| "3".into());
    if wanted == "all" {
        return (1..=all).collect();
    }
    let wanted: usize = wanted.parse().expect("S3_RESTARTS is a number or `all`");
    let mut numbers = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ kind as u64);
    let mut chosen = BTreeSet::new();
    while chosen.len() < wanted.min(all) {
        chosen.insert(1 + numbers.below(all as u64) as usize);
    }
    chosen
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes the API server from all other tests; tests/cluster/test.sh runs it after them"]
async fn every_kind_survives_a_restart_of_the_api_server_after_any_write() {
    let seed = std::env::var("S3_RESTART_SEED").ok().map_or(1, |text| text.parse().unwrap());
    let calm = join_all(Kind::ALL.map(calm)).await;
    let mut all: Vec<(usize, usize)> = Vec::new();
    for (kind, calm) in calm.iter().enumerate() {
        let chosen = chosen(seed, kind, calm);
        println!(
            "{}: {} writes and {} of its deletion; seed {seed}: killed after {chosen:?}",
            Kind::ALL[kind].name(),
            calm.writes,
            calm.deletion
        );
        all.extend(chosen.into_iter().map(|write| (write, kind)));
    }
    // Those that come at about the same time are interrupted together.
    all.sort_unstable();
    for batch in all.chunks(SIDE_BY_SIDE) {
        let lives = join_all(batch.iter().map(|(write, kind)| reach(Kind::ALL[*kind], *write, &calm[*kind]))).await;
        restart().await;
        for life in &lives {
            life.setup.fault(Fault::None);
        }
        join_all(lives.into_iter().zip(batch).map(|(life, (_, kind))| go_on(life, &calm[*kind]))).await;
    }
}
