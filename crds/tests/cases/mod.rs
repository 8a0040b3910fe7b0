//! Objects that tests share: the smallest of each kind, and for each rule one that breaks it. The client-side
//! validation is held to them here, a real API server by the cluster tests.
#![allow(clippy::unwrap_used, missing_docs, dead_code)]

use s3_crds::Kind;
use serde_json::{Value, json};

pub fn job() -> Value {
    json!({
        "apiVersion": "searchagent.dev/v1alpha1", "kind": "S3TrainingJob", "metadata": {"name": "a"},
        "spec": {
            "searcher": {"model": {"uri": "pvc://data/m.gguf"}},
            "retriever": {"indexRef": {"name": "wiki"}},
            "generator": {"provider": {"builtIn": {"model": {"uri": "pvc://data/m.gguf"}}}},
            "data": {"datasets": [{"name": "nq", "uri": "pvc://data/nq.jsonl"}]},
        },
    })
}

pub fn index() -> Value {
    json!({
        "apiVersion": "searchagent.dev/v1alpha1", "kind": "RetrieverIndex", "metadata": {"name": "a"},
        "spec": {"source": {"build": {"corpus": {"uri": "file:///c.jsonl"}, "lexical": {}}}},
    })
}

pub fn run() -> Value {
    json!({
        "apiVersion": "searchagent.dev/v1alpha1", "kind": "EvalRun", "metadata": {"name": "a"},
        "spec": {
            "arms": [
                {"name": "direct", "method": "Direct"}, {"name": "rag", "method": "Rag", "topK": 3},
                {"name": "same", "method": "Rag", "budgetFrom": "s3"},
                {"name": "s3", "method": "S3", "searcher": {"jobRef": {"name": "a"}}},
            ],
            "retriever": {"indexRef": {"name": "wiki"}},
            "generator": {"provider": {"openAiCompatible": {"endpoint": "http://localhost:8000/v1", "model": "m"}}},
            "datasets": [{"name": "nq", "uri": "pvc://data/nq.jsonl"}],
        },
    })
}

pub fn minimal(kind: Kind) -> Value {
    match kind {
        Kind::RetrieverIndex => index(),
        Kind::S3TrainingJob => job(),
        Kind::EvalRun => run(),
    }
}

/// The object with `value` at `pointer`; null takes the field away.
pub fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = parent.split('/').skip(1).fold(&mut object, |at, key| match key.parse::<usize>() {
        Ok(index) => &mut at[index],
        Err(_) => &mut at[key],
    });
    match (value, key.parse::<usize>()) {
        (value, Ok(index)) => parent[index] = value,
        (Value::Null, _) => drop(parent.as_object_mut().unwrap().remove(key)),
        (value, _) => parent[key] = value,
    }
    object
}

/// 1 and 1.0 are one number.
pub fn sorted_numbers(value: &Value) -> Value {
    match value {
        Value::Number(n) => json!(n.as_f64()),
        Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), sorted_numbers(v))).collect(),
        Value::Array(list) => list.iter().map(sorted_numbers).collect(),
        other => other.clone(),
    }
}

/// For each rule: an object that breaks it, and the start of what is said.
pub fn broken() -> Vec<(Value, &'static str)> {
    [broken_indices(), broken_jobs(), broken_engines(), broken_runs()].concat()
}

