//! Lives under faults end as undisturbed ones do.
//!
//! A plan is drawn from a seed: crashes around the n-th write, late or broken watches, an API server that is away,
//! a second operator that takes over, a deletion at some moment. `S3_FAULT_PLANS` sets how many plans a kind
//! (30; `make soak` runs 600), `S3_FAULT_SEED` the first seed.

use crate::kubelet::Play;
use crate::kueue::Queue;
use crate::proxy::Fault;
use crate::scenario::{self, NAME};
use crate::setup::Setup;
use crate::snapshot::{made, settled};
use futures_util::{StreamExt as _, stream};
use s3_crds::Kind;
use serde_json::{Value, json};
use std::time::Duration;

/// Plans that run at the same time.
const SIDE_BY_SIDE: usize = 6;
/// Writes that a fault may cause beyond those of an undisturbed life: what was written before a crash and not seen.
pub const MORE_WRITES: usize = 12;

/// One thing that goes wrong.
#[derive(Clone, Debug)]
enum Trouble {
    CrashBefore(u32),
    CrashAfter(u32),
    Stale(Duration),
    CutWatches,
    Outage(Duration),
    TakeOver,
    Delete,
}

/// What goes wrong and when.
#[derive(Clone, Debug)]
struct Plan {
    troubles: Vec<(Duration, Trouble)>,
}

/// A small generator of numbers: plans are the same everywhere.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn plan(seed: u64) -> Plan {
    let mut numbers = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed);
    let count = 1 + numbers.below(3);
    let mut deleted = false;
    let troubles = (0..count)
        .map(|_| {
            let pause = Duration::from_millis(numbers.below(2500));
            let trouble = match numbers.below(14) {
                0..=3 => Trouble::CrashBefore(1 + numbers.below(12) as u32),
                4..=7 => Trouble::CrashAfter(1 + numbers.below(12) as u32),
                8 => Trouble::Stale(Duration::from_millis(100 + numbers.below(900))),
                9 => Trouble::CutWatches,
                10 => Trouble::Outage(Duration::from_millis(200 + numbers.below(2000))),
                11 | 12 => Trouble::TakeOver,
                _ if deleted => Trouble::CutWatches,
                _ => {
                    deleted = true;
                    Trouble::Delete
                }
            };
            (pause, trouble)
        })
        .collect();
    Plan { troubles }
}

async fn carry_out(setup: &Setup, kind: Kind, plan: &Plan) -> bool {
    let mut deleted = false;
    let mut leader = 0;
    for (pause, trouble) in &plan.troubles {
        tokio::time::sleep(*pause).await;
        match trouble {
            Trouble::CrashBefore(write) | Trouble::CrashAfter(write) => {
                let after = matches!(trouble, Trouble::CrashAfter(_));
                setup.fault(if after { Fault::CrashAfter(*write) } else { Fault::CrashBefore(*write) });
                // It may have nothing more to write: then it is killed for no reason at all.
                let _ = tokio::time::timeout(Duration::from_secs(3), setup.proxy.crashed()).await;
                setup.fault(Fault::None);
                setup.restart(leader).await;
            }
            Trouble::Stale(late) => {
                setup.fault(Fault::StaleWatches(*late));
                setup.proxy.cut_watches();
                tokio::time::sleep(Duration::from_secs(3)).await;
                setup.fault(Fault::None);
                setup.proxy.cut_watches();
            }
            Trouble::CutWatches => setup.proxy.cut_watches(),
            Trouble::Outage(length) => {
                setup.fault(Fault::Outage);
                setup.proxy.cut_watches();
                tokio::time::sleep(*length).await;
                setup.fault(Fault::None);
            }
            Trouble::TakeOver => {
                let next = setup.start().await;
                tokio::time::sleep(Duration::from_millis(300)).await;
                setup.kill(leader).await;
                leader = next;
            }
            Trouble::Delete => {
                deleted = true;
                if kind != Kind::RetrieverIndex {
                    setup.delete(kind, NAME).await;
                }
                setup.delete(Kind::RetrieverIndex, NAME).await;
            }
        }
    }
    deleted
}

/// What a life has beside its own kind's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum With {
    Nothing,
    /// A queue, which admits at once.
    Queue,
    /// Evaluations on a schedule.
    Schedule,
}

/// Begins a life.
async fn begin(setup: &Setup, kind: Kind, with: With) {
    if with == With::Schedule {
        setup.kubelet.play("a-train", Play::Trained { milestones: scenario::milestones(&[1, 2, 3]) });
        setup.apply(Kind::EvalRun, &scenario::template()).await;
    }
    scenario::begin_with(setup, kind, |object| match with {
        With::Nothing => {}
        With::Queue => object["spec"]["queue"] = json!({"name": "gpus"}),
        With::Schedule => object["spec"]["evaluation"] = scenario::every(1),
    })
    .await;
}

/// Waits for its good end.
async fn ended(setup: &Setup, kind: Kind, with: With) {
    if with == With::Schedule {
        setup.until_reason(kind, NAME, "Evaluated", "Evaluated").await;
    }
    scenario::ended(setup, kind).await;
}

async fn calm(kind: Kind, with: With) -> (Value, usize) {
    let setup = Setup::new("calm").await;
    let _queue = Queue::start(&setup);
    setup.start().await;
    begin(&setup, kind, with).await;
    ended(&setup, kind, with).await;
    let end = settled(&setup).await;
    setup.done().await;
    end
}

async fn disturbed(kind: Kind, with: With, seed: u64, calm: &(Value, usize)) {
    let setup = Setup::new("faults").await;
    let _queue = Queue::start(&setup);
    let plan = plan(seed);
    setup.start().await;
    begin(&setup, kind, with).await;
    let deleted = carry_out(&setup, kind, &plan).await;
    if deleted {
        setup
            .until(&format!("seed {seed}: nothing is left after {plan:?}"), async || {
                let left = made(&setup).await;
                left.len() == 1 && left["running pods"] == ["0"]
            })
            .await;
    } else {
        ended(&setup, kind, with).await;
        let (state, writes) = settled(&setup).await;
        let log = setup.tail();
        assert_eq!(state, calm.0, "{} seed {seed}: another end after {plan:?}\n{log}", kind.name());
        let most = calm.1 + MORE_WRITES * plan.troubles.len();
        assert!(writes <= most, "{} seed {seed}: {writes} writes, undisturbed {} ({plan:?})", kind.name(), calm.1);
    }
    setup.done().await;
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

async fn all(kind: Kind, with: With) {
    let (plans, first) = (number("S3_FAULT_PLANS", 30), number("S3_FAULT_SEED", 1));
    // What a queue or a schedule adds is little.
    let plans = if with == With::Nothing { plans } else { plans.div_ceil(3) };
    let calm = calm(kind, with).await;
    println!("{}: {plans} plans from seed {first}, {} writes undisturbed", kind.name(), calm.1);
    let lives = stream::iter(first..first + plans).map(|seed| disturbed(kind, with, seed, &calm));
    lives.buffer_unordered(SIDE_BY_SIDE).collect::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn indices_survive_faults() {
    all(Kind::RetrieverIndex, With::Nothing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_survive_faults() {
    all(Kind::S3TrainingJob, With::Nothing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn evaluations_survive_faults() {
    all(Kind::EvalRun, With::Nothing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_in_queues_survive_faults() {
    all(Kind::S3TrainingJob, With::Queue).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_with_schedules_survive_faults() {
    all(Kind::S3TrainingJob, With::Schedule).await;
}
