//! The arms of an `EvalRun`, as the evaluator is told them.

use crate::component::in_work;
use crate::names::{retriever_name, warm_start_name};
use crate::sources::{IntoConfig, Reader, take};
use crate::training::{MILESTONES, final_component, search_config};
use crate::{PlanError, Resources, Sourced, convert, index};
use s3_config::{
    AdapterSpec, ArmConfig, ArmMethod as Method, ArmRetrieverConfig, Compatibility, ModelSpec, PlayedArm,
    RetrievalMethod, SearchConfig, milestone_folder,
};
use s3_crds::{
    AnswerBy, Arm, ArmMethod, ArmRetriever, ArmSearcher, Baseline, CheckpointChoice, ControlRetriever, EvalRun,
    Generator, S3TrainingJob,
};
use std::collections::BTreeSet;

/// Passages of a search where nothing says more: what the references give their baselines.
const TOP_K: u32 = 3;

/// What the arms of one run are made from, and what they turn out to need.
pub(crate) struct Arms<'a, 'b> {
    pub run: &'a Sourced<EvalRun>,
    pub resources: &'a Resources,
    pub reader: &'b mut Reader<'a>,
    pub needs: &'b mut BTreeSet<String>,
    /// The components whose searchers are evaluated.
    pub trained: Vec<String>,
}

/// A method's own limits, where the arm says none: its paper's and the reference's settings.
fn limits(method: ArmMethod) -> SearchConfig {
    let base = SearchConfig { top_k: TOP_K, initial_top_k: 0, max_searches: 4, ..SearchConfig::default() };
    match method {
        // a turn of the reference's; invalid ones use up its four turns like searches
        ArmMethod::SearchR1 => {
            SearchConfig { observation_tokens: 500, turn_tokens: 500, context_tokens: 4096, max_corrections: 4, ..base }
        }
        ArmMethod::SearchO1 => {
            SearchConfig { turn_tokens: 1000, observation_tokens: 2500, passage_tokens: 512, ..base }
        }
        // one sentence a turn, and the paper's fifteen paragraphs
        ArmMethod::IrCot => SearchConfig { turn_tokens: 128, observation_tokens: 4000, max_passages: 15, ..base },
        ArmMethod::DeepRetrieval => SearchConfig { turn_tokens: 512, context_tokens: 2048, max_searches: 1, ..base },
        ArmMethod::Sft => SearchConfig { turn_tokens: 512, context_tokens: 2048, max_searches: 0, ..base },
        ArmMethod::ChainOfThought | ArmMethod::R1 => {
            SearchConfig { turn_tokens: 500, context_tokens: 4096, max_searches: 0, ..base }
        }
        ArmMethod::S3 | ArmMethod::Direct | ArmMethod::Rag => base,
    }
}

/// Who answers for a method, where the arm says so or not.
fn answer_by(method: ArmMethod, chosen: Option<AnswerBy>) -> s3_config::AnswerBy {
    let itself = match method {
        ArmMethod::SearchR1 => chosen != Some(AnswerBy::Generator),
        ArmMethod::SearchO1 | ArmMethod::IrCot => chosen == Some(AnswerBy::Own),
        ArmMethod::DeepRetrieval => false,
        _ => true,
    };
    if itself { s3_config::AnswerBy::Own } else { s3_config::AnswerBy::Generator }
}

/// What the generator's model reads and writes is no longer than it takes, where that is known.
fn within_the_generator(generator: &Generator, search: &mut SearchConfig) {
    if let Some(built_in) = &generator.provider.built_in {
        search.context_tokens = search.context_tokens.min(built_in.context_tokens);
        search.turn_tokens = search.turn_tokens.min(search.context_tokens / 2);
    }
}

