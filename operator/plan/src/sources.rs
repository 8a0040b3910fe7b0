//! Addresses of models and data as the workers' configurations hold them.

use crate::fetch::{Place, Remote};
use crate::{Input, PlanError, Symbol};
use s3_config::{AdapterSpec, DatasetConfig, FetchLocation, ModelSpec};
use s3_crds::{
    Corpus, DType, DataSource, Dataset, Device, Location, ModelSource, QuestionFields, QuestionSet, Searcher,
    SecretKeyRef, Vectors,
};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// An address with what belongs to it.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub uri: &'a str,
    pub revision: Option<&'a str>,
    pub sha256: Option<&'a String>,
    pub token: Option<&'a SecretKeyRef>,
}

macro_rules! sources {
    ($($type:ty),+) => {$(
        impl<'a> From<&'a $type> for Source<'a> {
            fn from(source: &'a $type) -> Self {
                Self {
                    uri: &source.uri,
                    revision: source.revision.as_deref(),
                    sha256: source.sha256.as_ref(),
                    token: source.token_secret_ref.as_ref(),
                }
            }
        }
    )+};
}
sources!(DataSource, ModelSource, Corpus);

impl<'a> From<&'a Vectors> for Source<'a> {
    fn from(source: &'a Vectors) -> Self {
        Self { uri: &source.uri, revision: None, sha256: Some(&source.sha256), token: None }
    }
}

/// Where a model server finds its model.
pub(crate) enum Served {
    /// In a folder of a volume.
    Volume { path: String },
    /// In a repository of the hub.
    Hub { repository: String, revision: Option<String> },
}

/// What another resource's fields need is needed here, too.
pub(crate) fn take(reader: &mut Reader<'_>, other: Reader<'_>) {
    reader.add(other.inputs, other.volumes);
}

/// Collects what a component reads, while its configuration is written.
pub(crate) struct Reader<'a> {
    /// `Kind/name` of the resource whose fields are read.
    pub resource: String,
    /// Folder of the resource's manifest, where `file://./…` starts.
    pub folder: Option<&'a std::path::Path>,
    /// Volumes found so far.
    pub volumes: BTreeSet<String>,
    /// Files found so far.
    pub inputs: Vec<Input>,
}

impl<'a> Reader<'a> {
    pub fn new(resource: &str, folder: Option<&'a std::path::Path>) -> Self {
        Self { resource: resource.to_owned(), folder, volumes: BTreeSet::new(), inputs: Vec::new() }
    }

    /// What another resource's field needs is needed here, too.
    pub fn add(&mut self, inputs: Vec<Input>, volumes: BTreeSet<String>) {
        self.volumes.extend(volumes);
        for input in inputs {
            if !self.inputs.contains(&input) {
                self.inputs.push(input);
            }
        }
    }

    /// A path from an address: a symbol for a volume, the path itself for a file, a stand-in for what is fetched.
    fn path(&self, source: Source<'_>, field: &str) -> Result<(String, Option<Place>), PlanError> {
        let wrong = |reason: String| PlanError::field(&self.resource, field, reason);
        match Location::parse(source.uri).map_err(|error| wrong(error.to_string()))? {
            Location::Pvc { claim, path } => Ok((Symbol::Volume { name: claim, path }.to_string(), None)),
            Location::File { path } if path.starts_with('/') => Ok((path, None)),
            Location::File { path } => match self.folder {
                Some(folder) => Ok((folder.join(path.trim_start_matches("./")).display().to_string(), None)),
                None => Err(wrong(format!(
                    "file://{path} is relative to a manifest's folder, and there is none; write file:///…"
                ))),
            },
            Location::HuggingFace { repository, path } => {
                let revision = source.revision.map(str::to_owned);
                Ok(Self::fetched(source, FetchLocation::HuggingFace { repository, revision }, path))
            }
            Location::S3 { bucket, key } => Ok(Self::fetched(source, FetchLocation::S3 { bucket }, key)),
            Location::Gs { bucket, key } => Ok(Self::fetched(source, FetchLocation::Gs { bucket }, key)),
        }
    }

    fn fetched(source: Source<'_>, location: FetchLocation, path: String) -> (String, Option<Place>) {
        let place = Place::new(source, location, path);
        (place.stand_in(), Some(place))
    }

