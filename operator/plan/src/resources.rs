//! The resources that a plan is made of.

use crate::lifecycle::{scheduled_name, scheduled_run, steps_of};
use crate::{Notice, PlanError};
use s3_crds::{
    Document, EvalRun, Kind, Resource, RetrieverIndex, S3TrainingJob, cluster_only, parse_documents, refuse_unsupported,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// An object and where it was written.
#[derive(Clone, Debug)]
pub struct Sourced<T> {
    /// The object, defaults filled in.
    pub object: T,
    /// Folder of its manifest: `file://./…` starts there. None in a cluster.
    pub folder: Option<PathBuf>,
    /// The file that it was read from, for messages.
    pub file: String,
}

/// Values of secrets by name and key.
pub type Secrets = BTreeMap<(String, String), Vec<u8>>;

/// Why objects of a cluster take no part in its plan, by `Kind/name`. The others are planned without them.
pub type Refused = BTreeMap<String, Vec<PlanError>>;

/// Everything that is asked for, by kind and name.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    /// `RetrieverIndex`.
    pub indices: BTreeMap<String, Sourced<RetrieverIndex>>,
    /// `S3TrainingJob`.
    pub jobs: BTreeMap<String, Sourced<S3TrainingJob>>,
    /// `EvalRun`.
    pub runs: BTreeMap<String, Sourced<EvalRun>>,
    /// Values from Secret manifests.
    pub secrets: Secrets,
    /// Fields that only a cluster honours.
    pub notices: Vec<Notice>,
    extent: Extent,
}

/// What the resources are of all that there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Extent {
    /// All that was written down: one machine runs it, one job after another.
    #[default]
    Whole,
    /// A part of that.
    Part,
    /// What a cluster's resource refers to; what it makes are resources of their own.
    Cluster,
}

impl Resources {
    /// Reads all documents of one manifest. `folder` is where `file://./…` starts.
    ///
    /// Everything wrong in it is returned, not only the first thing; then nothing of it is added.
    pub fn add_manifest(&mut self, file: &str, folder: Option<&Path>, text: &str) -> Result<(), Vec<PlanError>> {
        let documents = parse_documents(file, text).map_err(|errors| {
            let place = |error: &s3_crds::ParseError| {
                format!("{}{}", error.file, error.title.as_ref().map(|title| format!(" ({title})")).unwrap_or_default())
            };
            errors.into_iter().map(|e| PlanError::Document { place: place(&e), reason: e.what }).collect::<Vec<_>>()
        })?;
        let refused: Vec<PlanError> = documents
            .iter()
            .flat_map(|document| {
                let place = format!("{} ({})", document.file, document.resource.title());
                let written = kind_of(&document.resource).zip(document.written.as_ref());
                let errors = written.map(|(kind, written)| refuse_unsupported(kind, written)).unwrap_or_default();
                errors.into_iter().map(move |e| PlanError::Document { place: place.clone(), reason: e.to_string() })
            })
            .collect();
        if !refused.is_empty() {
            return Err(refused);
        }
        let twins: Vec<PlanError> =
            documents.into_iter().filter_map(|document| self.add(document, folder).err()).collect();
        if twins.is_empty() { Ok(()) } else { Err(twins) }
    }

    fn add(&mut self, document: Document, folder: Option<&Path>) -> Result<(), PlanError> {
        let title = document.resource.title();
        if let Some((kind, written)) = kind_of(&document.resource).zip(document.written.as_ref()) {
            self.notices.extend(notices(kind, &title, written));
        }
        let (file, folder) = (document.file, folder.map(Path::to_owned));
        let earlier = match document.resource {
            Resource::RetrieverIndex(object) => insert(&mut self.indices, *object, file.clone(), folder),
            Resource::S3TrainingJob(object) => insert(&mut self.jobs, *object, file.clone(), folder),
            Resource::EvalRun(object) => insert(&mut self.runs, *object, file.clone(), folder),
            Resource::Secret(secret) => {
                for (key, value) in secret.values {
                    self.secrets.insert((secret.name.clone(), key), value);
                }
                None
            }
        };
        match earlier {
            None => Ok(()),
            Some(earlier) => Err(PlanError::Document {
                place: file,
                reason: format!("{title} is in {earlier}, too; remove one or rename it"),
            }),
        }
    }

    /// Takes the objects of one namespace as the API server gives them.
    ///
    /// There is no folder, so relative `file://` addresses are refused, and nothing is listed as not applied.
    /// An object that is not valid or asks for what no code honours is refused with everything that is wrong
    /// in it; it never keeps the others from being planned.
    pub fn from_cluster(objects: impl IntoIterator<Item = (Kind, Value)>) -> (Self, Refused) {
        let (mut resources, mut refused) = (Self { extent: Extent::Cluster, ..Self::default() }, Refused::new());
        for (kind, mut object) in objects {
            let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
            let title = format!("{}/{name}", kind.name());
            if let Err(errors) = resources.take(kind, &title, name, &mut object) {
                refused.insert(title, errors);
            }
        }
        (resources, refused)
    }

    fn take(&mut self, kind: Kind, title: &str, name: String, object: &mut Value) -> Result<(), Vec<PlanError>> {
        let wrong = |reason: String| PlanError::Document { place: title.to_owned(), reason };
        let mut errors = s3_crds::validate(kind, object);
        if errors.is_empty() {
            errors = refuse_unsupported(kind, object);
        }
        if !errors.is_empty() {
            return Err(errors.iter().map(|error| wrong(error.to_string())).collect());
        }
        s3_crds::apply_defaults(kind, object);
        match kind {
            Kind::RetrieverIndex => typed(title, object).map(|object| drop(self.indices.insert(name, object))),
            Kind::S3TrainingJob => typed(title, object).map(|object| drop(self.jobs.insert(name, object))),
            Kind::EvalRun => typed(title, object).map(|object| drop(self.runs.insert(name, object))),
        }
        .map_err(|error| vec![wrong(error.to_string())])
    }

