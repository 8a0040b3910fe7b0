//! The model that learns, and the index that it searches.

use crate::{DType, DataSource, Device, LocalRef, ModelSource, RetrievalMethod, rules};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The model that learns: it writes queries, selects passages, decides to stop.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Searcher {
    /// Its base weights.
    pub model: ModelSource,
    /// What of it is trained.
    #[serde(default)]
    pub adapter: Adapter,
    /// File of a chat template (Jinja) instead of the model's own. It goes wherever the job's searcher goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<DataSource>,
    /// Processor.
    #[serde(default)]
    pub device: Device,
    /// Arithmetic type of the frozen weights; trained tensors are always 32-bit.
    #[serde(default)]
    pub dtype: DType,
}

/// What of a model is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AdapterKind {
    /// Low-rank updates of every linear layer (arXiv 2106.09685); the base is frozen.
    #[default]
    Lora,
    /// All weights, in 32 bits with both moments; the job exports a whole model. `rank` and `alpha` do not apply.
    Full,
}

/// What of the searcher is trained, and from where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = rules::attach(&[&rules::FULL_HAS_NO_INIT])))]
pub struct Adapter {
    /// `Lora`, or `Full` for all weights.
    pub kind: AdapterKind,
    /// Rank r of LoRA.
    #[schemars(range(min = 1, max = 1024))]
    pub rank: u32,
    /// Scale numerator of LoRA: the update is multiplied by alpha / rank.
    #[schemars(range(min = 0))]
    pub alpha: f64,
    /// Adapter (PEFT layout) that training starts from; its own rank and alpha hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<DataSource>,
}

impl Default for Adapter {
    fn default() -> Self {
        Self { kind: AdapterKind::Lora, rank: 16, alpha: 32.0, init: None }
    }
}

/// The index that is searched, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetrieverUse {
    /// The `RetrieverIndex`.
    pub index_ref: LocalRef,
    /// Passages per search.
    #[serde(default = "default_top_k")]
    #[schemars(range(min = 1, max = 1000))]
    pub top_k: u32,
    /// Ranking.
    #[serde(default)]
    pub method: RetrievalMethod,
}

fn default_top_k() -> u32 {
    8
}
