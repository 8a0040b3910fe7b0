//! What a person asks about an index: what is in it, whether it is whole, what it finds, how it differs from another.
//! Each answer is JSON; `s3 index` shows it.

use crate::engine::{Engine, Method, Search};
use crate::error::{Result, RetrieverError};
use crate::filter::{Condition, Filter};
use crate::index::{Index, Verified, current, unverified, verify};
use s3_config::RetrieverServeConfig;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// Queries answered at once, so that progress shows.
const BATCH: usize = 256;

/// The published versions of a folder, read from their manifests; contents are not checked.
pub fn inspect(output: &Path) -> Result<Value> {
    let (serving, _) = current(output)?;
    let mut versions = Vec::new();
    for entry in std::fs::read_dir(output).map_err(RetrieverError::io("list", output))? {
        let entry = entry.map_err(RetrieverError::io("list", output))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || !entry.path().join("manifest.json").is_file() {
            continue;
        }
        versions.push(match unverified(output, &name) {
            Ok(found) => described(&name, &found, name == serving)?,
            Err(error) => json!({"digest": name, "current": name == serving, "error": error.to_string()}),
        });
    }
    versions.sort_by_key(|version| (version["current"] != true, version["digest"].to_string()));
    Ok(json!({ "versions": versions }))
}

fn described(digest: &str, found: &Verified, current: bool) -> Result<Value> {
    let internal = |error: serde_json::Error| RetrieverError::Internal(error.to_string());
    Ok(json!({
        "digest": digest,
        "current": current,
        "contentDigest": found.manifest.content_digest()?,
        "identity": serde_json::to_value(&found.identity).map_err(internal)?,
        "facts": serde_json::to_value(&found.facts).map_err(internal)?,
        "files": found.manifest.files,
    }))
}

/// Reads all of the current version: every file's sha256, every block's checksum, and, with an encoder, that passages are
/// encoded as their vectors say.
pub fn check(config: &RetrieverServeConfig) -> Result<Value> {
    let (digest, _) = current(&config.index)?;
    let found = verify(&config.index, &digest)?;
    let engine = Engine::open(config)?;
    let encoded = config.encoder.is_some() && engine.index().dense.is_some();
    let mut version = described(&digest, &found, true)?;
    version["encoderChecked"] = json!(encoded);
    Ok(version)
}

/// What `s3 index search` and `compare` ask.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Asked {
    /// The queries.
    pub queries: Vec<String>,
    /// Passages per query.
    pub top_k: u64,
    /// `Lexical`, `Dense` or `Hybrid`; none takes what the index has.
    pub method: Option<String>,
    /// Scores every vector.
    pub exact: bool,
    /// Conditions: field, values, whether they deny.
    pub filter: Vec<(String, Vec<String>, bool)>,
}

impl Asked {
    fn search(&self, queries: &[String]) -> Result<Search> {
        let method = match self.method.as_deref() {
            None => None,
            Some("Lexical") => Some(Method::Lexical),
            Some("Dense") => Some(Method::Dense),
            Some("Hybrid") => Some(Method::Hybrid),
            Some(other) => return Err(RetrieverError::Invalid(format!("method {other} is not known"))),
        };
        let condition = |(field, any_of, deny): &(String, Vec<String>, bool)| Condition {
            field: field.clone(),
            any_of: any_of.clone(),
            deny: *deny,
        };
        let filter = Filter(self.filter.iter().map(condition).collect());
        Ok(Search {
            queries: queries.to_vec(),
            top_k: self.top_k,
            method,
            exact: self.exact,
            filter,
            ..Search::default()
        })
    }
}

fn asked(engine: &Arc<Engine>, search: Search) -> Result<Vec<Arc<[crate::rank::Ranked]>>> {
    use crate::engine::SearchError;
    engine.search_blocking(search).map(|reply| reply.results).map_err(|error| match error {
        SearchError::Failed(error) => error,
        refused => RetrieverError::Invalid(refused.to_string()),
    })
}

/// The hits of every query.
pub fn search(config: &RetrieverServeConfig, queries: &Asked) -> Result<Value> {
    let engine = Engine::open(config)?;
    let mut results = Vec::new();
    for list in asked(&engine, queries.search(&queries.queries)?)? {
        let hits = list.iter().map(|hit| {
            let entry = engine.index().passages.entry(hit.position as usize)?;
            let metadata = entry.metadata;
            Ok(json!({"id": entry.id, "title": entry.title, "text": entry.text, "metadata": metadata, "score": hit.score}))
        });
        results.push(Value::Array(hits.collect::<Result<_>>()?));
    }
    Ok(json!({"index": engine.index().digest, "method": engine.method().label(), "results": results}))
}

/// Two indexes by what they find for the same queries: mean share of the first's best that the second finds too, of equal
/// first passages and of equal rankings, and the queries that differ most. Passages are told apart by their ids.
pub fn compare(
    first: &RetrieverServeConfig,
    second: &RetrieverServeConfig,
    queries: &Asked,
    mut done: impl FnMut(u64),
) -> Result<Value> {
    let engines = [Engine::open(first)?, Engine::open(second)?];
    if queries.queries.is_empty() {
        return Err(RetrieverError::Invalid("there are no queries to compare by".to_owned()));
    }
    let mut overlaps = Vec::with_capacity(queries.queries.len());
    let (mut same_first, mut same) = (0, 0);
    for batch in queries.queries.chunks(BATCH) {
        let ids = |engine: &Arc<Engine>| -> Result<Vec<Vec<String>>> {
            let found = asked(engine, queries.search(batch)?)?;
            let id = |hit: &crate::rank::Ranked| engine.index().passages.get(hit.position as usize).map(|it| it.id);
            found.iter().map(|list| list.iter().map(id).collect()).collect()
        };
        for ((a, b), query) in ids(&engines[0])?.into_iter().zip(ids(&engines[1])?).zip(batch) {
            same_first += usize::from(a.first() == b.first());
            same += usize::from(a == b);
            let other: BTreeSet<&String> = b.iter().collect();
            let shared = a.iter().filter(|id| other.contains(id)).count();
            let longest = a.len().max(b.len());
            let overlap = if longest == 0 { 1.0 } else { shared as f64 / longest as f64 };
            overlaps.push((overlap, query));
        }
        done(overlaps.len() as u64);
    }
    let n = overlaps.len() as f64;
    let mean = overlaps.iter().map(|(overlap, _)| overlap).sum::<f64>() / n;
    overlaps.sort_by(|a, b| a.0.total_cmp(&b.0));
    let worst: Vec<Value> = overlaps
        .iter()
        .take(5)
        .take_while(|(overlap, _)| *overlap < 1.0)
        .map(|(overlap, query)| json!({"query": query, "overlap": overlap}))
        .collect();
    let about = |engine: &Index| json!({"digest": engine.digest, "passages": engine.passages.len(), "identity": engine.identity});
    Ok(json!({
        "first": about(engines[0].index()),
        "second": about(engines[1].index()),
        "queries": overlaps.len(),
        "overlap": mean,
        "sameFirst": same_first as f64 / n,
        "sameRanking": same as f64 / n,
        "worst": worst,
    }))
}