/// A training's baseline that is not naive RAG: a method that the generator's model plays, greedily.
pub(crate) fn baseline(
    baseline: &Baseline,
    ranking: RetrievalMethod,
    generator: &Generator,
    batch: usize,
) -> Option<Method> {
    let played = || {
        let mut search = limits(baseline.method);
        within_the_generator(generator, &mut search);
        (search.top_k, search.method) = (baseline.top_k.max(1), ranking);
        search.max_passages = search.max_passages.max(search.top_k);
        let answer = answer_by(baseline.method, None);
        Box::new(PlayedArm { searcher: None, search, answer, temperature: 0.0, top_p: 1.0, batch })
    };
    match baseline.method {
        ArmMethod::Direct => Some(Method::Direct {}),
        ArmMethod::ChainOfThought => Some(Method::ChainOfThought(played())),
        ArmMethod::SearchR1 => Some(Method::SearchR1(played())),
        ArmMethod::SearchO1 => Some(Method::SearchO1(played())),
        ArmMethod::IrCot => Some(Method::IrCot(played())),
        ArmMethod::DeepRetrieval => Some(Method::DeepRetrieval(played())),
        // the others need a model of their own, and are refused
        ArmMethod::Rag | ArmMethod::S3 | ArmMethod::Sft | ArmMethod::R1 => None,
    }
}

impl Arms<'_, '_> {
    /// One arm.
    pub fn arm(&mut self, arm: &Arm) -> Result<ArmConfig, PlanError> {
        let place = format!("arms[{}]", arm.name);
        let retriever = match &arm.retriever {
            Some(own) => self.retriever(own, &place)?,
            None => None,
        };
        let ranking = self.ranking(arm);
        let refuse = |field: &str, reason: &str| {
            Err(PlanError::field(&self.reader.resource, &format!("{place}.{field}"), reason))
        };
        let method = match arm.method {
            ArmMethod::Direct => Method::Direct {},
            ArmMethod::Rag => match (&arm.budget_from, arm.top_k) {
                (Some(budget), _) => Method::SameBudgetRag {
                    budget_from: budget.clone(),
                    budget_by: arm.budget_by.unwrap_or_default().into_config(),
                    ranking,
                },
                (None, Some(top_k)) => Method::Rag { top_k, ranking },
                (None, None) => return refuse("topK", "a Rag arm needs topK or budgetFrom"),
            },
            ArmMethod::S3 => match &arm.searcher {
                Some(searcher) => self.s3(arm, searcher, ranking, &place)?,
                None => return refuse("searcher", "an S3 arm needs jobRef or model"),
            },
            ArmMethod::ChainOfThought => Method::ChainOfThought(self.played(arm, ranking, &place)?),
            ArmMethod::Sft => Method::Sft(self.played(arm, ranking, &place)?),
            ArmMethod::R1 => Method::R1(self.played(arm, ranking, &place)?),
            ArmMethod::SearchR1 => Method::SearchR1(self.played(arm, ranking, &place)?),
            ArmMethod::SearchO1 => Method::SearchO1(self.played(arm, ranking, &place)?),
            ArmMethod::IrCot => Method::IrCot(self.played(arm, ranking, &place)?),
            ArmMethod::DeepRetrieval => Method::DeepRetrieval(self.played(arm, ranking, &place)?),
        };
        Ok(ArmConfig { name: arm.name.clone(), retriever, method })
    }

    /// How an arm's searches are ranked: as it says, else as the run does.
    fn ranking(&self, arm: &Arm) -> RetrievalMethod {
        let run = self.run.object.spec.retriever.as_ref().map(|retriever| retriever.method);
        let own = arm.retriever.as_ref().map(|retriever| retriever.method);
        own.filter(|method| *method != s3_crds::RetrievalMethod::Default).or(run).unwrap_or_default().into_config()
    }

