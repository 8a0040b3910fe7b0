//! `S3TrainingJob` → baseline, warm start and training.

use crate::component::{asked, in_work, runtime};
use crate::gateway::Gateways;
use crate::names::{baseline_name, retriever_name, training_name, warm_start_name};
use crate::sources::{IntoConfig, Reader};
use crate::{
    ADMIN_PORT, Component, ComponentKind, Endpoint, PlanError, Readiness, Resources, Role, Sourced, Symbol, Template,
    WorkerConfig, convert, index,
};
use s3_config::{
    AdapterSpec, AlgorithmConfig, BaselineConfig, CheckpointConfig, DifficultyBufferConfig, EngineConfig,
    GeneratorConfig, GuardConfig, GuardMetric, LoraConfig, MilestonesConfig, OptimizerConfig, ProbeConfig,
    RewardConfig, RolloutConfig, SftConfig, StopConfig, TeamConfig, TrainDataConfig, TrainerConfig,
};
use s3_crds::{
    AdapterKind, GuardAction, Guards, Parallelism, ProbeExport, ResumeFrom, RolloutEngine, S3TrainingJob,
    S3TrainingJobSpec, SecretKeyRef,
};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// A checkpoint of low-rank weights with both moments, or an exported adapter, of a small model: bytes.
const CHECKPOINT: u64 = 96 << 20;

/// The same of all weights of half a billion, in f32.
const FULL_CHECKPOINT: u64 = 6 << 30;

/// Folder of a training's searchers that are kept for evaluations.
pub(crate) const MILESTONES: &str = "milestones";

/// Folder of a training's policies that servers of episodes read.
const POLICIES: &str = "policies";