fn broken_indices() -> Vec<(Value, &'static str)> {
    let index = |p: &str, v: Value| with(index(), p, v);
    let web = |p: &str, v: Value| {
        with(with(self::index(), "/spec/source", json!({"webSearch": {"endpoint": "https://s.example/search"}})), p, v)
    };
    let dense = |kind: Value| {
        index("/spec/source/build/dense", json!({"encoder": {"model": {"uri": "file:///e"}}, "index": kind}))
    };
    vec![
        (index("/spec/source", json!({})), "set exactly one of `build`, `import` and `webSearch`"),
        (index("/spec/source/build/lexical", Value::Null), "set `lexical: {}` for BM25"),
        (index("/spec/source/webSearch", json!({})), "set exactly one of `build`, `import` and `webSearch`"),
        (web("/spec/source/webSearch/parameters", json!({"api_key": "k"})), "`parameters` holds"),
        (web("/spec/serving", json!({"method": "Lexical"})), "`serving.method` names a ranking"),
        (web("/spec/serving", json!({"replicas": 2})), "`source.webSearch` has no passages"),
        (web("/spec/serving", json!({"autoscaling": {}})), "`source.webSearch` has no passages"),
        (web("/spec/reranker", json!({"model": {"uri": "file:///r"}})), "`source.webSearch` has no passages"),
        (
            web("/spec/audit", json!({"datasets": [{"name": "a", "uri": "file:///a"}]})),
            "`source.webSearch` has no passages",
        ),
        (index("/spec/source/build/workers", json!(2)), "several `workers` share the embedding"),
        (
            index(
                "/spec/source/build",
                json!({
                    "corpus": {"uri": "file:///c.jsonl"}, "workers": 3,
                    "dense": {
                        "encoder": {"model": {"uri": "file:///e"}},
                        "vectors": {"uri": "file:///v", "sha256": "0".repeat(64)},
                    },
                }),
            ),
            "several `workers` share the embedding",
        ),
        (index("/spec/serving", json!({"method": "Dense"})), "`serving.method` names a ranking"),
        (index("/spec/serving", json!({"method": "Hybrid"})), "`serving.method` names a ranking"),
        (
            with(index("/spec/serving", json!({"method": "Hybrid"})), "/spec/fusion", json!({"kind": "None"})),
            "`serving.method: Hybrid` needs",
        ),
        (index("/spec/fusion", json!({"lexicalWeight": 0, "denseWeight": 0})), "give `lexicalWeight` or"),
        (
            index(
                "/spec/source/build/dense",
                json!({"encoder": {"model": {"uri": "file:///e"}}, "index": {"kind": "Factory"}}),
            ),
            "`factory` is set exactly when",
        ),
        (dense(json!({"kind": "Hnsw", "lists": 9})), "`lists` belongs to"),
        (dense(json!({"kind": "IvfFlat", "codeBytes": 9})), "`codeBytes` belongs to"),
        (dense(json!({"efConstruction": 9})), "`neighbors` and `efConstruction` belong to"),
        (dense(json!({"kind": "Hnsw", "probes": 9})), "`probes` belongs to"),
        (dense(json!({"kind": "IvfPq", "efSearch": 9})), "`efSearch` belongs to"),
        (index("/spec/serving", json!({"topK": 200})), "`topK` is above `topKLimit`"),
        (index("/spec/serving", json!({"autoscaling": {"minReplicas": 9}})), "`minReplicas` is above"),
    ]
}