    fn need(&mut self, path: String, field: &str, sha256: Option<&String>, remote: Option<Remote>) -> String {
        if let Some(Symbol::Volume { name, .. }) = Symbol::parse(&path) {
            self.volumes.insert(name);
        }
        let field = format!("{} {field}", self.resource);
        let input = Input { path: path.clone(), field, sha256: sha256.cloned(), remote };
        if !self.inputs.contains(&input) {
            self.inputs.push(input);
        }
        path
    }

    /// A file.
    pub fn file<'s>(&mut self, source: impl Into<Source<'s>>, field: &str) -> Result<PathBuf, PlanError> {
        let source = source.into();
        let (path, place) = self.path(source, field)?;
        let Some(place) = place else { return Ok(self.need(path, field, source.sha256, None).into()) };
        let Some(name) = place.path.rsplit('/').next().filter(|name| !name.is_empty()).map(str::to_owned) else {
            let reason = format!("{} names no file; write its path, too", source.uri);
            return Err(PlanError::field(&self.resource, field, reason));
        };
        let remote = Remote { file: place.path.clone(), name: name.clone(), place };
        Ok(self.need(format!("{path}/{name}"), field, source.sha256, Some(remote)).into())
    }

    /// A file of data.
    pub fn data(&mut self, source: &DataSource, field: &str) -> Result<PathBuf, PlanError> {
        self.file(source, field)
    }

    /// A folder whose listed files must be there; the sha256 belongs to the first.
    fn folder(&mut self, source: Source<'_>, files: &[&str], field: &str) -> Result<PathBuf, PlanError> {
        let (path, place) = self.path(source, field)?;
        for (number, file) in files.iter().enumerate() {
            let remote = place.as_ref().map(|place| {
                let within = if place.path.is_empty() { (*file).to_owned() } else { format!("{}/{file}", place.path) };
                Remote { file: within, name: (*file).to_owned(), place: place.clone() }
            });
            self.need(format!("{path}/{file}"), field, source.sha256.filter(|_| number == 0), remote);
        }
        Ok(path.into())
    }

    /// An encoder's folder.
    pub fn encoder(&mut self, source: &ModelSource, field: &str) -> Result<PathBuf, PlanError> {
        let files = ["model.safetensors", "config.json", "tokenizer.json"];
        self.folder(source.into(), &files, field)
    }

    /// An adapter's folder.
    pub fn adapter(&mut self, source: &DataSource, field: &str) -> Result<AdapterSpec, PlanError> {
        let files = ["adapter_model.safetensors", "adapter_config.json"];
        let path = self.folder(source.into(), &files, field)?;
        Ok(AdapterSpec { sha256: source.sha256.clone(), ..AdapterSpec::at(path) })
    }

    /// A training's checkpoint, of an adapter or of the whole model; the sha256 is that of its manifest.
    pub fn checkpoint(&mut self, source: &DataSource, whole: bool, field: &str) -> Result<PathBuf, PlanError> {
        let shape = if whole { "config.json" } else { "adapter_config.json" };
        let files = ["manifest.json", "state.json", "policy.safetensors", "optimizer.safetensors", shape];
        self.folder(source.into(), &files, field)
    }

    /// A model as a server of another's making reads it: a folder of a volume, or a repository that it fetches itself.
    pub fn served(&mut self, source: &ModelSource, field: &str) -> Result<Served, PlanError> {
        let wrong = |reason: &str| PlanError::field(&self.resource, field, reason);
        if source.sha256.is_some() {
            return Err(wrong("the server does not check a sha256; pin an hf:// model by its commit in revision"));
        }
        match Location::parse(&source.uri).map_err(|error| wrong(&error.to_string()))? {
            Location::HuggingFace { repository, path } if path.is_empty() => {
                Ok(Served::Hub { repository, revision: source.revision.clone() })
            }
            Location::Pvc { .. } => {
                let folder = self.folder(source.into(), &["config.json"], field)?;
                Ok(Served::Volume { path: folder.display().to_string() })
            }
            _ => Err(wrong("a managed server reads hf://OWNER/NAME or a folder pvc://CLAIM/PATH")),
        }
    }

    /// A decoder: a GGUF file, or a folder with safetensors.
    pub fn model(
        &mut self,
        source: &ModelSource,
        device: Device,
        dtype: DType,
        field: &str,
    ) -> Result<ModelSpec, PlanError> {
        let gguf = std::path::Path::new(&source.uri).extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        let path = if gguf {
            self.file(source, field)?
        } else {
            let files = ["model.safetensors", "config.json", "tokenizer.json"];
            self.folder(source.into(), &files, field)?
        };
        let model = ModelSpec::at(path, device.into_config(), dtype.into_config());
        Ok(ModelSpec { sha256: source.sha256.clone(), ..model })
    }

    /// A job's searcher as training starts from it: the model, told by the job's chat template.
    pub fn searcher(&mut self, searcher: &Searcher) -> Result<ModelSpec, PlanError> {
        let model = self.model(&searcher.model, searcher.device, searcher.dtype, "searcher.model")?;
        let chat_template = match &searcher.chat_template {
            Some(source) => Some(self.data(source, "searcher.chatTemplate")?),
            None => None,
        };
        Ok(ModelSpec { chat_template, ..model })
    }

    /// Question files.
    pub fn datasets(&mut self, datasets: &[Dataset], field: &str) -> Result<Vec<DatasetConfig>, PlanError> {
        datasets
            .iter()
            .map(|dataset| {
                let field = format!("{field}[{}].uri", dataset.name);
                let set = set_name(dataset.set);
                let source = |uri| Source {
                    uri,
                    revision: None,
                    sha256: dataset.sha256.as_ref(),
                    token: dataset.token_secret_ref.as_ref(),
                };
                let published = set.and_then(|set| hub(set, dataset.split.as_deref()));
                let Some(uri) = dataset.uri.as_ref().or(published.as_ref()) else {
                    let reason = "this set is published in MIRAGE's benchmark.json; name your copy of it";
                    return Err(PlanError::field(&self.resource, &field, reason));
                };
                Ok(DatasetConfig {
                    name: dataset.name.clone(),
                    path: self.file(source(uri), &field)?,
                    set: set.map(str::to_owned),
                    // a file of one split does not say which
                    split: dataset.split.clone().filter(|_| dataset.uri.is_some()),
                    fields: dataset.fields.as_ref().map(fields).unwrap_or_default(),
                })
            })
            .collect()
    }
}

