//! A worker's configuration with symbols in it, and how a runtime fills them in.

use crate::{PlanError, Symbol};
use s3_config::{
    EvaluatorConfig, FetchConfig, GatewayConfig, IndexBuildConfig, RetrieverServeConfig, TrainerConfig, WebSearchConfig,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::PathBuf;

/// What a runtime knows: every answer is an error when the runtime cannot give the value.
pub trait Binder {
    /// Where a path of a volume lies.
    fn volume(&self, name: &str, path: &str) -> Result<PathBuf, PlanError>;
    /// Where a path of a component's folder lies.
    fn work(&self, component: &str, path: &str) -> Result<PathBuf, PlanError>;
    /// What `component` binds its port to.
    fn listen(&self, component: &str, port: &str) -> Result<SocketAddr, PlanError>;
    /// How others reach it, `http://host:port`.
    fn address(&self, component: &str, port: &str) -> Result<String, PlanError>;
    /// A file that holds the key's value.
    fn secret(&self, name: &str, key: &str) -> Result<PathBuf, PlanError>;
}

/// The configuration of one component, every value bound.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum WorkerConfig {
    /// `s3-retriever build`.
    IndexBuild(Box<IndexBuildConfig>),
    /// `s3-retriever serve`.
    Retriever(Box<RetrieverServeConfig>),
    /// `s3-retriever web`.
    WebSearch(Box<WebSearchConfig>),
    /// `s3-generator-gateway serve`.
    Gateway(Box<GatewayConfig>),
    /// Every command of `s3-trainer`.
    Trainer(Box<TrainerConfig>),
    /// `s3-evaluator`.
    Evaluator(Box<EvaluatorConfig>),
    /// `s3-fetch`.
    Fetch(Box<FetchConfig>),
}

impl WorkerConfig {
    /// What the worker is told about its surroundings.
    pub fn runtime_mut(&mut self) -> &mut s3_config::Runtime {
        match self {
            Self::IndexBuild(config) => &mut config.runtime,
            Self::Retriever(config) => &mut config.runtime,
            Self::WebSearch(config) => &mut config.runtime,
            Self::Gateway(config) => &mut config.runtime,
            Self::Trainer(config) => &mut config.runtime,
            Self::Evaluator(config) => &mut config.runtime,
            Self::Fetch(config) => &mut config.runtime,
        }
    }
}

/// Which structure a template becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Schema {
    /// [`IndexBuildConfig`].
    IndexBuild,
    /// [`RetrieverServeConfig`].
    Retriever,
    /// [`WebSearchConfig`].
    WebSearch,
    /// [`GatewayConfig`].
    Gateway,
    /// [`TrainerConfig`].
    Trainer,
    /// [`EvaluatorConfig`].
    Evaluator,
    /// [`FetchConfig`].
    Fetch,
    /// What a managed model server is called with; the software is not the project's.
    ModelServer,
}

/// A worker's configuration in which paths and addresses may be symbols.
///
/// It is made from the worker's own structure and becomes that structure again when bound, so a key
/// that the worker does not know can be in neither.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Template {
    /// The worker's structure.
    pub schema: Schema,
    /// Its content; strings may be symbols.
    pub value: Value,
}

impl Template {
    /// Takes a worker's structure and puts `listen://PORT` where its own ports stand.
    ///
    /// `listens` are (JSON pointer, port name); a socket address has no room for a symbol, so the
    /// structure holds a stand-in there.
    pub fn new(config: &WorkerConfig, listens: &[(&str, &str)]) -> Result<Self, PlanError> {
        let schema = match config {
            WorkerConfig::IndexBuild(_) => Schema::IndexBuild,
            WorkerConfig::Retriever(_) => Schema::Retriever,
            WorkerConfig::WebSearch(_) => Schema::WebSearch,
            WorkerConfig::Gateway(_) => Schema::Gateway,
            WorkerConfig::Trainer(_) => Schema::Trainer,
            WorkerConfig::Evaluator(_) => Schema::Evaluator,
            WorkerConfig::Fetch(_) => Schema::Fetch,
        };
        let mut value = serde_json::to_value(config).map_err(PlanError::defect)?;
        for (pointer, port) in listens {
            let Some(place) = value.pointer_mut(pointer) else {
                return Err(PlanError::Defect(format!("configuration has no {pointer}")));
            };
            *place = Value::String(Symbol::listen(port).to_string());
        }
        prune(&mut value);
        Ok(Self { schema, value })
    }