fn broken_jobs() -> Vec<(Value, &'static str)> {
    let job = |p: &str, v: Value| with(job(), p, v);
    let named = |n: usize| json!({"name": "a".repeat(n)});
    vec![
        (job("/metadata", named(41)), "metadata.name is longer"),
        (job("/spec/data/datasets/0/uri", Value::Null), "a Custom dataset needs `uri`"),
        (
            job("/spec/checkpoint", json!({"storage": {"claimName": "a", "size": "1Gi"}})),
            "`size` and `storageClassName` describe",
        ),
        (job("/spec/pod", json!({"env": [{"name": "A"}]})), "set exactly one of `value` and `secretKeyRef`"),
        (
            job("/spec/generator/provider/openAiCompatible", json!({"endpoint": "http://x/v1", "model": "m"})),
            "set exactly one provider",
        ),
        (job("/spec/generator/provider", json!({})), "set exactly one provider"),
        (
            job(
                "/spec/generator/fallbacks",
                json!([{"provider": {"openAiCompatible": {"endpoint": "http://x/v1", "model": "m"}}}]),
            ),
            "`generator.fallbacks` answer by what is up",
        ),
        (job("/spec/rollout", json!({"samples": 1, "questions": 4})), "`algorithm.estimator` compares samples"),
        (
            with(
                job("/spec/rollout", json!({"samples": 1, "questions": 4})),
                "/spec/algorithm",
                json!({"estimator": "Reinforce", "filterZeroVariance": true}),
            ),
            "`algorithm.filterZeroVariance` compares samples",
        ),
        (
            with(
                with(
                    job("/spec/rollout", json!({"samples": 1, "questions": 4})),
                    "/spec/algorithm",
                    json!({"estimator": "Reinforce"}),
                ),
                "/spec/data/filters",
                json!({"difficultyBuffer": {}}),
            ),
            "`data.filters.difficultyBuffer` compares samples",
        ),
        (job("/spec/algorithm", json!({"dualClip": 0.5})), "`dualClip` must be above 1"),
        (job("/spec/search", json!({"maxSelected": 9})), "`search.maxSelected` is above `retriever.topK`"),
        (job("/spec/search", json!({"topK": 2})), "`maxSelected` is above `topK`"),
        (job("/spec/search", json!({"turnTokens": 9000})), "`turnTokens` leaves no room"),
        (job("/spec/searcher/dtype", json!("Bf16")), "`determinism: Bitwise` is guaranteed"),
        (job("/spec/generator", Value::Null), "`generator` answers from what the searcher found"),
        (job("/spec/compatibility", json!("SearchR1")), "`generator` answers from what the searcher found"),
        (
            with(
                with(job("/spec/generator", Value::Null), "/spec/compatibility", json!("SearchR1")),
                "/spec/reward",
                json!({"kind": "ReferenceCode"}),
            ),
            "`compatibility: SearchR1` rewards the exact match",
        ),
        (job("/spec/reward", json!({"baseline": {"method": "Sft"}})), "a baseline has no model of its own"),
        (job("/spec/reward", json!({"formatScore": 0.1})), "`reward.formatScore` is what"),
        (job("/spec/steps", json!(0)), "`steps` is 0 and there is no `warmStart`"),
        (job("/spec/searcher/adapter", json!({"kind": "Full", "init": {"uri": "file:///a"}})), "`init` is an adapter"),
        (job("/spec/rollout", json!({"miniBatch": 7})), "`miniBatch` must divide"),
        (job("/spec/rollout", json!({"microBatch": 7})), "`microBatch` must divide"),
        (job("/spec/data/part", json!("2/2")), "the part's number starts at 0"),
        (job("/spec/checkpoint", json!({"resumeFrom": {}})), "set exactly one of `jobRef` and `source`"),
        (
            with(
                job("/spec/evaluation", json!({"runs": {"every": 1, "templateRef": {"name": "t"}}})),
                "/spec/steps",
                json!(101),
            ),
            "`evaluation.runs` would make more than 100",
        ),
        (job("/spec/stop", json!({})), "set `targetGbr`, `patience` or both"),
        (job("/spec/stop", json!({"patience": 3})), "`stop` looks at the gain on held-out questions"),
        (job("/spec/guards", json!({"entropy": {"action": "Pause"}})), "set `min`, `max` or both"),
        (
            with(job("/spec/rollout", json!({"staleness": 1})), "/spec/parallelism", json!({"replicas": 2})),
            "`rollout.staleness` plays rounds ahead",
        ),
    ]
}

fn broken_engines() -> Vec<(Value, &'static str)> {
    let engine = || json!({"engine": {"endpoints": ["http://vllm:8000/v1"]}});
    let job = |p: &str, v: Value| with(job(), p, v);
    vec![
        (
            with(job("/spec/rollout", engine()), "/spec/determinism", json!("Bitwise")),
            "`rollout.engine` computes by other arithmetic",
        ),
        (
            with(
                with(job("/spec/rollout", engine()), "/spec/determinism", json!("Relaxed")),
                "/spec/searcher/adapter",
                json!({"kind": "Full"}),
            ),
            "`rollout.engine` is handed adapters",
        ),
        (
            with(
                with(job("/spec/rollout", engine()), "/spec/determinism", json!("Relaxed")),
                "/spec/rollout/temperature",
                json!(0.5),
            ),
            "`engine` reports log-probabilities at temperature 1",
        ),
    ]
}

