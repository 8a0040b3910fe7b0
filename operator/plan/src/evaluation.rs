//! `EvalRun` → an evaluation.

use crate::arms::Arms;
use crate::component::{asked, in_work, runtime};
use crate::gateway::Gateways;
use crate::names::{evaluation_name, retriever_name};
use crate::sources::{IntoConfig, Reader, take};
use crate::{
    ADMIN_PORT, Component, ComponentKind, PlanError, Readiness, Resources, Role, Sourced, Template, WorkerConfig, index,
};
use s3_config::{DatasetConfig, EvaluatorConfig, Prices, ReportConfig, SampleConfig, StatisticsConfig};
use s3_crds::{Arm, ArmMethod, Budget, EvalRun, Quantity};
use std::collections::BTreeSet;

/// A sample of all questions.
const ALL: usize = u32::MAX as usize;

/// The component of one run.
pub(crate) fn component(
    name: &str,
    run: &Sourced<EvalRun>,
    resources: &Resources,
    gateways: &mut Gateways,
) -> Result<Component, PlanError> {
    let resource = format!("EvalRun/{name}");
    let spec = &run.object.spec;
    let own = evaluation_name(name);
    let index = match &spec.retriever {
        Some(retriever) => {
            let name = &retriever.index_ref.name;
            Some((name, resources.index(&resource, "retriever.indexRef.name", name)?))
        }
        None => None,
    };
    let (gateway, generator) = gateways.join(&resource, run.folder.as_deref(), &spec.generator, spec.judge.as_ref())?;
    let retriever = index.map(|(name, _)| retriever_name(name));

    let mut reader = Reader::new(&resource, run.folder.as_deref());
    let mut needs: BTreeSet<String> = retriever.iter().cloned().chain([gateway]).collect();
    let mut arms = Arms { run, resources, reader: &mut reader, needs: &mut needs, trained: Vec::new() };
    let configs = spec.arms.iter().map(|arm| arms.arm(arm)).collect::<Result<Vec<_>, _>>()?;
    let trained = arms.trained;

    let corpus = match index.filter(|_| spec.sample.eligible) {
        Some((name, index)) => {
            let (path, inputs, volumes) = index::corpus(index, &format!("RetrieverIndex/{name}"))?;
            reader.add(inputs, volumes);
            Some(path)
        }
        None if spec.sample.eligible => {
            return Err(PlanError::field(
                &resource,
                "sample.eligible",
                "asks what the index can answer; set `retriever`",
            ));
        }
        None => None,
    };
    let (mut exclude, mut exclude_sets) = (Vec::new(), Vec::new());
    for reference in &spec.sample.exclude_training_of {
        let job = resources.job(&resource, "sample.excludeTrainingOf", &reference.name)?;
        let mut theirs = Reader::new(&format!("S3TrainingJob/{}", reference.name), job.folder.as_deref());
        for dataset in theirs.datasets(&job.object.spec.data.datasets, "data.datasets")? {
            let plain = DatasetConfig { name: dataset.name.clone(), path: dataset.path.clone(), ..Default::default() };
            if dataset == plain { exclude.push(dataset.path) } else { exclude_sets.push(dataset) }
        }
        take(&mut reader, theirs);
    }
    let report = if spec.report.enabled {
        let attribution = match &spec.report.attribution {
            Some(source) => Some(reader.data(source, "report.attribution")?),
            None => None,
        };
        // A training keeps its records in its own folder; only its searcher's jobs are shown.
        let training =
            trained.iter().filter(|_| spec.report.training).map(|job| in_work(job, "state/training")).collect();
        Some(ReportConfig { path: in_work(&own, "report.html"), attribution, training })
    } else {
        None
    };
    let config = EvaluatorConfig {
        runtime: runtime(&own),
        seed: spec.seed,
        determinism: spec.determinism.into_config(),
        arms: configs,
        datasets: reader.datasets(&spec.datasets, "datasets")?,
        sample: SampleConfig {
            size: spec.sample.size.map_or(ALL, |size| size as usize),
            eligible: spec.sample.eligible,
            corpus,
            exclude,
            exclude_sets,
        },
        retriever: index.map(|(name, index)| index::searched(name, index)),
        generator,
        chunk: spec.chunk as usize,
        statistics: StatisticsConfig {
            confidence: spec.statistics.confidence,
            resamples: spec.statistics.resamples as usize,
            baseline: baseline_arm(run.object.spec.statistics.baseline.as_ref(), &spec.arms),
            paired_against: spec.statistics.paired_against.clone(),
            correction: spec.statistics.correction.into_config(),
        },
        metrics: spec.metrics.iter().map(|metric| metric.into_config()).collect(),
        prices: prices(spec.generator.budget.as_ref()),
        report,
        output: in_work(&own, "results"),
        serve: None,
    };
    Ok(Component {
        name: own,
        kind: ComponentKind::Evaluation,
        role: Role::Job,
        owners: BTreeSet::from([resource]),
        binary: "s3-evaluator".into(),
        args: vec!["run".into()],
        needs,
        ports: BTreeSet::from([ADMIN_PORT.to_owned()]),
        endpoints: Vec::new(),
        volumes: reader.volumes,
        secrets: BTreeSet::new(),
        inputs: reader.inputs,
        resources: asked(&spec.resources, 0, 128 << 20),
        readiness: Readiness::Outcome,
        config: Template::new(&WorkerConfig::Evaluator(Box::new(config)), &[("/runtime/admin", ADMIN_PORT)])?,
    })
}

/// What the generator's tokens cost, where its budget says it.
fn prices(budget: Option<&Budget>) -> Option<Prices> {
    let budget = budget?;
    let value = |quantity: &Option<Quantity>| quantity.as_ref().and_then(Quantity::value);
    let (prompt, answer) =
        (value(&budget.price_per_million_prompt_tokens), value(&budget.price_per_million_answer_tokens));
    (prompt.is_some() || answer.is_some())
        .then(|| Prices { prompt: prompt.unwrap_or_default(), answer: answer.unwrap_or_default() })
}

/// Gains are measured against the named arm, else against the first naive RAG with a fixed count.
fn baseline_arm(named: Option<&String>, arms: &[Arm]) -> Option<String> {
    let first = || arms.iter().find(|arm| arm.method == ArmMethod::Rag && arm.budget_from.is_none());
    named.cloned().or_else(|| first().map(|arm| arm.name.clone()))
}
