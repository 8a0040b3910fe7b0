//! Starting a command: threads, runtime, signals, and the thread that computes.

use crate::run::Run;
use s3_config::{EvaluatorConfig, load};
use s3_proto::Attempt;
use s3_rollout::Link;
use s3_telemetry::{Failure, Progress, Shutdown, fix_threads, serve_admin};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Room for a decoder's buffers.
const STACK: usize = 256 << 20;

/// Reads the configuration and fills in the text of prompt templates.
pub fn read_config(path: &Path) -> Result<EvaluatorConfig, Failure> {
    let mut config: EvaluatorConfig = load(path).map_err(Failure::input)?;
    for arm in &mut config.arms {
        if let Some(search) = arm.method.search_mut()
            && let Some(template) = &search.prompt_template
        {
            let text = std::fs::read_to_string(template).map_err(|error| {
                Failure::input(format!("arm {}: search.promptTemplate {}: {error}", arm.name, template.display()))
            })?;
            search.prompt_text = Some(text);
        }
    }
    Ok(config)
}

/// Runs `work` on a thread of its own, so that calls and signals are always served, then `hand_over` with what
/// it made, unless a newer attempt has taken over.
pub fn with_runtime<T: Send + 'static>(
    config: EvaluatorConfig,
    work: impl FnOnce(&Run) -> Result<T, Failure> + Send + 'static,
    hand_over: impl FnOnce(&T) -> Result<(), Failure>,
) -> Result<T, Failure> {
    fix_threads(config.runtime.threads)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Failure::internal)?;
    let shutdown = {
        let _inside = runtime.enter();
        Shutdown::listen().map_err(Failure::internal)?
    };
    // A job is ready when it runs; a server once it can answer.
    let ready = Arc::new(AtomicBool::new(config.serve.is_none()));
    if let Some(address) = config.runtime.admin {
        runtime.block_on(serve_admin(address, ready.clone())).map_err(Failure::input)?;
    }
    let progress = Progress::new(config.runtime.progress.clone());
    let attempt = Attempt::begin(&config.runtime, &progress, &shutdown)?;
    let run = Run { config, link: Link { handle: runtime.handle().clone(), shutdown }, progress, ready };
    let compute = std::thread::Builder::new().name("compute".into()).stack_size(STACK).spawn(move || work(&run));
    let outcome = compute.map_err(Failure::internal)?.join();
    runtime.shutdown_background();
    let made = outcome
        .unwrap_or_else(|_| Err(Failure::internal("the compute thread panicked; the message above says where")))?;
    attempt.check()?;
    hand_over(&made)?;
    Ok(made)
}
