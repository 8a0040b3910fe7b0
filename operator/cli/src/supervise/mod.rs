//! Runs a plan's components as child processes until every job has its outcome.
//!
//! One loop on the main thread: it looks at the processes, their progress and the signals, and makes
//! the next moves that the plan's policies decide. Everything needed to go on after `kill -9` is on disk
//! before the move that depends on it.

mod end;
mod start;
mod stop;

use crate::admin::is_ready;
use crate::bind::LocalBinder;
use crate::process::Process;
use crate::progress::{Display, STARTING};
use crate::state::State;
use crate::status::{StatusWriter, View};
use crate::text::Problem;
use nix::sys::signal::Signal;
use s3_plan::{Component, Decision, Observed, Plan, RestartPolicy, Role, decide, fingerprint};
use s3_telemetry::{Failure, ProgressReport, read_progress};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use stop::StopSignals;

const TICK: Duration = Duration::from_millis(50);
/// Status files follow transitions at once and progress this often.
const STATUS_EVERY: Duration = Duration::from_secs(2);
/// How long services get to end after SIGTERM.
const SERVICE_GRACE: Duration = Duration::from_secs(10);

/// What a run is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder of the worker programs.
    pub binaries: PathBuf,
    /// How long jobs get to save after SIGTERM.
    pub grace: Duration,
    /// Restarts.
    pub restart: RestartPolicy,
    /// Services stay until Ctrl-C once all jobs are done.
    pub keep_services: bool,
    /// Jobs that may run side by side.
    pub jobs: usize,
}

/// How a run ended without a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Every job has its outcome.
    Finished,
    /// Somebody asked to stop; what was done is saved.
    Interrupted,
}

/// State of one component as this run sees it.
pub enum Phase {
    /// Not started, or stopped because nobody needs it.
    Waiting,
    /// Its process runs.
    Running {
        /// The process.
        process: Process,
        /// A service that answers.
        ready: bool,
        /// When it was asked to end because nobody needs it.
        stopping: Option<Instant>,
    },
    /// Its process ended badly and is started again at this time.
    Pausing {
        /// When.
        until: Instant,
    },
    /// A job with an outcome.
    Finished,
}

/// Everything a run holds.
pub struct Supervisor {
    plan: Plan,
    state: State,
    binder: LocalBinder,
    options: Options,
    observed: Observed,
    phases: BTreeMap<String, Phase>,
    restarts: BTreeMap<String, u32>,
    progress: BTreeMap<String, ProgressReport>,
    display: Display,
    status: StatusWriter,
    status_due: Instant,
}

impl Supervisor {
    /// Nothing is started yet.
    pub fn new(
        plan: Plan,
        state: State,
        binder: LocalBinder,
        options: Options,
        observed: Observed,
        status: StatusWriter,
    ) -> Self {
        let display = Display::new(plan.components.iter().map(|component| component.name.as_str()));
        let phases = plan.components.iter().map(|component| (component.name.clone(), Phase::Waiting)).collect();
        Self {
            plan,
            state,
            binder,
            options,
            observed,
            phases,
            restarts: BTreeMap::new(),
            progress: BTreeMap::new(),
            display,
            status,
            status_due: Instant::now(),
        }
    }

    /// What is finished, at the moment.
    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    /// Runs to the end. Call it on the main thread.
    pub async fn run(&mut self) -> Result<End, Problem> {
        let mut stop = StopSignals::listen().map_err(|e| Problem::internal(format!("signals: {e}")))?;
        let result = self.work(&mut stop).await;
        if result.is_err() {
            self.wind_down(&mut stop).await;
        }
        self.display.clear();
        self.write_status(true)?;
        self.record_processes()?;
        result
    }

    /// Brings up the services that `job` needs, does `work`, and ends them again.
    pub async fn with_services<T>(
        &mut self,
        job: &str,
        work: impl FnOnce(&LocalBinder) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        let mut stop = StopSignals::listen().map_err(|e| Problem::internal(format!("signals: {e}")))?;
        let result = self.serve(job, &mut stop).await;
        self.display.clear();
        let result = result.and_then(|()| work(&self.binder));
        self.wind_down(&mut stop).await;
        self.record_processes()?;
        result
    }

    async fn serve(&mut self, job: &str, stop: &mut StopSignals) -> Result<(), Problem> {
        let services: Vec<String> =
            self.plan.components.iter().filter(|c| c.role == Role::Service).map(|c| c.name.clone()).collect();
        for name in self.names() {
            if self.observed.finished.contains_key(&name) {
                self.phases.insert(name, Phase::Finished);
            }
        }
        while !self.services_ready(job)? {
            if stop.count() > 0 {
                return Err(Problem(vec![Failure::interrupted()]));
            }
            for name in &services {
                self.look_after(name)?;
            }
            tokio::time::sleep(TICK).await;
        }
        Ok(())
    }

    async fn work(&mut self, stop: &mut StopSignals) -> Result<End, Problem> {
        let mut said = false;
        loop {
            if stop.count() > 0 {
                self.display.line("  stopping: jobs save and end first (Ctrl-C again kills them)");
                self.wind_down(stop).await;
                return Ok(if self.all_finished() { End::Finished } else { End::Interrupted });
            }
            for name in self.names() {
                self.look_after(&name)?;
            }
            if self.all_finished() {
                if !self.options.keep_services {
                    self.wind_down(stop).await;
                    return Ok(End::Finished);
                }
                if !said && self.all_services_ready() {
                    said = true;
                    self.announce_services();
                }
            }
            self.write_status(false)?;
            tokio::time::sleep(TICK).await;
        }
    }

