//! Runs a plan's components as child processes until every job has its outcome.
//!
//! One loop on the main thread: it looks at the processes, their progress and the signals, and makes
//! the next moves that the plan's policies decide. Everything needed to go on after `kill -9` is on disk
//! before the move that depends on it.

use crate::admin::is_ready;
use crate::bind::LocalBinder;
use crate::process::Process;
use crate::progress::Display;
use crate::state::State;
use crate::status::{StatusWriter, View};
use crate::text::Problem;
use nix::sys::signal::Signal;
use s3_plan::{Component, Decision, Exit, ExitKind, Finished, Next, Observed, Plan, RestartPolicy, Role, WorkIdentity, decide, fingerprint, work_identity};
use s3_telemetry::{ExitClass, Failure, Outcome, ProgressReport, read_progress};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

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
                if !said {
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

    fn job_runs(&self) -> bool {
        self.plan.components.iter().any(|component| {
            component.role == Role::Job
                && matches!(self.phases.get(&component.name), Some(Phase::Running { .. } | Phase::Pausing { .. }))
        })
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
            (Role::Job, Decision::Run | Decision::Renew { .. }) if !self.job_runs() && self.services_ready(name)? => {
                self.start(name)
            }
            (Role::Service, Decision::Run) => self.start(name),
            _ => Ok(()),
        }
    }

    fn services_ready(&self, name: &str) -> Result<bool, Problem> {
        let component = self.component(name)?;
        Ok(component.needs.iter().all(|need| {
            matches!(self.phases.get(need), Some(Phase::Running { ready: true, .. } | Phase::Finished))
        }))
    }

    fn start(&mut self, name: &str) -> Result<(), Problem> {
        let component = self.component(name)?.clone();
        if component.role == Role::Job {
            let identity = work_identity(&self.plan, &component, &self.observed)
                .map_err(|on| Problem::internal(format!("{name} was to start before {on} had ended")))?;
            self.put_stale_work_aside(name, &identity)?;
            self.state.write(&format!("work/{name}/identity.json"), &identity)?;
        }
        let work = self.state.work(name);
        std::fs::create_dir_all(&work).map_err(|e| Problem::io("folder", &work, &e))?;
        // A report of an earlier process must not count for this one.
        for old in [self.state.progress(name), self.state.result(name)] {
            match std::fs::remove_file(&old) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Problem::io("remove", &old, &error));
                }
                _ => {}
            }
        }
        self.progress.remove(name);
        let config = component.config.bind(name, &self.binder)?;
        s3_config::save(&self.state.config(name), &config).map_err(|e| Problem::input(e))?;
        let log = self.state.log(name);
        if let Some(folder) = log.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Problem::io("folder", folder, &e))?;
        }
        let mut args = component.args.clone();
        args.extend(["--config".to_owned(), self.state.config(name).display().to_string()]);
        let binary = self.options.binaries.join(&component.binary);
        let process = Process::start(&binary, &args, &log).map_err(|e| Problem::io("start", &binary, &e))?;
        self.phases.insert(name.to_owned(), Phase::Running { process, ready: false });
        self.record_processes()?;
        self.display.start(name);
        self.status_due = Instant::now();
        Ok(())
    }

    /// Work done under other settings is kept, but not continued.
    fn put_stale_work_aside(&mut self, name: &str, identity: &WorkIdentity) -> Result<(), Problem> {
        let earlier: Option<WorkIdentity> = self.state.read(&format!("work/{name}/identity.json"))?;
        let Some(earlier) = earlier.filter(|earlier| !identity.continues(earlier)) else { return Ok(()) };
        let short = earlier.settings.get(..12).unwrap_or(&earlier.settings);
        let folder = self.state.archive();
        std::fs::create_dir_all(&folder).map_err(|e| Problem::io("folder", &folder, &e))?;
        let free = (0..).map(|n| folder.join(format!("{name}-{short}-{n}"))).find(|path| !path.exists());
        let Some(target) = free else { return Ok(()) };
        // The record goes first: killed in between, the job merely runs again.
        if self.observed.finished.remove(name).is_some() {
            self.state.write("finished.json", &self.observed.finished)?;
        }
        std::fs::rename(self.state.work(name), &target).map_err(|e| Problem::io("move aside to", &target, &e))?;
        self.display.note(name, &format!("settings or inputs changed: earlier work kept in {}", target.display()));
        Ok(())
    }

    fn running(&mut self, name: &str) -> Result<(), Problem> {
        let role = self.component(name)?.role;
        if let Some(report) = read_progress(&self.state.progress(name)) {
            if self.progress.get(name) != Some(&report) || role == Role::Job {
                self.display_running(name, &report);
            }
            self.progress.insert(name.to_owned(), report);
        }
        if role == Role::Job {
            return Ok(());
        }
        let reported = self.progress.get(name).is_some_and(|report| report.ready);
        let admin = self.binder.port(name, s3_plan::ADMIN_PORT);
        let idle = decide(&self.plan, self.component(name)?, &self.observed) == Decision::Idle;
        let Some(Phase::Running { process, ready }) = self.phases.get_mut(name) else { return Ok(()) };
        if idle && !self.options.keep_services {
            process.signal(Signal::SIGTERM);
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

    fn ended(&mut self, name: &str, exit: Exit, lived: Duration) -> Result<(), Problem> {
        let component = self.component(name)?.clone();
        self.status_due = Instant::now();
        if component.role == Role::Service
            && decide(&self.plan, &component, &self.observed) == Decision::Idle
            && !self.options.keep_services
        {
            self.phases.insert(name.to_owned(), Phase::Waiting);
            self.display.finish(name, "○", "stopped, no longer needed");
            return self.record_processes();
        }
        let mut exit = exit;
        let mut said = None;
        if component.role == Role::Job && exit.kind() == ExitKind::Done {
            match self.take_outcome(&component) {
                Ok(()) => return self.record_processes(),
                Err(reason) => {
                    exit = Exit::Code(i32::from(ExitClass::Internal.code()));
                    said = Some(reason);
                }
            }
        }
        if lived >= self.options.restart.stable {
            self.restarts.remove(name);
        }
        let row = self.restarts.entry(name.to_owned()).or_default();
        let next = self.options.restart.after(component.role, exit, *row);
        let said = said.or_else(|| last_error(&self.state, name)).unwrap_or_else(|| exit.describe());
        match next {
            Next::Restart(pause) => {
                *row += 1;
                let left = self.options.restart.restarts - *row;
                let text = format!(
                    "{said} ({}); starting again in {} ({left} more {})",
                    exit.describe(),
                    crate::text::duration(pause),
                    if left == 1 { "try" } else { "tries" }
                );
                self.display.finish(name, "!", &text);
                self.phases.insert(name.to_owned(), Phase::Pausing { until: Instant::now() + pause });
                self.record_processes()
            }
            Next::Finished | Next::GiveUp => {
                self.phases.insert(name.to_owned(), Phase::Waiting);
                self.display.finish(name, "✗", "failed");
                self.status.failed(name, &said);
                let class = match exit {
                    Exit::Code(code) => ExitClass::from_code(code).unwrap_or(ExitClass::Internal),
                    Exit::Signal(_) => ExitClass::Internal,
                };
                let log = self.state.log(name);
                Err(Problem(vec![Failure::new(
                    class,
                    format!("{name}: {said} ({}; log {})", exit.describe(), log.display()),
                )]))
            }
        }
    }

    /// Records a job's outcome; from here on it is finished for every later run.
    fn take_outcome(&mut self, component: &Component) -> Result<(), String> {
        let path = self.state.result(&component.name);
        let text = std::fs::read(&path).map_err(|e| format!("ended without the outcome {}: {e}", path.display()))?;
        let outcome: Outcome =
            serde_json::from_slice(&text).map_err(|e| format!("outcome {}: {e}", path.display()))?;
        let print = fingerprint(&self.plan, component, &self.observed)
            .map_err(|on| format!("{on} lost its outcome while {} ran", component.name))?;
        let finished = Finished { fingerprint: print, digest: outcome.digest };
        self.observed.finished.insert(component.name.clone(), finished);
        self.state
            .write("finished.json", &self.observed.finished)
            .map_err(|problem| problem.0.into_iter().map(|f| f.message).collect::<String>())?;
        self.phases.insert(component.name.clone(), Phase::Finished);
        self.display.finish(&component.name, "✓", "done");
        Ok(())
    }

    fn record_processes(&self) -> Result<(), Problem> {
        let running: BTreeMap<&String, _> = self
            .phases
            .iter()
            .filter_map(|(name, phase)| match phase {
                Phase::Running { process, .. } => Some((name, &process.identity)),
                _ => None,
            })
            .collect();
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

    /// Ends jobs, then services: asked first, killed when they do not listen or on a second signal.
    async fn wind_down(&mut self, stop: &mut StopSignals) {
        for (role, grace) in [(Role::Job, self.options.grace), (Role::Service, SERVICE_GRACE)] {
            let names: Vec<String> =
                self.plan.components.iter().filter(|c| c.role == role).map(|c| c.name.clone()).collect();
            self.signal(&names, Signal::SIGTERM);
            let (start, signals) = (Instant::now(), stop.count());
            loop {
                let open = self.reap(&names);
                if open.is_empty() {
                    break;
                }
                if start.elapsed() > grace || stop.count() > signals {
                    self.signal(&open, Signal::SIGKILL);
                }
                tokio::time::sleep(TICK).await;
            }
        }
    }

    fn signal(&self, names: &[String], signal: Signal) {
        for name in names {
            if let Some(Phase::Running { process, .. }) = self.phases.get(name) {
                process.signal(signal);
            }
        }
    }

    /// Takes note of those that ended; returns those that still run.
    fn reap(&mut self, names: &[String]) -> Vec<String> {
        let mut open = Vec::new();
        for name in names {
            let Some(phase) = self.phases.get_mut(name) else { continue };
            match phase {
                Phase::Running { process, .. } => match process.ended() {
                    Ok(None) => {
                        open.push(name.clone());
                        if let Some(report) = read_progress(&self.state.progress(name)) {
                            self.display.update(name, &report);
                        }
                    }
                    Ok(Some(exit)) => {
                        *phase = Phase::Waiting;
                        self.last_words(name, exit);
                    }
                    Err(_) => *phase = Phase::Waiting,
                },
                Phase::Pausing { .. } => *phase = Phase::Waiting,
                _ => {}
            }
        }
        open
    }

    fn last_words(&mut self, name: &str, exit: Exit) {
        let Some(component) = self.plan.component(name).cloned() else { return };
        match (component.role, exit.kind()) {
            // It had ended before it heard the signal.
            (Role::Job, ExitKind::Done) if self.take_outcome(&component).is_ok() => {}
            (Role::Job, ExitKind::Interrupted) => self.display.finish(name, "‖", "saved"),
            (Role::Job, _) => self.display.finish(name, "‖", &format!("ended ({})", exit.describe())),
            (Role::Service, _) => self.display.finish(name, "○", "stopped"),
        }
    }
}

/// The last line of a log that says what went wrong.
fn last_error(state: &State, name: &str) -> Option<String> {
    let text = crate::commands::logs::tail(&state.log(name), 64 << 10).ok()?;
    text.lines().rev().take(200).find_map(|line| line.strip_prefix("error: ").map(str::to_owned))
}

/// Counts SIGINT and SIGTERM.
pub struct StopSignals(std::sync::Arc<std::sync::atomic::AtomicUsize>);

impl StopSignals {
    /// Starts listening; needs a tokio runtime.
    pub fn listen() -> std::io::Result<Self> {
        use std::sync::atomic::Ordering;
        use tokio::signal::unix::{SignalKind, signal};
        let count = std::sync::Arc::<std::sync::atomic::AtomicUsize>::default();
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let mut hangup = signal(SignalKind::hangup())?;
        let seen = count.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, _ = hangup.recv() => {} }
                seen.fetch_add(1, Ordering::SeqCst);
            }
        });
        Ok(Self(count))
    }

    /// How many came so far.
    pub fn count(&self) -> usize {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }
}