    /// One resource and everything that it refers to, directly or through others: what has to be planned
    /// together with it. What it refers to and is not there is missing here, too, and planning will say so.
    #[must_use]
    pub fn around(&self, kind: Kind, name: &str) -> Self {
        let extent = if self.in_cluster() { Extent::Cluster } else { Extent::Part };
        let mut part = Self { secrets: self.secrets.clone(), extent, ..Self::default() };
        match kind {
            Kind::RetrieverIndex => part.with_index(self, name),
            Kind::S3TrainingJob => part.with_job(self, name),
            Kind::EvalRun => {
                let Some(run) = self.runs.get(name) else { return part };
                let spec = &run.object.spec;
                if let Some(retriever) = &spec.retriever {
                    part.with_index(self, &retriever.index_ref.name);
                }
                for own in spec.arms.iter().filter_map(|arm| arm.retriever.as_ref()?.index_ref.as_ref()) {
                    part.with_index(self, &own.name);
                }
                let searchers = spec.arms.iter().filter_map(|arm| arm.searcher.as_ref()?.job_ref.as_ref());
                for job in searchers.chain(&spec.sample.exclude_training_of) {
                    part.with_job(self, &job.name);
                }
                part.runs.insert(name.to_owned(), run.clone());
            }
        }
        part
    }

    fn with_index(&mut self, all: &Self, name: &str) {
        if let Some(index) = all.indices.get(name) {
            self.indices.insert(name.to_owned(), index.clone());
        }
    }

    fn with_job(&mut self, all: &Self, name: &str) {
        if let Some(job) = all.jobs.get(name) {
            self.with_index(all, &job.object.spec.retriever.index_ref.name);
            if self.jobs.insert(name.to_owned(), job.clone()).is_none()
                && let Some(from) =
                    job.object.spec.checkpoint.resume_from.as_ref().and_then(|from| from.job_ref.as_ref())
            {
                self.with_job(all, &from.name);
            }
        }
    }

    /// An index that a resource refers to.
    pub(crate) fn index(&self, resource: &str, field: &str, name: &str) -> Result<&Sourced<RetrieverIndex>, PlanError> {
        self.indices.get(name).ok_or_else(|| PlanError::Missing {
            resource: resource.to_owned(),
            field: field.to_owned(),
            kind: "RetrieverIndex",
            name: name.to_owned(),
        })
    }

    /// A job that a resource refers to.
    pub(crate) fn job(&self, resource: &str, field: &str, name: &str) -> Result<&Sourced<S3TrainingJob>, PlanError> {
        self.jobs.get(name).ok_or_else(|| PlanError::Missing {
            resource: resource.to_owned(),
            field: field.to_owned(),
            kind: "S3TrainingJob",
            name: name.to_owned(),
        })
    }

    /// Whether jobs run beside each other, as pods.
    pub(crate) fn in_cluster(&self) -> bool {
        self.extent == Extent::Cluster
    }

    /// The evaluations on the jobs' schedules, which in a cluster the operator makes as resources of their own.
    pub(crate) fn scheduled(&self) -> Result<BTreeMap<String, Sourced<EvalRun>>, PlanError> {
        let mut made = BTreeMap::new();
        if self.extent != Extent::Whole {
            return Ok(made);
        }
        for (name, job) in &self.jobs {
            let Some(runs) = &job.object.spec.evaluation.runs else { continue };
            let resource = format!("S3TrainingJob/{name}");
            let template = self.runs.get(&runs.template_ref.name).ok_or_else(|| PlanError::Missing {
                resource: resource.clone(),
                field: "evaluation.runs.templateRef.name".to_owned(),
                kind: "EvalRun",
                name: runs.template_ref.name.clone(),
            })?;
            for step in steps_of(&job.object.spec) {
                let spec = scheduled_run(&template.object.spec, name, step, None)
                    .map_err(|reason| PlanError::field(&resource, "evaluation.runs.templateRef.name", &reason))?;
                let run = scheduled_name(name, &runs.template_ref.name, step);
                let object = EvalRun::new(&run, spec);
                made.insert(run, Sourced { object, ..template.clone() });
            }
        }
        Ok(made)
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty() && self.jobs.is_empty() && self.runs.is_empty()
    }
}

fn kind_of(resource: &Resource) -> Option<Kind> {
    match resource {
        Resource::RetrieverIndex(_) => Some(Kind::RetrieverIndex),
        Resource::S3TrainingJob(_) => Some(Kind::S3TrainingJob),
        Resource::EvalRun(_) => Some(Kind::EvalRun),
        Resource::Secret(_) => None,
    }
}

fn typed<T: serde::de::DeserializeOwned>(title: &str, object: &Value) -> Result<Sourced<T>, serde_json::Error> {
    Ok(Sourced { object: T::deserialize(object)?, folder: None, file: title.to_owned() })
}

/// Puts an object under its name; returns the file of one that was there.
fn insert<T: kube::ResourceExt>(
    all: &mut BTreeMap<String, Sourced<T>>,
    object: T,
    file: String,
    folder: Option<PathBuf>,
) -> Option<String> {
    all.insert(object.name_any(), Sourced { object, folder, file }).map(|earlier| earlier.file)
}

fn notices(kind: Kind, title: &str, written: &Value) -> Vec<Notice> {
    cluster_only(kind, written)
        .into_iter()
        .map(|error| Notice { resource: title.to_owned(), field: error.path.to_string(), message: error.message })
        .collect()
}