/// The components of one job, in order.
pub(crate) fn components(
    name: &str,
    job: &Sourced<S3TrainingJob>,
    resources: &Resources,
    gateways: &mut Gateways,
) -> Result<Vec<Component>, PlanError> {
    let resource = format!("S3TrainingJob/{name}");
    let spec = &job.object.spec;
    refuse(&resource, job)?;
    let index_ref = &spec.retriever.index_ref.name;
    let index = resources.index(&resource, "retriever.indexRef.name", index_ref)?;
    let folder = job.folder.as_deref();
    // a searcher that answers itself asks no generator and is compared with nothing
    let (gateway, generator) = match &spec.generator {
        Some(generator) => {
            let (gateway, generator) = gateways.join(&resource, folder, generator, spec.judge.as_ref())?;
            (Some(gateway), generator)
        }
        None => (None, GeneratorConfig::none()),
    };
    let retriever = retriever_name(index_ref);
    let (baseline, warm, train) = (baseline_name(name), warm_start_name(name), training_name(name));

    let mut reader = Reader::new(&resource, folder);
    let base = base_config(name, job, index, &mut reader, generator)?;
    let builder = Builder { resource: &resource, job, reader: &reader };
    let mut components = Vec::new();
    let checkpoint = if spec.searcher.adapter.kind == AdapterKind::Full { FULL_CHECKPOINT } else { CHECKPOINT };

    if let (Some(gateway), true) = (&gateway, spec.steps > 0) {
        // What the baseline does not depend on stays at its default, so that changing it repeats nothing.
        let config = TrainerConfig {
            runtime: runtime(&baseline),
            algorithm: AlgorithmConfig::default(),
            optimizer: OptimizerConfig::default(),
            rollout: RolloutConfig::default(),
            reward: RewardConfig::default(),
            data: TrainDataConfig { difficulty_buffer: None, ..base.data.clone() },
            sft: SftConfig::default(),
            steps: 0,
            // Nothing of the training's: its folder has no name before the baseline has an outcome.
            checkpoint: CheckpointConfig { dir: in_work(&baseline, "checkpoints"), ..base.checkpoint.clone() },
            milestones: None,
            stop: None,
            guards: Vec::new(),
            resume_from: None,
            export: in_work(&baseline, "export"),
            ..base.clone()
        };
        let needs = [retriever.clone(), gateway.clone()];
        components.push(builder.component(&baseline, ComponentKind::Baseline, "baseline", needs, config, 16 << 20)?);
    }
    if let Some(warm_start) = &spec.warm_start {
        let config = TrainerConfig {
            runtime: runtime(&warm),
            optimizer: warm_start.optimizer.as_ref().unwrap_or(&spec.optimizer).into_config(),
            sft: warm_start.into_config(),
            // Supervision asks no baseline.
            data: TrainDataConfig { drop_baseline_solved: false, difficulty_buffer: None, ..base.data.clone() },
            baseline_store: in_work(&warm, "answers"),
            steps: 0,
            checkpoint: CheckpointConfig { dir: in_work(&warm, "checkpoints"), ..base.checkpoint.clone() },
            milestones: None,
            stop: None,
            guards: Vec::new(),
            resume_from: None,
            export: in_work(&warm, "export"),
            ..base.clone()
        };
        let disk = 2 * checkpoint;
        components.push(builder.component(
            &warm,
            ComponentKind::WarmStart,
            "sft",
            [retriever.clone()],
            config,
            disk,
        )?);
    }
    if spec.steps > 0 {
        let mut config = base;
        config.runtime.team = team(&spec.parallelism);
        let mut needs = BTreeSet::from([retriever]);
        if let Some(gateway) = gateway {
            needs.extend([gateway, baseline]);
        }
        if spec.warm_start.is_some() {
            config.searcher.adapter = Some(AdapterSpec::at(in_work(&warm, "export")));
            needs.insert(warm);
        }
        let milestones = spec.evaluation.runs.as_ref().map_or(0, |runs| spec.steps / runs.every.max(1));
        // What is exported is a third of a checkpoint: it goes without both moments.
        if let Some(from) = &spec.checkpoint.resume_from {
            config.resume_from = Some(resume_from(spec, from, resources, &mut reader, &mut needs)?);
        }
        config.rollout.engine = spec.rollout.engine.as_ref().map(|engine| engine_config(engine, &train));
        let builder = Builder { resource: &resource, job, reader: &reader };
        let disk = checkpoint * (u64::from(spec.checkpoint.keep) + 2) + checkpoint / 3 * u64::from(milestones);
        let mut training = builder.component(&train, ComponentKind::Training, "train", needs, config, disk)?;
        let engine = spec.rollout.engine.iter().flat_map(|engine| &engine.endpoints);
        let field = format!("{resource} rollout.engine.endpoints");
        training.endpoints = engine.map(|url| Endpoint { url: url.clone(), field: field.clone() }).collect();
        components.push(training);
    }
    if let Some((serving, last)) = spec.serving.as_ref().zip(components.last()) {
        components.push(crate::searcher::component(name, serving, last)?);
    }
    Ok(components)
}

/// The component whose export is the job's searcher.
pub(crate) fn final_component(name: &str, job: &S3TrainingJob) -> String {
    if job.spec.steps > 0 { training_name(name) } else { warm_start_name(name) }
}

/// Several ranks, if there are; who they are is known once they start.
fn team(parallelism: &Parallelism) -> Option<TeamConfig> {
    let local = parallelism.gpus_per_replica.max(1);
    (parallelism.replicas * local > 1).then(|| TeamConfig {
        local,
        token_file: parallelism
            .token_secret_ref
            .as_ref()
            .map(|secret| Symbol::Secret { name: secret.name.clone(), key: secret.key.clone() }.to_string().into()),
        ..TeamConfig::default()
    })
}

/// Servers that write the episodes. Policies are handed over in the training's own folder.
fn engine_config(engine: &RolloutEngine, train: &str) -> EngineConfig {
    let secret = |of: &SecretKeyRef| Symbol::Secret { name: of.name.clone(), key: of.key.clone() }.to_string();
    EngineConfig {
        endpoints: engine.endpoints.clone(),
        api_key_file: engine.api_key_secret_ref.as_ref().map(|key| secret(key).into()),
        dir: in_work(train, POLICIES),
        deadline_ms: engine.timeout.millis(),
        attempts: engine.attempts,
    }
}

