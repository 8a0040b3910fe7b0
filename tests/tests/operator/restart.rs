//! The API server itself is killed and started again, on the same etcd.

use crate::faults::{MORE_WRITES, undisturbed};
use crate::kubelet::{Play, done};
use crate::scenario::{self, NAME};
use crate::setup::Setup;
use crate::snapshot::{made, settled};
use futures_util::future::join_all;
use s3_crds::Kind;

/// Kills the API server and waits until it answers again.
async fn restart() {
    let plane = std::env::var("S3_TEST_PLANE").expect("no S3_TEST_PLANE: run the tests with `make test-cluster`");
    let status = tokio::process::Command::new(plane).arg("restart-api").status().await.unwrap();
    assert!(status.success(), "the API server did not come back");
}

/// What runs in the middle of a kind's life, and what is said then.
fn middle(kind: Kind) -> (&'static str, &'static str, &'static str) {
    match kind {
        Kind::RetrieverIndex => ("a-index", "Built", "Building"),
        Kind::S3TrainingJob => ("a-train", "Training", "Stepping"),
        Kind::EvalRun => ("a-eval", "Evaluating", "Answering"),
    }
}

/// Killed while objects are being made, and again while a worker of each kind works: every life ends as an undisturbed
/// one, with few more writes, and leaves nothing.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes the API server from all other tests; tests/cluster/test.sh runs it after them"]
async fn every_kind_survives_a_restart_of_the_api_server() {
    let calm = join_all(Kind::ALL.map(undisturbed)).await;
    let setups = join_all(Kind::ALL.map(|kind| async move {
        let setup = Setup::new("restart").await;
        setup.kubelet.play(middle(kind).0, Play::Run);
        setup.start().await;
        scenario::begin(&setup, kind).await;
        setup
    }))
    .await;
    restart().await;
    for (setup, kind) in setups.iter().zip(Kind::ALL) {
        let (_, condition, reason) = middle(kind);
        setup.until_reason(kind, NAME, condition, reason).await;
    }
    restart().await;
    for (setup, kind) in setups.iter().zip(Kind::ALL) {
        let worker = middle(kind).0;
        setup.kubelet.play(worker, done(worker));
    }
    let ends = setups.iter().zip(Kind::ALL).zip(&calm).map(|((setup, kind), calm)| async move {
        scenario::ended(setup, kind).await;
        let (state, writes) = settled(setup).await;
        println!("{}: {writes} writes, undisturbed {}", kind.name(), calm.1);
        assert_eq!(state, calm.0, "{}: another end\n{}", kind.name(), setup.tail());
        assert!(writes <= calm.1 + 2 * MORE_WRITES, "{}: {writes} writes, undisturbed {}", kind.name(), calm.1);
        if kind != Kind::RetrieverIndex {
            setup.delete(kind, NAME).await;
        }
        setup.delete(Kind::RetrieverIndex, NAME).await;
        setup
            .until("nothing is left", async || {
                let left = made(setup).await;
                left.len() == 1 && left["running pods"] == ["0"]
            })
            .await;
    });
    join_all(ends).await;
    for setup in setups {
        setup.done().await;
    }
}
