//! `EvalRun` → an evaluation.

use crate::component::{asked, in_work, runtime};
use crate::gateway::{Gateways, peer};
use crate::names::{evaluation_name, retriever_name};
use crate::sources::{IntoConfig, Reader};
use crate::training::{final_component, search_config};
use crate::{
    ADMIN_PORT, Component, ComponentKind, GRPC_PORT, PlanError, Readiness, Resources, Role, Sourced, Symbol, Template,
    WorkerConfig, convert, index,
};
use s3_config::{
    AdapterSpec, ArmConfig, ArmMethod as Method, DatasetConfig, EvaluatorConfig, Prices, ReportConfig, SampleConfig,
    SearchConfig, StatisticsConfig,
};
use s3_crds::{Ablation, Arm, ArmMethod, ArmSearcher, Budget, EvalRun, Quantity, S3TrainingJob};
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
    let Some(retriever) = &spec.retriever else {
        return Err(PlanError::field(&resource, "retriever", "name the index that the arms search"));
    };
    let index_ref = &retriever.index_ref.name;
    let index = resources.index(&resource, "retriever.indexRef.name", index_ref)?;
    let (gateway, generator) = gateways.join(&resource, run.folder.as_deref(), &spec.generator, spec.judge.as_ref())?;
    let retriever_component = retriever_name(index_ref);

    let mut reader = Reader::new(&resource, run.folder.as_deref());
    let mut needs = BTreeSet::from([retriever_component.clone(), gateway]);
    let mut arms = Arms { run, resources, reader: &mut reader, needs: &mut needs, trained: Vec::new() };
    let configs = spec.arms.iter().map(|arm| arms.arm(arm)).collect::<Result<Vec<_>, _>>()?;
    let trained = arms.trained;

    let corpus = if spec.sample.eligible {
        let (path, inputs, volumes) = index::corpus(index, &format!("RetrieverIndex/{index_ref}"))?;
        reader.inputs.extend(inputs);
        reader.volumes.extend(volumes);
        Some(path)
    } else {
        None
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
        retriever: peer(&Symbol::address(&retriever_component, GRPC_PORT)),
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

/// What another resource's fields need is needed here, too.
fn take(reader: &mut Reader<'_>, other: Reader<'_>) {
    reader.volumes.extend(other.volumes);
    for input in other.inputs {
        if !reader.inputs.contains(&input) {
            reader.inputs.push(input);
        }
    }
}

struct Arms<'a, 'b> {
    run: &'a Sourced<EvalRun>,
    resources: &'a Resources,
    reader: &'b mut Reader<'a>,
    needs: &'b mut BTreeSet<String>,
    trained: Vec<String>,
}

impl Arms<'_, '_> {
    fn arm(&mut self, arm: &Arm) -> Result<ArmConfig, PlanError> {
        let place = format!("arms[{}]", arm.name);
        let refuse = |field: &str, reason: &str| {
            Err(PlanError::field(&self.reader.resource, &format!("{place}.{field}"), reason))
        };
        if let Some(own) = &arm.retriever {
            let same = self.run.object.spec.retriever.as_ref().map(|retriever| &retriever.index_ref);
            if own.index_ref.is_none() || own.index_ref.as_ref() != same {
                return refuse("retriever", "an index or control of an arm's own is not served yet; leave it out");
            }
        }
        if arm.ablation != Ablation::None {
            return refuse("ablation", "not served yet; use None");
        }
        let method = match arm.method {
            ArmMethod::Direct => Method::Direct {},
            ArmMethod::Rag => match (&arm.budget_from, arm.top_k) {
                (Some(budget), _) => Method::SameBudgetRag { budget_from: budget.clone() },
                (None, Some(top_k)) => Method::Rag { top_k },
                (None, None) => return refuse("topK", "a Rag arm needs topK or budgetFrom"),
            },
            ArmMethod::S3 => match &arm.searcher {
                Some(searcher) => self.s3(arm, searcher, &place)?,
                None => return refuse("searcher", "an S3 arm needs jobRef or model"),
            },
            _ => return refuse("method", "not served yet; use S3, Rag or Direct"),
        };
        Ok(ArmConfig { name: arm.name.clone(), method })
    }

    fn s3(&mut self, arm: &Arm, searcher: &ArmSearcher, place: &str) -> Result<Method, PlanError> {
        let decoding = &self.run.object.spec.decoding;
        let (model, of_job) = match (&searcher.job_ref, &searcher.model) {
            (Some(reference), _) => {
                let job = self.resources.job(
                    &self.reader.resource,
                    &format!("{place}.searcher.jobRef.name"),
                    &reference.name,
                )?;
                let (model, search) = self.of_job(&reference.name, job)?;
                (model, Some(search))
            }
            (None, Some(source)) => {
                let field = format!("{place}.searcher");
                let mut model =
                    self.reader.model(source, searcher.device, searcher.dtype, &format!("{field}.model"))?;
                if let Some(adapter) = &searcher.adapter {
                    model.adapter = Some(self.reader.adapter(adapter, &format!("{field}.adapter"))?);
                }
                (model, None)
            }
            (None, None) => {
                let field = format!("{place}.searcher");
                return Err(PlanError::field(&self.reader.resource, &field, "set jobRef or model"));
            }
        };
        let mut search = self.search(arm, of_job, place)?;
        if let Some(compatibility) = arm.compatibility {
            search.compatibility = compatibility.into_config();
        }
        Ok(Method::S3 {
            searcher: Box::new(model),
            search,
            temperature: decoding.temperature,
            batch: decoding.batch as usize,
        })
    }

    /// The searcher that a job exports, and its loop.
    fn of_job(
        &mut self,
        name: &str,
        job: &Sourced<S3TrainingJob>,
    ) -> Result<(s3_config::ModelSpec, SearchConfig), PlanError> {
        let spec = &job.object.spec;
        let component = final_component(name, &job.object);
        let mut theirs = Reader::new(&format!("S3TrainingJob/{name}"), job.folder.as_deref());
        let mut model =
            theirs.model(&spec.searcher.model, spec.searcher.device, spec.searcher.dtype, "searcher.model")?;
        model.adapter = Some(AdapterSpec { path: in_work(&component, "export"), sha256: None });
        let search = search_config(job, &mut theirs)?;
        take(self.reader, theirs);
        self.needs.insert(component.clone());
        if !self.trained.contains(&component) {
            self.trained.push(component);
        }
        Ok((model, search))
    }

    fn search(&mut self, arm: &Arm, of_job: Option<SearchConfig>, place: &str) -> Result<SearchConfig, PlanError> {
        match (&arm.search, of_job) {
            (None, Some(of_job)) => Ok(of_job),
            (own, _) => {
                let own = own.clone().unwrap_or_default();
                let template = match &own.prompt_template {
                    Some(source) => Some(self.reader.data(source, &format!("{place}.search.promptTemplate"))?),
                    None => None,
                };
                let (top_k, method) = match &self.run.object.spec.retriever {
                    Some(retriever) => (own.top_k.unwrap_or(retriever.top_k), retriever.method),
                    None => (own.top_k.unwrap_or(3), s3_crds::RetrievalMethod::Default),
                };
                Ok(convert::search(&own, top_k, method, arm.compatibility.unwrap_or_default(), template))
            }
        }
    }
}
