//! One execution: a small cluster, an operator that sees it late, and the promises that hold at every step.

use crate::bugs::Bug;
use crate::operator::PAUSE;
use s3_crds::{Duration, FailureClass, FailurePolicy};
use s3_plan::lifecycle::{Move, Record, Verdict};

/// Replicas of an attempt: one's failure ends it while the other still works.
pub const REPLICAS: usize = 2;
/// Steps of trouble before the world calms down.
const TROUBLE: u64 = 120;
/// Rounds of calm within which everything must have settled.
const CALM: u32 = 400;
/// Rounds without any change after which nothing more is expected.
const QUIET: u32 = 4;
/// A broken promise, in words.
pub type Broken = String;

macro_rules! promise {
    ($holds:expr, $($told:tt)*) => {
        if !$holds {
            return Err(format!($($told)*));
        }
    };
}
pub(crate) use promise;

/// What a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pod {
    Pending,
    Running,
    Succeeded,
    Failed(FailureClass),
    /// Its node is gone; whatever runs there is fenced by the storage.
    Lost,
}

impl Pod {
    pub fn works(self) -> bool {
        matches!(self, Self::Pending | Self::Running)
    }
}

/// A replica's Job and pod.
#[derive(Clone, Debug, Default)]
pub struct Replica {
    pub job: bool,
    /// The Job's controller has made its pod.
    pub made: bool,
    /// When it told the end, in changes of the world.
    pub over: Option<u64>,
    pub pod: Option<Pod>,
    /// The pod was asked to leave.
    pub going: bool,
    /// The Job is being deleted: it goes after its pod.
    pub ending: bool,
    pub since: Option<i64>,
}

/// An attempt as it is.
#[derive(Clone, Debug)]
pub struct Real {
    pub number: u32,
    pub print: u32,
    pub started: i64,
    /// Its ConfigMap is there.
    pub known: bool,
    pub record: Option<Record>,
    pub replicas: Vec<Replica>,
}

impl Real {
    pub fn working(&self) -> usize {
        self.replicas.iter().filter(|replica| replica.pod.is_some_and(Pod::works)).count()
    }
}

/// One kind of object as the operator has it cached.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    pub as_of: u64,
    pub attempts: Vec<Real>,
}

/// The world.
pub struct World {
    pub seed: u64,
    pub random: u64,
    pub bug: Option<Bug>,
    pub now: i64,
    /// Changes so far.
    pub change: u64,
    pub truth: Vec<Real>,
    pub records: Cache,
    pub jobs: Cache,
    pub pods: Cache,
    pub policy: FailurePolicy,
    pub deadline: Option<u64>,
    pub suspend: bool,
    pub ready: bool,
    pub print: Option<u32>,
    pub newest_print: u32,
    /// What bugs remember.
    pub given_up: bool,
    pub seen_ending: Vec<u32>,
    pub restarted_at: i64,
    /// Decisions made.
    pub decisions: u64,
}

