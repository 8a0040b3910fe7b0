//! Ending everything in order, and the signals that ask for it.

use super::{Phase, SERVICE_GRACE, Supervisor, TICK};
use nix::sys::signal::Signal;
use s3_plan::{Exit, ExitKind, Role};
use s3_telemetry::read_progress;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

impl Supervisor {
    /// Ends jobs, then services: asked first, killed when they do not listen or on a second signal.
    pub(super) async fn wind_down(&mut self, stop: &mut StopSignals) {
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

/// Counts SIGINT and SIGTERM.
pub struct StopSignals(Arc<AtomicUsize>);

impl StopSignals {
    /// Starts listening; needs a tokio runtime.
    pub fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let count = Arc::<AtomicUsize>::default();
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
        self.0.load(Ordering::SeqCst)
    }
}