/// A public set as the workers name it; none for a file of your own.
fn set_name(set: QuestionSet) -> Option<&'static str> {
    Some(match set {
        QuestionSet::Custom => return None,
        QuestionSet::Nq => "Nq",
        QuestionSet::TriviaQa => "TriviaQa",
        QuestionSet::PopQa => "PopQa",
        QuestionSet::HotpotQa => "HotpotQa",
        QuestionSet::TwoWiki => "TwoWiki",
        QuestionSet::MuSiQue => "MuSiQue",
        QuestionSet::Bamboogle => "Bamboogle",
        QuestionSet::MedQa => "MedQa",
        QuestionSet::MedMcqa => "MedMcqa",
        QuestionSet::PubMedQa => "PubMedQa",
        QuestionSet::BioAsq => "BioAsq",
        QuestionSet::Mmlu => "Mmlu",
    })
}

/// Where the `FlashRAG` collection keeps a set; none for sets that it has not.
fn hub(set: &str, split: Option<&str>) -> Option<String> {
    let (folder, usual) = match set {
        "Nq" => ("nq", "test"),
        "TriviaQa" => ("triviaqa", "test"),
        "PopQa" => ("popqa", "test"),
        "HotpotQa" => ("hotpotqa", "dev"),
        "TwoWiki" => ("2wikimultihopqa", "dev"),
        "MuSiQue" => ("musique", "dev"),
        "Bamboogle" => ("bamboogle", "test"),
        _ => return None,
    };
    Some(format!("hf://datasets/RUC-NLPIR/FlashRAG_datasets/{folder}/{}.jsonl", split.unwrap_or(usual)))
}

fn fields(of: &QuestionFields) -> s3_config::QuestionFields {
    s3_config::QuestionFields {
        id: of.id.clone(),
        question: of.question.clone(),
        answers: of.answers.clone(),
        options: of.options.clone(),
        evidence: of.evidence.clone(),
    }
}

/// An enum of the resources as the workers' configurations write it. Names are equal on both sides.
pub(crate) trait IntoConfig {
    type Config;
    fn into_config(self) -> Self::Config;
}

macro_rules! same_names {
    ($from:ty => $to:ty { $($name:ident),+ $(,)? }) => {
        impl $crate::sources::IntoConfig for $from {
            type Config = $to;
            fn into_config(self) -> $to {
                match self { $(Self::$name => <$to>::$name),+ }
            }
        }
    };
}
pub(crate) use same_names;
