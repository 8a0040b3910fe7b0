//! What can be asked of an engine, and what it answers.

use crate::error::RetrieverError;
use crate::filter::Filter;
use crate::rank::Ranked;
use s3_config::FusionConfig;
use std::sync::Arc;
use std::time::Duration;

/// A ranking that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// BM25.
    Lexical,
    /// Inner product of embeddings.
    Dense,
    /// Reciprocal rank fusion of both.
    Hybrid,
}

impl Method {
    /// Label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Lexical => "lexical",
            Self::Dense => "dense",
            Self::Hybrid => "hybrid",
        }
    }
}

/// Queries and how they are to be answered.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// The queries.
    pub queries: Vec<String>,
    /// Passages per query; zero takes the server's default.
    pub top_k: u64,
    /// Which ranking; none takes the server's default.
    pub method: Option<Method>,
    /// Scores every vector, whatever the kind of index.
    pub exact: bool,
    /// Which passages may be found.
    pub filter: Filter,
    /// Fusion of this request; none takes the server's.
    pub fusion: Option<FusionConfig>,
    /// Whether the best are reordered by the reranker; none does where there is one.
    pub rerank: Option<bool>,
}

/// Where a request's time went. Encoding, searching and reranking are of the round that it shared with others.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// From arrival to the round's start.
    pub queue: Duration,
    /// Encoding queries.
    pub encode: Duration,
    /// Ranking.
    pub search: Duration,
    /// Reranking.
    pub rerank: Duration,
}

/// What a request took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Queries answered from the cache.
    pub cached: usize,
    /// Queries computed.
    pub computed: usize,
    /// Queries of the round that they were computed in.
    pub round: usize,
    /// Bytes of vectors that one reading goes through.
    pub scanned_bytes: u64,
    /// Pairs that the reranker read.
    pub reranked: usize,
}

/// The rankings of a request's queries, in order.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// Per query the best passages.
    pub results: Vec<Arc<[Ranked]>>,
    /// Where the time went.
    pub timing: Timing,
    /// What it took.
    pub usage: Usage,
}

/// Why a request is answered with nothing.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// The request is wrong; the label counts it.
    #[error("{message}")]
    Refused {
        /// Label in metrics.
        reason: &'static str,
        /// What to change.
        message: String,
    },
    /// Too much waits already.
    #[error("{message}")]
    Busy {
        /// When to ask again.
        message: String,
    },
    /// A service behind this one does not answer; asking again may help.
    #[error("{message}")]
    Unavailable {
        /// What was tried.
        message: String,
        /// When it may answer again, as far as it said.
        retry_after: Option<Duration>,
    },
    /// A service behind this one does not take its calls: its key or its settings are wrong.
    #[error("{message}")]
    Rejected {
        /// What it said.
        message: String,
    },
    /// Something broke here.
    #[error(transparent)]
    Failed(#[from] RetrieverError),
}

impl SearchError {
    /// The same for another who waited for the same.
    #[must_use]
    pub fn shared(&self) -> Self {
        match self {
            Self::Refused { reason, message } => Self::Refused { reason, message: message.clone() },
            Self::Busy { message } => Self::Busy { message: message.clone() },
            Self::Unavailable { message, retry_after } => {
                Self::Unavailable { message: message.clone(), retry_after: *retry_after }
            }
            Self::Rejected { message } => Self::Rejected { message: message.clone() },
            Self::Failed(error) => Self::Failed(RetrieverError::Internal(error.to_string())),
        }
    }

    /// A refusal, counted.
    pub fn refused(reason: &'static str, message: String) -> Self {
        s3_telemetry::metrics().retriever_refused.with_label_values(&[reason]).inc();
        Self::Refused { reason, message }
    }
}