    /// An arm's own retriever; none when it is the run's.
    fn retriever(&mut self, own: &ArmRetriever, place: &str) -> Result<Option<ArmRetrieverConfig>, PlanError> {
        let run = self.run.object.spec.retriever.as_ref().map(|retriever| retriever.index_ref.name.as_str());
        let resource = &self.reader.resource;
        let config = ArmRetrieverConfig { endpoint: None, control: None, corpus: None };
        match (&own.index_ref, own.control) {
            (Some(index), None) if run == Some(index.name.as_str()) => Ok(None),
            (Some(index), None) => {
                let field = format!("{place}.retriever.indexRef.name");
                let found = self.resources.index(resource, &field, &index.name)?;
                let endpoint = Some(index::searched(&index.name, found));
                self.needs.insert(retriever_name(&index.name));
                Ok(Some(ArmRetrieverConfig { endpoint, ..config }))
            }
            (None, Some(ControlRetriever::Empty)) => {
                Ok(Some(ArmRetrieverConfig { control: Some(s3_config::Control::Empty), ..config }))
            }
            (None, Some(control)) => {
                let Some(name) = run else {
                    let reason = "this control draws from the run's index; set the run's `retriever`";
                    return Err(PlanError::field(resource, &format!("{place}.retriever.control"), reason));
                };
                let index = self.resources.index(resource, "retriever.indexRef.name", name)?;
                let (path, inputs, volumes) = index::corpus(index, &format!("RetrieverIndex/{name}"))?;
                self.reader.add(inputs, volumes);
                Ok(Some(ArmRetrieverConfig { control: Some(control.into_config()), corpus: Some(path), ..config }))
            }
            _ => {
                let reason = "set exactly one of indexRef and control";
                Err(PlanError::field(resource, &format!("{place}.retriever"), reason))
            }
        }
    }

    fn s3(
        &mut self,
        arm: &Arm,
        searcher: &ArmSearcher,
        ranking: RetrievalMethod,
        place: &str,
    ) -> Result<Method, PlanError> {
        let decoding = &self.run.object.spec.decoding;
        let (model, of_job) = self.model(searcher, place)?;
        if of_job.as_ref().is_some_and(|search| search.compatibility == Compatibility::SearchR1) {
            let reason = "this job trains a model that answers itself; use method SearchR1";
            return Err(PlanError::field(&self.reader.resource, &format!("{place}.searcher.jobRef"), reason));
        }
        let mut search = self.search(arm, of_job, place)?;
        if let Some(compatibility) = arm.compatibility {
            search.compatibility = compatibility.into_config();
        }
        if ranking != RetrievalMethod::Default {
            search.method = ranking;
        }
        search.ablation = arm.ablation.into_config();
        Ok(Method::S3 {
            searcher: Box::new(model),
            search,
            temperature: decoding.temperature,
            top_p: decoding.top_p,
            batch: decoding.batch as usize,
        })
    }

    /// An arm that plays another method's protocol.
    fn played(&mut self, arm: &Arm, ranking: RetrievalMethod, place: &str) -> Result<Box<PlayedArm>, PlanError> {
        let decoding = self.run.object.spec.decoding.clone();
        let (searcher, of_job) = match &arm.searcher {
            Some(searcher) => {
                let (model, of_job) = self.model(searcher, place)?;
                (Some(model), of_job)
            }
            None => (None, None),
        };
        // the loop of the job that trained it, where that is this method's
        let of_job = of_job
            .filter(|search| arm.method == ArmMethod::SearchR1 && search.compatibility == Compatibility::SearchR1);
        let own_top_k = arm.top_k.or(arm.search.as_ref().and_then(|search| search.top_k));
        let top_k = own_top_k.or(of_job.as_ref().map(|search| search.top_k)).unwrap_or(TOP_K);
        let compatibility = match (arm.compatibility, &of_job) {
            (None, Some(_)) => Compatibility::SearchR1,
            (own, _) => own.unwrap_or_default().into_config(),
        };
        let mut search = match &arm.search {
            Some(own) => {
                let template = match &own.prompt_template {
                    Some(source) => Some(self.reader.data(source, &format!("{place}.search.promptTemplate"))?),
                    None => None,
                };
                let method = s3_crds::RetrievalMethod::Default;
                convert::search(own, top_k, method, s3_crds::Compatibility::None, template)
            }
            None => of_job.unwrap_or_else(|| limits(arm.method)),
        };
        if searcher.is_none() {
            within_the_generator(&self.run.object.spec.generator, &mut search);
        }
        (search.top_k, search.method) = (top_k, ranking);
        search.max_passages = search.max_passages.max(top_k);
        search.compatibility = compatibility;
        let answer = answer_by(arm.method, arm.answer);
        Ok(Box::new(PlayedArm {
            searcher,
            search,
            answer,
            temperature: decoding.temperature,
            top_p: decoding.top_p,
            batch: decoding.batch as usize,
        }))
    }

