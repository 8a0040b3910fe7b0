//! Where arms search: the run's index, another one, or a control.

use super::control::{ControlRetriever, Corpus};
use crate::error::EvalError;
use crate::questions::QuestionSet;
use s3_config::{ArmConfig, Control, Endpoint, EvaluatorConfig, RetrievalMethod};
use s3_rollout::{Link, Retrieve, RetrieverPeer, RolloutError};
use s3_search::Passage;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Every place that the arms of a run search.
pub struct Places {
    peers: BTreeMap<String, RetrieverPeer>,
    run: Option<String>,
    seed: u64,
}

impl Places {
    /// Connects to every retriever that the configuration names.
    pub fn connect(link: &Link, config: &EvaluatorConfig) -> Result<Self, EvalError> {
        let own = config.arms.iter().filter_map(|arm| arm.retriever.as_ref()?.endpoint.as_ref());
        let mut peers = BTreeMap::new();
        for endpoint in config.retriever.iter().chain(own) {
            if !peers.contains_key(&endpoint.address) {
                peers.insert(endpoint.address.clone(), RetrieverPeer::connect(link, endpoint)?);
            }
        }
        Ok(Self { peers, run: config.retriever.as_ref().map(|endpoint| endpoint.address.clone()), seed: config.seed })
    }

    /// The run's retriever.
    pub fn run(&self) -> Option<&RetrieverPeer> {
        self.peers.get(self.run.as_ref()?)
    }

    fn peer(&self, endpoint: Option<&Endpoint>) -> Option<&RetrieverPeer> {
        match endpoint {
            Some(endpoint) => self.peers.get(&endpoint.address),
            None => self.run(),
        }
    }

    /// Digest of the index that an arm searches, where it is not the run's.
    pub fn index_of(&self, arm: &ArmConfig) -> Option<&str> {
        let endpoint = arm.retriever.as_ref()?.endpoint.as_ref();
        Some(self.peer(Some(endpoint?))?.index_digest())
    }

    /// Where an arm searches. A control that looks at the corpus reads it here, once, for all questions of `set`.
    pub fn open(&self, arm: &ArmConfig, set: &QuestionSet) -> Result<Box<dyn Retrieve + '_>, EvalError> {
        let own = arm.retriever.as_ref();
        let base = self.peer(own.and_then(|own| own.endpoint.as_ref()));
        let Some((own, control)) = own.and_then(|own| Some((own, own.control?))) else {
            return Ok(match base {
                Some(peer) => Box::new(peer.clone()),
                None => Box::new(Nowhere),
            });
        };
        let corpus = || {
            let name = &arm.name;
            let missing = || format!("arm {name:?}: retriever.control {control:?} needs retriever.corpus");
            Corpus::open(own.corpus.as_ref().ok_or_else(|| EvalError::Config(missing()))?)
        };
        Ok(Box::new(match control {
            Control::Empty => ControlRetriever::Empty,
            Control::Random => ControlRetriever::Random { corpus: Arc::new(corpus()?), seed: self.seed },
            Control::Oracle => ControlRetriever::oracle(&corpus()?, &set.questions, base.cloned())?,
            Control::Evidence => ControlRetriever::evidence(&corpus()?, set, base.cloned())?,
        }))
    }
}

/// No place at all: for arms that never search.
struct Nowhere;

impl Retrieve for Nowhere {
    fn retrieve(&self, _: &[String], _: u32, _: RetrievalMethod) -> Result<Vec<Vec<Passage>>, RolloutError> {
        let reason = "this run has none; set `retriever`, or that of the arm".to_owned();
        Err(RolloutError::Reply { service: "retriever", reason })
    }
}