fn broken_runs() -> Vec<(Value, &'static str)> {
    let run = |p: &str, v: Value| with(run(), p, v);
    vec![
        (run("/spec/retriever", Value::Null), "an arm that searches has no index"),
        (run("/spec/arms/2/budgetFrom", json!("same")), "`budgetFrom` must name another arm"),
        (run("/spec/statistics", json!({"baseline": "x"})), "`statistics.baseline` names no arm"),
        (run("/spec/statistics", json!({"pairedAgainst": ["rag", "x"]})), "`statistics.pairedAgainst` names no arm"),
        (
            with(
                with(run("/spec/sample", json!({"eligible": true})), "/spec/retriever", Value::Null),
                "/spec/arms",
                json!([{"name": "d", "method": "Direct"}]),
            ),
            "`sample.eligible` asks",
        ),
        (run("/spec/arms/3/searcher", Value::Null), "`searcher` belongs to arms"),
        (run("/spec/arms/0/searcher", json!({"jobRef": {"name": "a"}})), "`searcher` belongs to arms"),
        (run("/spec/arms/0/ablation", json!("NoInitial")), "`search`, `compatibility` and `ablation` belong"),
        (run("/spec/arms/3/topK", json!(3)), "`topK` belongs to Rag"),
        (run("/spec/arms/1/topK", Value::Null), "method Rag needs exactly one"),
        (run("/spec/arms/0/budgetFrom", json!("s3")), "`budgetFrom` belongs to method Rag"),
        (run("/spec/arms/1/budgetBy", json!("Tokens")), "`budgetBy` says how"),
        (run("/spec/arms/0/method", json!("Sft")), "methods Sft and R1 are models"),
        (run("/spec/arms/3/answer", json!("Own")), "`answer` is a choice of methods"),
        (
            run(
                "/spec/arms/3",
                json!({"name": "s3", "method": "SearchR1", "ablation": "NoBoth", "compatibility": "SearchR1"}),
            ),
            "`ablation` belongs to method S3",
        ),
        (run("/spec/arms/3/compatibility", json!("SearchR1")), "`compatibility` S3 belongs to method S3"),
        (
            run("/spec/arms/1/retriever", json!({"indexRef": {"name": "a"}, "control": "Oracle"})),
            "set exactly one of `indexRef` and `control`",
        ),
        (run("/spec/arms/3/searcher/step", json!(3)), "`step` is set exactly when"),
        (run("/spec/arms/3/searcher/sha256", json!("a".repeat(64))), "`sha256` pins the adapter"),
        (run("/spec/arms/3/searcher/model", json!({"uri": "file:///m"})), "set exactly one of `jobRef` and `model`"),
        (run("/spec/arms/3/searcher/adapter", json!({"uri": "file:///m"})), "`adapter` lies over `model`"),
    ]
}

/// For each rule over an update: the old object, the new one, and the start of what is said.
pub fn updates() -> Vec<(Value, Value, &'static str)> {
    vec![
        (
            job(),
            with(job(), "/spec/searcher/model/uri", json!("pvc://data/other.gguf")),
            "`searcher.model` and `searcher.adapter` are immutable",
        ),
        (job(), with(job(), "/spec/retriever/topK", json!(9)), "`retriever` is immutable"),
        (
            job(),
            with(job(), "/spec/generator/answer", json!({"maxTokens": 9})),
            "the generator's model and `answer` are immutable",
        ),
        (job(), with(job(), "/spec/seed", json!(9)), "`seed` is immutable"),
        (job(), with(job(), "/spec/steps", json!(9)), "`steps` may grow but not shrink"),
        (run(), with(run(), "/spec/sample", json!({"size": 9})), "`sample` is immutable"),
    ]
}
