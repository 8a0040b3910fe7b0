//! One round: the missing queries of everyone who waits, encoded, ranked, fused and reranked together.

use crate::dense::DenseIndex;
use crate::engine::{Done, Engine};
use crate::error::{Result, RetrieverError};
use crate::filter::{Allowed, Filter};
use crate::rank::{Ranked, fuse};
use crate::request::{Method, Timing, Usage};
use crate::rerank::Reranker;
use rayon::prelude::*;
use s3_config::FusionConfig;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// How queries are to be answered, checked.
pub struct Plan {
    /// Which ranking.
    pub method: Method,
    /// Passages per query.
    pub k: usize,
    /// Scores every vector.
    pub exact: bool,
    /// Which passages may be found.
    pub filter: Filter,
    /// Weights and depth of hybrid search.
    pub fusion: FusionConfig,
    /// Whether the best are reordered.
    pub rerank: bool,
    /// What tells it from other plans in the cache; empty for the usual one.
    pub key: Arc<str>,
}

/// Queries of one request that have to be computed.
pub struct Job {
    /// The queries, each once.
    pub queries: Vec<String>,
    /// How.
    pub plan: Arc<Plan>,
    /// When it came.
    pub since: Instant,
    /// Who waits.
    pub reply: oneshot::Sender<Result<Done, String>>,
    /// Where it waits, when it is a task.
    pub runtime: Option<Handle>,
}

/// Queries that share a reading: where they stand, and their vectors.
type Group = (Vec<usize>, Vec<Vec<f32>>);

/// A job's end, not yet told.
type Told = (oneshot::Sender<Result<Done, String>>, Result<Done, String>);

/// Tells everyone of a round. A task does it where the callers are tasks: from there a wake-up is a note in a list, while
/// from this thread each is a system call.
fn tell(runtime: Option<Handle>, told: Vec<Told>) {
    let all = move || {
        for (reply, done) in told {
            // whoever asked may have gone meanwhile
            let _ = reply.send(done);
        }
    };
    match runtime {
        Some(runtime) => drop(runtime.spawn(async move { all() })),
        None => all(),
    }
}

/// A job with what its filter means.
struct Ready {
    job: Job,
    allowed: Allowed,
    /// Depth of the ranking before it is reordered and cut.
    depth: usize,
    /// Depth of each leg.
    leg: usize,
}

impl Engine {
    /// Computes and replies. Jobs that nobody waits for any more are left out.
    pub(crate) fn round(&self, jobs: Vec<Job>) {
        let started = Instant::now();
        let mut ready = Vec::with_capacity(jobs.len());
        let mut told = Vec::with_capacity(jobs.len());
        let runtime = jobs.iter().find_map(|job| job.runtime.clone());
        for job in jobs {
            if job.reply.is_closed() {
                continue;
            }
            match job.plan.filter.resolve(&self.index.passages) {
                Ok(allowed) => {
                    let rerank = self.reranker.as_ref().filter(|_| job.plan.rerank);
                    let depth = job.plan.k.max(rerank.map_or(0, Reranker::depth));
                    let leg = match job.plan.method {
                        Method::Hybrid => depth.max(job.plan.fusion.depth),
                        _ => depth,
                    };
                    ready.push(Ready { job, allowed, depth, leg });
                }
                Err(error) => told.push(failed(job, &error)),
            }
        }
        let computed = self.compute(&ready);
        let round = ready.iter().map(|one| one.job.queries.len()).sum();
        let scanned = match &self.index.dense {
            Some(dense) if ready.iter().any(|one| one.job.plan.method != Method::Lexical) => {
                (dense.scanned_bytes() * dense.len() as f64) as u64
            }
            _ => 0,
        };
        match computed {
            Ok((lists, timing)) => {
                let mut lists = lists.into_iter();
                for Ready { job, depth, .. } in ready {
                    let reranked = if job.plan.rerank { depth * job.queries.len() } else { 0 };
                    let lists = job.queries.into_iter().zip(lists.by_ref().map(Arc::from)).collect();
                    let timing = Timing { queue: started.saturating_duration_since(job.since), ..timing };
                    let usage = Usage { round, scanned_bytes: scanned, reranked, ..Usage::default() };
                    told.push((job.reply, Ok(Done { lists, timing, usage })));
                }
            }
            Err(error) => told.extend(ready.into_iter().map(|one| failed(one.job, &error))),
        }
        tell(runtime, told);
    }