/// What no worker can do yet, beyond what the resources themselves refuse.
fn refuse(resource: &str, job: &Sourced<S3TrainingJob>) -> Result<(), PlanError> {
    let spec = &job.object.spec;
    if spec.steps == 0 && spec.warm_start.is_none() {
        return Err(PlanError::field(resource, "steps", "with 0 steps and no warmStart nothing is trained; set one"));
    }
    Ok(())
}

fn base_config(
    name: &str,
    job: &Sourced<S3TrainingJob>,
    index: &Sourced<s3_crds::RetrieverIndex>,
    reader: &mut Reader<'_>,
    generator: GeneratorConfig,
) -> Result<TrainerConfig, PlanError> {
    let spec = &job.object.spec;
    let train = training_name(name);
    let adapter = &spec.searcher.adapter;
    let mut searcher = reader.searcher(&spec.searcher)?;
    if let Some(init) = &adapter.init {
        searcher.adapter = Some(reader.adapter(init, "searcher.adapter.init")?);
    }
    let corpus = if spec.data.filters.drop_unanswerable {
        let (path, inputs, volumes) =
            index::corpus(index, &format!("RetrieverIndex/{}", spec.retriever.index_ref.name))?;
        reader.inputs.extend(inputs);
        reader.volumes.extend(volumes);
        Some(path)
    } else {
        None
    };
    let probe = match &spec.evaluation.probe {
        Some(probe) => Some(ProbeConfig {
            every: probe.every,
            datasets: reader.datasets(&probe.datasets, "evaluation.probe.datasets")?,
            limit: probe.limit as usize,
            export_best: probe.export == ProbeExport::Best,
        }),
        None => None,
    };
    Ok(TrainerConfig {
        runtime: runtime(&train),
        seed: spec.seed,
        determinism: spec.determinism.into_config(),
        searcher,
        lora: LoraConfig { rank: adapter.rank as usize, alpha: adapter.alpha },
        full: adapter.kind == AdapterKind::Full,
        retriever: index::searched(&spec.retriever.index_ref.name, index),
        data: TrainDataConfig {
            datasets: reader.datasets(&spec.data.datasets, "data.datasets")?,
            corpus,
            part: spec.data.part.clone(),
            limit: spec.data.limit.and_then(|limit| usize::try_from(limit).ok()),
            drop_baseline_solved: spec.data.filters.drop_baseline_solved,
            drop_yes_no: spec.data.filters.drop_yes_no,
            difficulty_buffer: spec
                .data
                .filters
                .difficulty_buffer
                .as_ref()
                .map(|buffer| DifficultyBufferConfig { capacity: buffer.capacity as usize, share: buffer.share }),
        },
        baseline: BaselineConfig {
            top_k: spec.reward.baseline.top_k,
            method: spec.generator.as_ref().and_then(|of| {
                let ranking = spec.retriever.method.into_config();
                crate::arms::baseline(&spec.reward.baseline, ranking, of, generator.chunk)
            }),
        },
        generator,
        // a training without a baseline has no component of one to name
        baseline_store: in_work(&if spec.generator.is_some() { baseline_name(name) } else { train.clone() }, "answers"),
        search: search_config(job, reader)?,
        reward: (&spec.reward).into_config(),
        algorithm: (&spec.algorithm).into_config(),
        optimizer: (&spec.optimizer).into_config(),
        rollout: (&spec.rollout).into_config(),
        steps: spec.steps,
        checkpoint: CheckpointConfig {
            dir: in_work(&train, "checkpoints"),
            every: spec.checkpoint.every,
            keep: spec.checkpoint.keep,
        },
        milestones: spec
            .evaluation
            .runs
            .as_ref()
            .map(|runs| MilestonesConfig { every: runs.every, dir: in_work(&train, MILESTONES) }),
        stop: spec.stop.as_ref().map(|stop| StopConfig { target_gain: stop.target_gbr, patience: stop.patience }),
        guards: guards(&spec.guards),
        resume_from: None,
        probe,
        sft: SftConfig::default(),
        export: in_work(&train, "export"),
        export_dtype: spec.searcher.dtype.into_config(),
    })
}