    /// An arm's model, and the loop that it was trained in.
    fn model(&mut self, searcher: &ArmSearcher, place: &str) -> Result<(ModelSpec, Option<SearchConfig>), PlanError> {
        let field = format!("{place}.searcher");
        match (&searcher.job_ref, &searcher.model) {
            (Some(reference), _) => {
                let job =
                    self.resources.job(&self.reader.resource, &format!("{field}.jobRef.name"), &reference.name)?;
                let (model, search) = self.of_job(&reference.name, job, searcher, place)?;
                Ok((model, Some(search)))
            }
            (None, Some(source)) => {
                let mut model =
                    self.reader.model(source, searcher.device, searcher.dtype, &format!("{field}.model"))?;
                if let Some(adapter) = &searcher.adapter {
                    model.adapter = Some(self.reader.adapter(adapter, &format!("{field}.adapter"))?);
                }
                Ok((model, None))
            }
            (None, None) => Err(PlanError::field(&self.reader.resource, &field, "set jobRef or model")),
        }
    }

    /// The searcher that a job exports or keeps, and its loop.
    fn of_job(
        &mut self,
        name: &str,
        job: &Sourced<S3TrainingJob>,
        searcher: &ArmSearcher,
        place: &str,
    ) -> Result<(ModelSpec, SearchConfig), PlanError> {
        let spec = &job.object.spec;
        let choice = searcher.checkpoint;
        let refuse = |field: &str, reason: &str| {
            Err(PlanError::field(&self.reader.resource, &format!("{place}.searcher.{field}"), reason))
        };
        let train = final_component(name, &job.object);
        let (component, adapter) = match choice {
            CheckpointChoice::WarmStart if spec.warm_start.is_none() => {
                let reason = format!("S3TrainingJob {name} has no warmStart; name its adapter.init with `model`");
                return refuse("checkpoint", &reason);
            }
            CheckpointChoice::WarmStart => {
                let component = warm_start_name(name);
                let adapter = AdapterSpec::at(in_work(&component, "export"));
                (component, adapter)
            }
            CheckpointChoice::Final => {
                let adapter = AdapterSpec::at(in_work(&train, "export"));
                (train, adapter)
            }
            CheckpointChoice::Latest | CheckpointChoice::Step if spec.steps == 0 => {
                return refuse("checkpoint", &format!("S3TrainingJob {name} has no steps; use Final"));
            }
            CheckpointChoice::Latest => {
                let adapter = AdapterSpec { latest: true, ..AdapterSpec::at(in_work(&train, "checkpoints")) };
                (train, adapter)
            }
            CheckpointChoice::Step => {
                let step = searcher.step.unwrap_or_default();
                match &spec.evaluation.runs {
                    Some(runs) if step > 0 && step <= spec.steps && step.is_multiple_of(runs.every.max(1)) => {}
                    _ => {
                        let reason =
                            format!("S3TrainingJob {name} keeps no searcher of step {step}; see its evaluation.runs");
                        return refuse("step", &reason);
                    }
                }
                let path = in_work(&train, MILESTONES).join(milestone_folder(step));
                (train, AdapterSpec { sha256: searcher.sha256.clone(), ..AdapterSpec::at(path) })
            }
        };
        let mut theirs = Reader::new(&format!("S3TrainingJob/{name}"), job.folder.as_deref());
        let mut model = theirs.searcher(&spec.searcher)?;
        model.adapter = Some(adapter);
        let search = search_config(job, &mut theirs)?;
        take(self.reader, theirs);
        // What a job has left so far is there while it works, and says itself what it is. On one machine jobs run one
        // after another.
        let meanwhile = choice == CheckpointChoice::Latest || searcher.sha256.is_some();
        if !meanwhile || !self.resources.in_cluster() {
            self.needs.insert(component.clone());
        }
        // a warm start has no rounds to show, and those of a training that goes on are not all there
        if choice == CheckpointChoice::Final && !self.trained.contains(&component) {
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
                    None => (own.top_k.unwrap_or(TOP_K), s3_crds::RetrievalMethod::Default),
                };
                Ok(convert::search(&own, top_k, method, arm.compatibility.unwrap_or_default(), template))
            }
        }
    }
}