    fn names(&self) -> Vec<String> {
        self.plan.components.iter().map(|component| component.name.clone()).collect()
    }

    fn component(&self, name: &str) -> Result<&Component, Problem> {
        self.plan.component(name).ok_or_else(|| Problem::internal(format!("{name} is not in the plan")))
    }

    fn all_finished(&self) -> bool {
        self.plan
            .components
            .iter()
            .filter(|component| component.role == Role::Job)
            .all(|component| matches!(self.phases.get(&component.name), Some(Phase::Finished)))
    }

    fn all_services_ready(&self) -> bool {
        let mut services = self.plan.components.iter().filter(|component| component.role == Role::Service);
        services.all(|service| matches!(self.phases.get(&service.name), Some(Phase::Running { ready: true, .. })))
    }

    /// Whether one more job may start.
    fn has_room(&self) -> bool {
        let busy = |component: &&Component| {
            component.role == Role::Job
                && matches!(self.phases.get(&component.name), Some(Phase::Running { .. } | Phase::Pausing { .. }))
        };
        self.plan.components.iter().filter(busy).count() < self.options.jobs
    }

    /// Makes the next move for one component.
    fn look_after(&mut self, name: &str) -> Result<(), Problem> {
        match self.phases.get_mut(name) {
            Some(Phase::Running { process, .. }) => {
                let ended = process.ended().map_err(|e| Problem::internal(format!("{name}: {e}")))?;
                let lived = process.since.elapsed();
                match ended {
                    Some(exit) => self.ended(name, exit, lived),
                    None => self.running(name),
                }
            }
            Some(Phase::Pausing { until }) if Instant::now() >= *until => self.start(name),
            Some(Phase::Waiting) => self.waiting(name),
            _ => Ok(()),
        }
    }

    fn waiting(&mut self, name: &str) -> Result<(), Problem> {
        let component = self.component(name)?;
        let decision = decide(&self.plan, component, &self.observed);
        match (component.role, decision) {
            (Role::Job, Decision::Keep { digest }) => {
                let short = digest.get(..12).unwrap_or(&digest).to_owned();
                self.phases.insert(name.to_owned(), Phase::Finished);
                self.display.finish(name, "✓", &format!("finished earlier ({short})"));
                Ok(())
            }
            (Role::Job, Decision::Run | Decision::Renew { .. }) if self.has_room() && self.services_ready(name)? => {
                self.start(name)
            }
            (Role::Service, Decision::Run) => self.start(name),
            (Role::Service, Decision::Idle) if self.options.keep_services => {
                // What it serves must have been made.
                if fingerprint(&self.plan, component, &self.observed).is_ok() { self.start(name) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    fn services_ready(&self, name: &str) -> Result<bool, Problem> {
        let component = self.component(name)?;
        Ok(component
            .needs
            .iter()
            .all(|need| matches!(self.phases.get(need), Some(Phase::Running { ready: true, .. } | Phase::Finished))))
    }

    fn running(&mut self, name: &str) -> Result<(), Problem> {
        let role = self.component(name)?.role;
        match read_progress(&self.state.progress(name)) {
            Some(report) => {
                self.display_running(name, &report);
                self.progress.insert(name.to_owned(), report);
            }
            None => self.display_running(name, &ProgressReport { phase: STARTING.to_owned(), ..Default::default() }),
        }
        if role == Role::Job {
            return Ok(());
        }
        let reported = self.progress.get(name).is_some_and(|report| report.ready);
        let admin = self.binder.port(name, s3_plan::ADMIN_PORT);
        let idle = decide(&self.plan, self.component(name)?, &self.observed) == Decision::Idle;
        let Some(Phase::Running { process, ready, stopping }) = self.phases.get_mut(name) else { return Ok(()) };
        if idle && !self.options.keep_services {
            match stopping {
                None => {
                    process.signal(Signal::SIGTERM);
                    *stopping = Some(Instant::now());
                }
                Some(since) if since.elapsed() > SERVICE_GRACE => process.signal(Signal::SIGKILL),
                Some(_) => {}
            }
            return Ok(());
        }
        if !*ready && reported && admin.is_none_or(is_ready) {
            *ready = true;
            self.display.finish(name, "●", "ready");
            self.status_due = Instant::now();
        }
        Ok(())
    }

    fn display_running(&mut self, name: &str, report: &ProgressReport) {
        if !matches!(self.phases.get(name), Some(Phase::Running { ready: true, .. })) {
            self.display.update(name, report);
        }
    }

    fn record_processes(&self) -> Result<(), Problem> {
        // the first replica under the component's name, the others under names of their own
        let mut running = BTreeMap::new();
        for (name, phase) in &self.phases {
            let Phase::Running { process, .. } = phase else { continue };
            for (rank, identity) in process.identities().enumerate() {
                running.insert(if rank == 0 { name.clone() } else { format!("{name}/{rank}") }, identity);
            }
        }
        self.state.write("processes.json", &running)
    }

    fn write_status(&mut self, now: bool) -> Result<(), Problem> {
        if now || Instant::now() >= self.status_due {
            self.status_due = Instant::now() + STATUS_EVERY;
            let view = View {
                plan: &self.plan,
                state: &self.state,
                observed: &self.observed,
                phases: &self.phases,
                progress: &self.progress,
            };
            self.status.write(&view)?;
        }
        Ok(())
    }

    fn announce_services(&self) {
        for component in self.plan.components.iter().filter(|component| component.role == Role::Service) {
            for port in &component.ports {
                if let Some(number) = self.binder.port(&component.name, port) {
                    self.display.note(&component.name, &format!("{port} on 127.0.0.1:{number}"));
                }
            }
        }
        self.display.line("  services stay until Ctrl-C");
    }
}