/// Where a training starts that goes on from another's checkpoint.
fn resume_from(
    spec: &S3TrainingJobSpec,
    from: &ResumeFrom,
    resources: &Resources,
    reader: &mut Reader<'_>,
    needs: &mut BTreeSet<String>,
) -> Result<PathBuf, PlanError> {
    match (&from.job_ref, &from.source) {
        (Some(other), None) => {
            let field = "checkpoint.resumeFrom.jobRef.name";
            let job = resources.job(&reader.resource, field, &other.name)?;
            if job.object.spec.steps == 0 {
                let reason = format!("S3TrainingJob {} has no steps, and so no checkpoint", other.name);
                return Err(PlanError::field(&reader.resource, field, &reason));
            }
            let train = training_name(&other.name);
            // In a cluster that job need not have succeeded; on one machine jobs run one after another.
            if !resources.in_cluster() {
                needs.insert(train.clone());
            }
            Ok(in_work(&train, "checkpoints"))
        }
        (None, Some(source)) => {
            let whole = spec.searcher.adapter.kind == AdapterKind::Full;
            reader.checkpoint(source, whole, "checkpoint.resumeFrom.source")
        }
        _ => {
            let reason = "set exactly one of jobRef and source";
            Err(PlanError::field(&reader.resource, "checkpoint.resumeFrom", reason))
        }
    }
}

/// The guards that are set.
fn guards(of: &Guards) -> Vec<GuardConfig> {
    let all = [
        (GuardMetric::Entropy, &of.entropy),
        (GuardMetric::FormatRate, &of.format_rate),
        (GuardMetric::SearchesPerQuestion, &of.searches_per_question),
        (GuardMetric::MismatchKl, &of.mismatch_kl),
    ];
    let set = all.into_iter().filter_map(|(metric, guard)| Some((metric, guard.as_ref()?)));
    set.map(|(metric, guard)| GuardConfig {
        metric,
        min: guard.min,
        max: guard.max,
        steps: guard.steps,
        action: match guard.action {
            GuardAction::Warn => s3_config::GuardAction::Warn,
            GuardAction::Rollback => s3_config::GuardAction::Rollback,
            GuardAction::Pause => s3_config::GuardAction::Pause,
        },
    })
    .collect()
}

/// The loop of a job's searcher; evaluations of it take the same unless they name their own.
pub(crate) fn search_config(
    job: &Sourced<S3TrainingJob>,
    reader: &mut Reader<'_>,
) -> Result<s3_config::SearchConfig, PlanError> {
    let spec = &job.object.spec;
    let template = match &spec.search.prompt_template {
        Some(source) => Some(reader.data(source, "search.promptTemplate")?),
        None => None,
    };
    Ok(convert::search(&spec.search, spec.search_top_k(), spec.retriever.method, spec.compatibility, template))
}

struct Builder<'a> {
    resource: &'a str,
    job: &'a Sourced<S3TrainingJob>,
    reader: &'a Reader<'a>,
}

impl Builder<'_> {
    fn component(
        &self,
        name: &str,
        kind: ComponentKind,
        command: &str,
        needs: impl IntoIterator<Item = String>,
        config: TrainerConfig,
        disk: u64,
    ) -> Result<Component, PlanError> {
        let spec = &self.job.object.spec;
        Ok(Component {
            name: name.to_owned(),
            kind,
            role: Role::Job,
            owners: BTreeSet::from([self.resource.to_owned()]),
            binary: "s3-trainer".into(),
            args: vec![command.to_owned()],
            needs: needs.into_iter().collect(),
            ports: BTreeSet::from([ADMIN_PORT.to_owned()]),
            endpoints: Vec::new(),
            volumes: self.reader.volumes.clone(),
            secrets: BTreeSet::new(),
            inputs: self.reader.inputs.clone(),
            resources: asked(&spec.resources, spec.parallelism.gpus_per_replica, disk),
            readiness: Readiness::Outcome,
            config: Template::new(&WorkerConfig::Trainer(Box::new(config)), &[("/runtime/admin", ADMIN_PORT)])?,
        })
    }
}