    /// The rankings of all queries of all jobs, in order.
    fn compute(&self, jobs: &[Ready]) -> Result<(Vec<Vec<Ranked>>, Timing)> {
        let started = Instant::now();
        let vectors = self.vectors(jobs)?;
        let encode = started.elapsed();
        let dense = self.dense(jobs, vectors)?;
        let lexical = self.lexical(jobs);
        let queries = jobs.iter().flat_map(|one| one.job.queries.iter().map(move |query| (one, query)));
        let lists: Vec<Vec<Ranked>> = queries
            .clone()
            .zip(dense.into_iter().zip(lexical))
            .map(|((Ready { job, depth, .. }, _), (dense, lexical))| match job.plan.method {
                Method::Lexical => lexical,
                Method::Dense => dense,
                Method::Hybrid => fuse(&lexical, &dense, &job.plan.fusion, *depth),
            })
            .collect();
        let search = started.elapsed().saturating_sub(encode);
        let mut timing = Timing { encode, search, ..Timing::default() };
        let Some(reranker) = self.reranker.as_ref().filter(|_| jobs.iter().any(|one| one.job.plan.rerank)) else {
            return Ok((lists, timing));
        };
        let reordered = queries
            .zip(lists)
            .map(|((one, query), list)| {
                if !one.job.plan.rerank {
                    return Ok(list);
                }
                let mut list = reranker.reorder(query, &list, &self.index.passages)?;
                list.truncate(one.job.plan.k);
                Ok(list)
            })
            .collect::<Result<Vec<_>>>()?;
        timing.rerank = started.elapsed().saturating_sub(encode + search);
        Ok((reordered, timing))
    }

    /// Vectors of the queries that need one, in order; none of the others.
    fn vectors(&self, jobs: &[Ready]) -> Result<Vec<Option<Vec<f32>>>> {
        let wants = |one: &Ready| one.job.plan.method != Method::Lexical;
        let count = jobs.iter().map(|one| one.job.queries.len()).sum();
        let (Some(encoder), Some(identity)) = (&self.encoder, &self.index.identity.dense) else {
            return Ok(vec![None; count]);
        };
        let texts: Vec<String> = jobs
            .iter()
            .filter(|one| wants(one))
            .flat_map(|one| one.job.queries.iter().map(|query| format!("{}{query}", identity.query_prefix)))
            .collect();
        let found = if texts.is_empty() { Vec::new() } else { encoder.encode(&texts)? };
        let dimensions = self.index.dense.as_ref().map_or(0, DenseIndex::dimensions);
        if found.len() != texts.len() || found.iter().any(|vector| vector.len() != dimensions) {
            return Err(RetrieverError::Internal("the encoder's vectors are not of the index's shape".to_owned()));
        }
        let mut found = found.into_iter();
        let each = jobs.iter().flat_map(|one| one.job.queries.iter().map(move |_| wants(one)));
        Ok(each.map(|wanted| if wanted { found.next() } else { None }).collect())
    }

    /// Dense rankings, in the queries' order. Those of one depth share a reading of the index, since the depth decides how
    /// many candidates are scored.
    fn dense(&self, jobs: &[Ready], vectors: Vec<Option<Vec<f32>>>) -> Result<Vec<Vec<Ranked>>> {
        let mut results: Vec<Vec<Ranked>> = vec![Vec::new(); vectors.len()];
        let Some(index) = &self.index.dense else { return Ok(results) };
        let owners: Vec<&Ready> = jobs.iter().flat_map(|one| one.job.queries.iter().map(move |_| one)).collect();
        let mut groups: BTreeMap<(usize, bool), Group> = BTreeMap::new();
        for (at, (vector, one)) in vectors.into_iter().zip(&owners).enumerate() {
            let Some(vector) = vector else { continue };
            if let Allowed::Only(positions) = &one.allowed {
                results[at] = index.search_among(&vector, one.leg, positions);
                continue;
            }
            let group = groups.entry((one.allowed.reach(one.leg), one.job.plan.exact)).or_default();
            group.0.push(at);
            group.1.push(vector);
        }
        for ((reach, exact), (places, queries)) in groups {
            for (at, list) in places.into_iter().zip(index.search(&queries, reach, exact)?) {
                results[at] = owners[at].allowed.keep(list, owners[at].leg);
            }
        }
        Ok(results)
    }

    fn lexical(&self, jobs: &[Ready]) -> Vec<Vec<Ranked>> {
        let asked: Vec<(&Ready, &String)> =
            jobs.iter().flat_map(|one| one.job.queries.iter().map(move |query| (one, query))).collect();
        let one = |(one, query): &(&Ready, &String)| match &self.index.lexical {
            Some(index) if one.job.plan.method != Method::Dense => match &one.allowed {
                Allowed::Only(positions) => index.search_among(query, one.leg, positions),
                allowed => allowed.keep(index.search(query, allowed.reach(one.leg)), one.leg),
            },
            _ => Vec::new(),
        };
        asked.par_iter().map(one).collect()
    }
}

fn failed(job: Job, error: &RetrieverError) -> Told {
    tracing::error!(%error, "search failed");
    (job.reply, Err(error.to_string()))
}

impl Timing {
    /// Its parts by name.
    pub fn parts(&self) -> [(&'static str, Duration); 4] {
        [("queue", self.queue), ("encode", self.encode), ("search", self.search), ("rerank", self.rerank)]
    }
}
