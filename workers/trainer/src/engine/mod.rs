//! Episodes whose turns are written by servers: vLLM, or what speaks its dialect of the `OpenAI` API.
//!
//! A policy is handed over as an adapter in PEFT's layout, in a folder that the servers see by the same path, and each
//! server is told to load it. Folder and name are made of the tensors' digest. So a request names exactly the policy
//! that its round is played with: a server that lacks it says so and is told to load it, and none answers with an older
//! one, also when rounds of several policies are under way.
//!
//! * [`wire`]: what is sent and what comes back, without I/O.
//! * [`site`]: one server, with deadlines, attempts and metrics.

mod site;
mod wire;

use crate::checkpoint::publish_trained;
use crate::identity::Identity;
use crate::run::Run;
use s3_artifacts::DigestWriter;
use s3_config::EngineConfig;
use s3_generator_gateway::calls::{RetryPolicy, spread};
use s3_model::{Decoder, TokenizerFile, Trainable};
use s3_proto::CallError;
use s3_rollout::{Continuation, Continued, Link, ModelCodec, RolloutError, RolloutServer};
use s3_telemetry::Failure;
use serde_json::json;
use site::{Missed, Site};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How messages and metrics call it.
const SERVICE: &str = "rollout-engine";
/// Of the digest in a policy's name.
const DIGITS: usize = 16;

/// The servers, and the policies that they were told to load.
pub struct Engine {
    sites: Vec<Site>,
    dir: PathBuf,
    /// Of every policy's name: servers may serve several jobs.
    prefix: String,
    /// Digest of the training's identity.
    training: String,
    retry: RetryPolicy,
    tokenizer: TokenizerFile,
    /// Tokens that end a turn.
    ends: Vec<u32>,
    /// Policies that may still be asked for.
    keep: usize,
    /// Names in the order in which they were last handed over.
    held: Mutex<VecDeque<String>>,
}

impl Engine {
    /// Checks the configuration, and has the servers forget what an earlier process of this training handed over.
    pub fn open(run: &Run, config: &EngineConfig, codec: &ModelCodec, identity: &Identity) -> Result<Self, Failure> {
        let sites = config.endpoints.iter().map(|base| Site::new(base, config)).collect::<Result<Vec<_>, _>>();
        let sites = sites.map_err(Failure::input)?;
        if sites.is_empty() {
            return Err(Failure::input(
                "rollout.engine.endpoints is empty; name a server, or leave rollout.engine out",
            ));
        }
        // what one rank hands over no other one takes back
        let rank = run.collective.rank();
        let engine = Self {
            sites,
            dir: config.dir.join(format!("rank-{rank}")),
            prefix: format!("{}-{rank}", run.config.runtime.name),
            training: identity.digest()?,
            retry: RetryPolicy::new(config.attempts),
            tokenizer: codec.tokenizer().clone(),
            ends: codec.tokenizer().eos().to_vec(),
            keep: run.config.rollout.staleness as usize + 2,
            held: Mutex::default(),
        };
        engine.forget(&run.link)?;
        Ok(engine)
    }

    fn held(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a decoder's adapter over, unless it is there, and returns the servers as those of this policy.
    pub fn hold(&self, decoder: &Decoder, link: &Link) -> Result<Served<'_>, RolloutError> {
        let started = std::time::Instant::now();
        let name = format!("{}-{}", self.prefix, digest(decoder)?);
        let folder = self.dir.join(&name);
        // the lock is held until all servers have it: rounds that begin together hand over once
        let mut held = self.held();
        if let Some(at) = held.iter().position(|known| *known == name) {
            held.remove(at);
        } else {
            let identity = json!({ "run": self.training, "policy": name });
            publish_trained(decoder, &self.tokenizer, false, &folder, "", identity)?;
            self.load_everywhere(&name, &folder, link)?;
            let seconds = started.elapsed().as_secs_f64();
            tracing::info!(policy = name, servers = self.sites.len(), seconds, "policy handed over");
            s3_telemetry::metrics().training_phase_seconds.with_label_values(&["handover"]).observe(seconds);
        }
        held.push_back(name.clone());
        while held.len() > self.keep {
            let Some(old) = held.pop_front() else { break };
            self.drop_policy(&old, link)?;
        }
        Ok(Served { engine: self, name, folder, link: link.clone() })
    }

