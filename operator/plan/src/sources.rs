//! Addresses of models and data as the workers' configurations hold them.

use crate::{Input, PlanError, Symbol};
use s3_config::{AdapterSpec, DatasetConfig, ModelSpec};
use s3_crds::{DType, DataSource, Dataset, Device, Location, ModelSource};
use std::collections::BTreeSet;
use std::path::PathBuf;

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

    /// A path from an address: a symbol for a volume, the path itself for a file.
    fn path(&mut self, uri: &str, field: &str) -> Result<String, PlanError> {
        let wrong = |reason: String| PlanError::field(&self.resource, field, reason);
        match Location::parse(uri).map_err(|error| wrong(error.to_string()))? {
            Location::Pvc { claim, path } => {
                self.volumes.insert(claim.clone());
                Ok(Symbol::Volume { name: claim, path }.to_string())
            }
            Location::File { path } if path.starts_with('/') => Ok(path),
            Location::File { path } => match self.folder {
                Some(folder) => Ok(folder.join(path.trim_start_matches("./")).display().to_string()),
                None => Err(wrong(format!(
                    "file://{path} is relative to a manifest's folder, and there is none; write file:///…"
                ))),
            },
            other => Err(wrong(format!(
                "{uri}: {}:// is not fetched yet; download it and name it as pvc://CLAIM/PATH or file://PATH",
                other.scheme()
            ))),
        }
    }

    fn need(&mut self, path: String, field: &str, sha256: Option<&String>) -> String {
        let field = format!("{} {field}", self.resource);
        let input = Input { path: path.clone(), field, sha256: sha256.cloned() };
        if !self.inputs.contains(&input) {
            self.inputs.push(input);
        }
        path
    }

    /// A file.
    pub fn file(&mut self, uri: &str, sha256: Option<&String>, field: &str) -> Result<PathBuf, PlanError> {
        let path = self.path(uri, field)?;
        Ok(self.need(path, field, sha256).into())
    }

    /// A file of data.
    pub fn data(&mut self, source: &DataSource, field: &str) -> Result<PathBuf, PlanError> {
        self.file(&source.uri, source.sha256.as_ref(), field)
    }

    /// A folder whose listed files must be there; the sha256 belongs to the first.
    fn folder(
        &mut self,
        uri: &str,
        files: &[&str],
        sha256: Option<&String>,
        field: &str,
    ) -> Result<PathBuf, PlanError> {
        let path = self.path(uri, field)?;
        for (place, file) in files.iter().enumerate() {
            self.need(format!("{path}/{file}"), field, sha256.filter(|_| place == 0));
        }
        Ok(path.into())
    }

    /// An encoder's folder.
    pub fn encoder(&mut self, source: &ModelSource, field: &str) -> Result<PathBuf, PlanError> {
        let files = ["model.safetensors", "config.json", "tokenizer.json"];
        self.folder(&source.uri, &files, source.sha256.as_ref(), field)
    }

    /// An adapter's folder.
    pub fn adapter(&mut self, source: &DataSource, field: &str) -> Result<AdapterSpec, PlanError> {
        let files = ["adapter_model.safetensors", "adapter_config.json"];
        let path = self.folder(&source.uri, &files, source.sha256.as_ref(), field)?;
        Ok(AdapterSpec { path, sha256: source.sha256.clone() })
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
            self.file(&source.uri, source.sha256.as_ref(), field)?
        } else {
            let files = ["model.safetensors", "config.json", "tokenizer.json"];
            self.folder(&source.uri, &files, source.sha256.as_ref(), field)?
        };
        Ok(ModelSpec {
            path,
            sha256: source.sha256.clone(),
            adapter: None,
            device: device.into_config(),
            dtype: dtype.into_config(),
        })
    }

    /// Question files.
    pub fn datasets(&mut self, datasets: &[Dataset], field: &str) -> Result<Vec<DatasetConfig>, PlanError> {
        datasets
            .iter()
            .map(|dataset| {
                let field = format!("{field}[{}].uri", dataset.name);
                let Some(uri) = &dataset.uri else {
                    return Err(PlanError::field(
                        &self.resource,
                        &field,
                        "public question sets are not fetched yet; name the file: set Custom, uri pvc://CLAIM/PATH",
                    ));
                };
                Ok(DatasetConfig { name: dataset.name.clone(), path: self.file(uri, dataset.sha256.as_ref(), &field)? })
            })
            .collect()
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
