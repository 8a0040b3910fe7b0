//! What a status takes from the bounded summaries that workers leave.

use s3_crds::{
    Answerable, ArmResult, BestArm, Estimate, EvalRunStatus, Quantity, RetrieverIndexStatus, S3TrainingJobStatus,
};
use serde::Deserialize;
use serde_json::Value;

/// Rows that a status has room for.
const ROWS: usize = 200;

/// From an index build.
pub fn fill_index(status: &mut RetrieverIndexStatus, digest: &str, summary: &Value) {
    let number = |name: &str| summary.get(name).and_then(Value::as_u64);
    status.digest = Some(digest.to_owned());
    status.passages = number("passages");
    status.dimensions = number("dimensions").and_then(|dimensions| u32::try_from(dimensions).ok());
    status.content_digest = summary.get("contentDigest").and_then(Value::as_str).map(str::to_owned);
    status.size = number("bytes").map(|bytes| Quantity(bytes.to_string()));
    // Every index that is built searches all vectors.
    status.recall = Some(1.0);
    let sets = summary.get("answerable").and_then(Value::as_object);
    status.answerable = sets
        .into_iter()
        .flatten()
        .filter_map(|(dataset, found)| {
            Some(Answerable {
                dataset: dataset.clone(),
                questions: found.get("questions")?.as_u64()?,
                answerable: found.get("answerable")?.as_u64()?,
                fraction: found.get("fraction")?.as_f64()?,
            })
        })
        .collect();
}

/// From a training: the held-out figures where there are any, else the last step's.
pub fn fill_job(status: &mut S3TrainingJobStatus, summary: &Value) {
    let figure = |name: &str| {
        let of = |part: &str| summary.pointer(&format!("/{part}/{name}")).and_then(Value::as_f64);
        of("probeLast").or_else(|| of("last"))
    };
    let steps = summary.get("steps").and_then(Value::as_u64).and_then(|steps| u32::try_from(steps).ok());
    status.step = steps.or(status.step);
    status.gbr = figure("gain").or(status.gbr);
    status.gen_acc = figure("accuracy").or(status.gen_acc);
    status.searches_per_question = figure("searches").or(status.searches_per_question);
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Summary {
    table: Vec<Row>,
    report: Option<String>,
    questions_digest: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    arm: String,
    dataset: String,
    n: u64,
    gen_acc: Estimate,
    em: Estimate,
    f1: Estimate,
    #[serde(default)]
    gbr: Option<Estimate>,
    #[serde(default)]
    searches: f64,
    #[serde(default)]
    passages: f64,
}

/// From an evaluation. A summary that was left out (too long for a termination message) leaves the rows empty.
pub fn fill_run(status: &mut EvalRunStatus, digest: &str, summary: &Value) {
    status.digest = Some(digest.to_owned());
    let Ok(summary) = serde_json::from_value::<Summary>(summary.clone()) else { return };
    status.questions_digest = summary.questions_digest;
    status.report = summary.report;
    let single = summary.table.len() == 1;
    status.best = summary
        .table
        .iter()
        .filter(|row| row.dataset == "all" || single)
        .max_by(|a, b| a.gen_acc.value.total_cmp(&b.gen_acc.value))
        .map(|row| BestArm {
            arm: row.arm.clone(),
            gen_acc: row.gen_acc.value,
            gbr: row.gbr.as_ref().map(|gbr| gbr.value),
        });
    status.results = summary.table.into_iter().take(ROWS).map(ArmResult::from).collect();
}

impl From<Row> for ArmResult {
    fn from(row: Row) -> Self {
        Self {
            arm: row.arm,
            dataset: row.dataset,
            questions: row.n,
            failed: 0,
            gen_acc: Some(row.gen_acc),
            exact_match: Some(row.em),
            f1: Some(row.f1),
            gbr: row.gbr,
            searches: Some(row.searches),
            passages: Some(row.passages),
        }
    }
}