    /// All servers load at once. One that cannot be reached is told again when it is asked for a turn; without any,
    /// there is nothing to go on with.
    fn load_everywhere(&self, name: &str, folder: &Path, link: &Link) -> Result<(), RolloutError> {
        let results: Vec<Result<(), RolloutError>> = std::thread::scope(|scope| {
            let load = |site| scope.spawn(move || self.patiently(link, || link.run(Site::load(site, name, folder))));
            let threads: Vec<_> = self.sites.iter().map(load).collect();
            let lost = |_| Err(RolloutError::Thread { reason: "a server's thread panicked".into() });
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(lost)).collect()
        });
        let mut last = None;
        let mut loaded = 0;
        for result in results {
            match result {
                Ok(()) => loaded += 1,
                Err(error) if error.is_outage() => {
                    tracing::warn!(%error, policy = name, "a server has not loaded the policy");
                    last = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        last.filter(|_| loaded == 0).map_or(Ok(()), Err)
    }

    /// Repeats what may succeed later, within the attempts.
    fn patiently<T>(
        &self,
        link: &Link,
        mut call: impl FnMut() -> Result<Result<T, Missed>, RolloutError>,
    ) -> Result<T, RolloutError> {
        let mut attempt = 1;
        loop {
            let missed = match call()? {
                Ok(done) => return Ok(done),
                Err(missed) => missed,
            };
            self.pause(link, attempt, missed)?;
            attempt += 1;
        }
    }

    /// Waits before the next attempt; an error where there is none.
    fn pause(&self, link: &Link, attempt: u32, missed: Missed) -> Result<(), RolloutError> {
        let Missed { site, failed, .. } = missed;
        let wait = self.retry.wait(attempt, failed.hint, spread()).filter(|_| failed.retry);
        let Some(wait) = wait else {
            let (service, status) = (SERVICE, failed.message);
            return Err(RolloutError::Call(if failed.retry {
                CallError::Unavailable { service, address: site, attempts: attempt, status }
            } else {
                CallError::Refused { service, status: format!("{site}: {status}") }
            }));
        };
        tracing::warn!(attempt, %site, reason = %failed.message, "rollout engine failed, trying again");
        link.run(async move { tokio::time::sleep(wait).await })
    }

    /// Has the servers unload a policy that nothing will ask for, and removes its folder. A server that is gone has
    /// forgotten it; one that could not be reached holds a policy too many, which costs it memory alone.
    fn drop_policy(&self, name: &str, link: &Link) -> Result<(), RolloutError> {
        for site in &self.sites {
            if let Err(missed) = link.run(site.unload(name))? {
                tracing::warn!(site = missed.site, policy = name, reason = missed.failed.message, "not unloaded");
            }
        }
        let folder = self.dir.join(name);
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(folder = %folder.display(), %error, "not removed");
            }
            _ => {}
        }
        Ok(())
    }

    fn forget(&self, link: &Link) -> Result<(), Failure> {
        let failed = |error: std::io::Error| Failure::io(format!("{}: {error}", self.dir.display()));
        std::fs::create_dir_all(&self.dir).map_err(failed)?;
        for entry in std::fs::read_dir(&self.dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            self.drop_policy(&name, link)?;
        }
        Ok(())
    }
}

/// Of the tensors that a server computes with: a value head stays here.
fn digest(decoder: &Decoder) -> Result<String, RolloutError> {
    if decoder.trainable() != Trainable::Lora {
        let reason = "rollout.engine is handed adapters; train one (LoRA), or leave rollout.engine out";
        return Err(RolloutError::Reply { service: SERVICE, reason: reason.into() });
    }
    let mut writer = DigestWriter::default();
    for (name, tensor) in decoder.adapter_tensors()? {
        writer.part("tensor", name.as_bytes());
        writer.part("data", &crate::checkpoint::bytes(&tensor)?);
    }
    Ok(writer.finish()[..DIGITS].to_owned())
}

/// The servers as those of one policy.
pub struct Served<'e> {
    engine: &'e Engine,
    name: String,
    folder: PathBuf,
    link: Link,
}

impl RolloutServer for Served<'_> {
    fn go_on(&self, from: &Continuation<'_>) -> Result<Continued, RolloutError> {
        let Self { engine, name, folder, link } = self;
        let body = wire::request(name, from, &engine.ends)?;
        let mut turn = from.group;
        engine.patiently(link, || {
            // those of a group go where its beginning is known, and elsewhere after a failure
            let site = &engine.sites[turn % engine.sites.len()];
            turn += 1;
            link.run(async {
                match site.complete(&body).await {
                    // a server that was started again has forgotten it
                    Err(missed) if missed.lacks_model() => {
                        site.load(name, folder).await?;
                        site.complete(&body).await
                    }
                    other => other,
                }
            })
        })
    }
}