    /// Fills in every symbol and reads the result as the worker's structure.
    pub fn bind(&self, component: &str, binder: &dyn Binder) -> Result<WorkerConfig, PlanError> {
        let value = self.bound(component, binder)?;
        let defect = |error| PlanError::Defect(format!("configuration of {component}: {error}"));
        Ok(match self.schema {
            Schema::IndexBuild => WorkerConfig::IndexBuild(serde_json::from_value(value).map_err(defect)?),
            Schema::Retriever => WorkerConfig::Retriever(serde_json::from_value(value).map_err(defect)?),
            Schema::WebSearch => WorkerConfig::WebSearch(serde_json::from_value(value).map_err(defect)?),
            Schema::Gateway => WorkerConfig::Gateway(serde_json::from_value(value).map_err(defect)?),
            Schema::Trainer => WorkerConfig::Trainer(serde_json::from_value(value).map_err(defect)?),
            Schema::Evaluator => WorkerConfig::Evaluator(serde_json::from_value(value).map_err(defect)?),
            Schema::Fetch => WorkerConfig::Fetch(serde_json::from_value(value).map_err(defect)?),
            Schema::ModelServer => {
                return Err(PlanError::Defect(format!("{component} reads no configuration of the project's")));
            }
        })
    }

    /// Fills in every symbol.
    pub(crate) fn bound(&self, component: &str, binder: &dyn Binder) -> Result<Value, PlanError> {
        let mut value = self.value.clone();
        bind_value(&mut value, component, binder)?;
        Ok(value)
    }

    /// All symbols in it, in order of appearance.
    pub fn symbols(&self) -> Vec<Symbol> {
        fn walk(value: &Value, found: &mut Vec<Symbol>) {
            match value {
                Value::String(text) => found.extend(Symbol::parse(text)),
                Value::Array(items) => items.iter().for_each(|item| walk(item, found)),
                Value::Object(fields) => fields.values().for_each(|item| walk(item, found)),
                _ => {}
            }
        }
        let mut found = Vec::new();
        walk(&self.value, &mut found);
        found
    }
}

/// Absent optional keys are left out, so that a plan reads like a hand-written configuration.
fn prune(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(prune);
        }
        Value::Array(items) => items.iter_mut().for_each(prune),
        _ => {}
    }
}

fn bind_value(value: &mut Value, component: &str, binder: &dyn Binder) -> Result<(), PlanError> {
    match value {
        Value::Object(fields) => fields.values_mut().try_for_each(|field| bind_value(field, component, binder)),
        Value::Array(items) => items.iter_mut().try_for_each(|item| bind_value(item, component, binder)),
        Value::String(text) => {
            if let Some(symbol) = Symbol::parse(text) {
                *text = bind_symbol(&symbol, component, binder)?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The value of one symbol as it stands in `component`'s configuration.
pub fn bind_symbol(symbol: &Symbol, component: &str, binder: &dyn Binder) -> Result<String, PlanError> {
    let path = match symbol {
        Symbol::Volume { name, path } => binder.volume(name, path)?,
        Symbol::Work { component, path } => binder.work(component, path)?,
        Symbol::Secret { name, key } => binder.secret(name, key)?,
        Symbol::Address { component, port } => {
            // An address may go on with a path: address://COMPONENT/PORT/v1.
            let (port, path) = port.split_once('/').map_or((port.as_str(), None), |(port, path)| (port, Some(path)));
            let address = binder.address(component, port)?;
            return Ok(path.map_or(address.clone(), |path| format!("{address}/{path}")));
        }
        Symbol::Listen { port } => return Ok(binder.listen(component, port)?.to_string()),
    };
    path.into_os_string().into_string().map_err(|path| {
        PlanError::Binding(format!("{} is not UTF-8; choose a folder with a plain name", path.to_string_lossy()))
    })
}