impl World {
    /// Of a seed.
    pub fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut world = Self {
            seed,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed,
            bug,
            now: 1_000_000,
            change: 0,
            truth: Vec::new(),
            records: Cache::default(),
            jobs: Cache::default(),
            pods: Cache::default(),
            policy: FailurePolicy::default(),
            deadline: None,
            suspend: false,
            ready: false,
            print: None,
            newest_print: 1,
            given_up: false,
            seen_ending: Vec::new(),
            restarted_at: 0,
            decisions: 0,
        };
        world.policy = FailurePolicy {
            max_attempts: 1 + world.below(4) as u32,
            backoff: Duration::from_secs(PAUSE as u64),
            max_backoff: Duration::from_secs(60),
            ..FailurePolicy::default()
        };
        world.deadline = (world.below(4) == 0).then(|| 50 + world.below(400));
        world
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % bound
    }

    pub fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Lives it to its end: `done`, `failed` or `stopped`.
    pub fn live(&mut self) -> Result<&'static str, Broken> {
        let steps = 20 + self.below(TROUBLE);
        for _ in 0..steps {
            self.now += self.below(15) as i64;
            match self.below(10) {
                0..=3 => self.cluster(),
                4 => self.user(),
                5 => self.crash(),
                _ => {
                    self.see_some();
                    self.decide()?;
                }
            }
            self.one_at_a_time()?;
        }
        self.settle()
    }

    /// No more trouble: pods run and succeed, caches catch up. Everything must come to rest.
    fn settle(&mut self) -> Result<&'static str, Broken> {
        self.ready = true;
        self.print = Some(self.newest_print);
        self.suspend &= self.below(4) == 0;
        let mut quiet = 0;
        for _ in 0..CALM {
            let before = self.change;
            for of in 0..self.truth.len() {
                for which in 0..REPLICAS {
                    self.moves_on(of, which, false);
                }
            }
            self.see_all();
            let (step, wrote) = self.decide()?;
            self.one_at_a_time()?;
            self.now += 20;
            quiet = if self.change == before && !wrote { quiet + 1 } else { 0 };
            if quiet == QUIET {
                return self.at_rest(&step);
            }
        }
        Err("it never settles: something is written in every round".into())
    }

    fn at_rest(&self, step: &Move) -> Result<&'static str, Broken> {
        let working: usize = self.truth.iter().map(Real::working).sum();
        promise!(working == 0, "at rest by {step:?}, and {working} pods work on");
        let left = self.truth.iter().find(|real| {
            let stopped = matches!(real.record, Some(Record { verdict: Verdict::Stopped { .. }, .. }));
            stopped && real.replicas.iter().any(|replica| replica.job && !replica.ending)
        });
        promise!(left.is_none(), "Jobs of a stopped attempt are left: {left:?}");
        match step {
            Move::Done { .. } => Ok("done"),
            Move::Fail(_) => Ok("failed"),
            Move::Stopped(_) => Ok("stopped"),
            other => Err(format!("at rest, and neither done nor failed nor stopped: {other:?}")),
        }
    }

    // ---- what happens by itself

    pub fn changed(&mut self) {
        self.change += 1;
    }

    /// Something of the cluster moves on.
    fn cluster(&mut self) {
        if !self.truth.is_empty() {
            let of = self.below(self.truth.len() as u64) as usize;
            let which = self.below(REPLICAS as u64) as usize;
            self.moves_on(of, which, true);
        }
    }

    /// A replica moves on; with `trouble` it may go wrong.
    fn moves_on(&mut self, of: usize, which: usize, trouble: bool) {
        let (dice, kind) = (self.below(20), self.below(8));
        let (now, change) = (self.now, self.change);
        let alone = self.truth[of]
            .replicas
            .iter()
            .any(|peer| peer.made && !matches!(peer.pod, Some(Pod::Pending | Pod::Running | Pod::Succeeded)));
        let replica = &mut self.truth[of].replicas[which];
        let before = (replica.pod, replica.over, replica.made, replica.job);
        match replica.pod {
            None | Some(Pod::Succeeded | Pod::Failed(_)) if replica.ending => {
                (replica.job, replica.pod) = (false, None);
            }
            None if replica.job && !replica.made => {
                (replica.made, replica.pod, replica.since) = (true, Some(Pod::Pending), Some(now));
            }
            // A Job that is over, or whose pod is gone.
            None | Some(Pod::Succeeded | Pod::Failed(_)) if replica.job && replica.made && replica.over.is_none() => {
                replica.over = Some(change + 1);
            }
            // The worker saves and leaves. From a lost node nothing is heard.
            Some(Pod::Pending | Pod::Running) if replica.going => replica.pod = None,
            Some(Pod::Pending) if trouble && dice == 0 => replica.pod = None,
            Some(Pod::Pending) => replica.pod = Some(Pod::Running),
            Some(Pod::Running) if trouble && dice < 2 => replica.pod = Some(Pod::Lost),
            Some(Pod::Running) if trouble && dice == 2 => replica.pod = None,
            Some(Pod::Running) if trouble && dice < 7 => {
                let classes = [
                    FailureClass::Unknown,
                    FailureClass::Storage,
                    FailureClass::DependencyUnavailable,
                    FailureClass::Communication,
                    FailureClass::NodeLost,
                    FailureClass::Unknown,
                    FailureClass::InvalidInput,
                    FailureClass::OutOfMemory,
                ];
                replica.pod = Some(Pod::Failed(classes[kind as usize]));
            }
            // A replica whose peer is gone waits for it for ever.
            Some(Pod::Running) if alone => {}
            Some(Pod::Running) if !trouble || dice < 14 => replica.pod = Some(Pod::Succeeded),
            _ => {}
        }
        if before != (replica.pod, replica.over, replica.made, replica.job) {
            self.changed();
        }
    }

    fn user(&mut self) {
        match self.below(6) {
            0 | 1 => self.suspend = !self.suspend,
            2 => {
                self.newest_print += 1;
                self.print = self.print.map(|_| self.newest_print);
            }
            3 | 4 => self.ready = !self.ready,
            _ => self.print = if self.print.is_some() { None } else { Some(self.newest_print) },
        }
    }

    /// The operator is gone, and another one starts from what is there.
    pub fn crash(&mut self) {
        self.see_all();
        self.given_up = false;
        self.seen_ending.clear();
        self.restarted_at = self.now;
    }

    fn see_all(&mut self) {
        let cache = Cache { as_of: self.change, attempts: self.truth.clone() };
        (self.records, self.jobs, self.pods) = (cache.clone(), cache.clone(), cache);
    }

    /// Watches run at their own pace.
    fn see_some(&mut self) {
        let cache = Cache { as_of: self.change, attempts: self.truth.clone() };
        if self.below(2) == 0 {
            self.records = cache.clone();
        }
        if self.below(2) == 0 {
            self.jobs = cache.clone();
        }
        if self.below(2) == 0 {
            self.pods = cache;
        }
    }

    /// Its own last write is in the caches before the operator decides again.
    pub fn see_own(&mut self) {
        if self.has(Bug::StartsTwice) || self.has(Bug::DeposedLeaderWrites) && self.below(3) == 0 {
            return;
        }
        let cache = Cache { as_of: self.change, attempts: self.truth.clone() };
        (self.records, self.jobs) = (cache.clone(), cache);
    }

    /// Two attempts never work at the same time.
    fn one_at_a_time(&self) -> Result<(), Broken> {
        let working: Vec<u32> = self.truth.iter().filter(|real| real.working() > 0).map(|real| real.number).collect();
        promise!(working.len() <= 1, "attempts {working:?} work at the same time");
        Ok(())
    }
}
