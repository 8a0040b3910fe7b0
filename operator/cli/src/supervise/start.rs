//! Starting a component: folders, configuration, process.

use super::{Phase, Supervisor};
use crate::process::Process;
use crate::text::Problem;
use s3_plan::{Component, ComponentKind, Role, WorkIdentity, WorkerConfig, work_identity};
use std::time::Instant;

impl Supervisor {
    pub(super) fn start(&mut self, name: &str) -> Result<(), Problem> {
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
        let mut config = component.config.bind(name, &self.binder)?;
        let replicas = match component.kind {
            ComponentKind::Training | ComponentKind::IndexBuild => {
                self.plan.placements.of(&component).replicas.max(1) as usize
            }
            _ => 1,
        };
        let local = config.runtime_mut().team.as_ref().map_or(1, |team| team.local.max(1)) as usize;
        if component.kind == ComponentKind::IndexBuild && replicas > 1 {
            // they share one machine, and vectors are the same with any number of threads
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            config.runtime_mut().threads = Some((cores / replicas).max(1));
        }
        let members = if replicas > 1 { self.binder.team(name, replicas, local)? } else { Vec::new() };
        let mut processes = (0..replicas)
            .map(|rank| self.process(&component, config.clone(), rank, &members))
            .collect::<Result<Vec<_>, _>>()?;
        let first = processes.remove(0);
        let process = first.with(processes);
        self.phases.insert(name.to_owned(), Phase::Running { process, ready: false, stopping: None });
        self.record_processes()?;
        self.display.start(name);
        self.status_due = Instant::now();
        Ok(())
    }

    /// Starts one replica of a component.
    fn process(
        &self,
        component: &Component,
        mut config: WorkerConfig,
        rank: usize,
        members: &[String],
    ) -> Result<Process, Problem> {
        let name = &component.name;
        let (mut file, mut log) = (self.state.config(name), self.state.log(name));
        let runtime = config.runtime_mut();
        if let Some(team) = runtime.team.as_mut() {
            (team.rank, team.members) = (rank as u32, members.to_vec());
        }
        if rank > 0 {
            // what is shown and handed over is the first one's
            (runtime.admin, runtime.progress, runtime.result) = (None, None, None);
            file = file.with_file_name(format!("{name}-r{rank}.yaml"));
            log = log.with_file_name(format!("{name}-r{rank}.log"));
        }
        s3_config::save(&file, &config).map_err(Problem::input)?;
        if let Some(folder) = log.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Problem::io("folder", folder, &e))?;
        }
        let mut args = component.args.clone();
        args.extend(["--config".to_owned(), file.display().to_string()]);
        let binary = self.options.binaries.join(&component.binary);
        Process::start(&binary, &args, &log).map_err(|e| Problem::io("start", &binary, &e))
    }

    /// Work done under other settings is kept, but not continued.
    fn put_stale_work_aside(&mut self, name: &str, identity: &WorkIdentity) -> Result<(), Problem> {
        let earlier: Option<WorkIdentity> = self.state.read(&format!("work/{name}/identity.json"))?;
        let Some(earlier) = earlier.filter(|earlier| !identity.continues(earlier)) else { return Ok(()) };
        let short = earlier.settings.get(..12).unwrap_or(&earlier.settings);
        let folder = self.state.archive();
        std::fs::create_dir_all(&folder).map_err(|e| Problem::io("folder", &folder, &e))?;
        let mut target = folder.join(format!("{name}-{short}"));
        for number in 1.. {
            if !target.exists() {
                break;
            }
            target = folder.join(format!("{name}-{short}-{number}"));
        }
        // The record goes first: killed in between, the job merely runs again.
        if self.observed.finished.remove(name).is_some() {
            self.state.write("finished.json", &self.observed.finished)?;
        }
        std::fs::rename(self.state.work(name), &target).map_err(|e| Problem::io("move aside to", &target, &e))?;
        self.display.note(name, &format!("settings or inputs changed: earlier work kept in {}", target.display()));
        Ok(())
    }
}
