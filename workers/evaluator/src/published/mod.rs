//! The reference's published tables (arXiv 2505.14146, tables 1, 2, 3 and 6) beside a run's own figures, with the
//! reasons why the two differ.
//!
//! `paper.json` has a row a method and generator: GenAcc and EM by set. On MIRAGE's sets the first figure is the
//! judge's accuracy.

use crate::export::frame::{Frame, Kind};
use crate::summary::{ALL, Summary};
use s3_config::{ArmConfig, ArmMethod, EvaluatorConfig};
use s3_questions::sets;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// One row of the paper's tables.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// The table's number.
    pub table: u8,
    /// As arms name it.
    pub method: String,
    /// As the paper names it.
    pub label: String,
    /// Who answers.
    pub generator: String,
    /// What is searched.
    pub corpus: String,
    /// What is left out.
    #[serde(default)]
    pub ablation: Option<String>,
    /// GenAcc (on MIRAGE's sets the judge's accuracy) and EM, in points, by set.
    pub figures: BTreeMap<String, (f64, f64)>,
}

/// Every row. A test holds the file to its shape.
pub static PUBLISHED: LazyLock<Vec<Published>> =
    LazyLock::new(|| serde_json::from_str(include_str!("paper.json")).unwrap_or_default());

/// Questions of the paper's test sets.
pub const SIZES: [(&str, usize); 11] = [
    ("Nq", 3_610),
    ("TriviaQa", 11_313),
    ("PopQa", 14_267),
    ("HotpotQa", 7_405),
    ("TwoWiki", 12_576),
    ("MuSiQue", 2_417),
    ("MedQa", 1_273),
    ("MedMcqa", 4_183),
    ("PubMedQa", 500),
    ("BioAsq", 618),
    ("Mmlu", 1_089),
];

/// An arm's figure on a set, and one of the paper's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Beside {
    /// The run's arm.
    pub arm: String,
    /// The run's dataset.
    pub dataset: String,
    /// The paper's method and generator.
    pub paper: String,
    /// The paper's table.
    pub table: u8,
    /// The run's GenAcc, in points.
    pub ours: f64,
    /// The paper's.
    pub theirs: f64,
    /// The run's EM.
    pub our_em: f64,
    /// The paper's.
    pub their_em: f64,
}

/// Which public set each dataset is: as configured, else as its name says.
pub fn sets_of(config: &EvaluatorConfig) -> BTreeMap<String, String> {
    let named = config.datasets.iter().filter_map(|dataset| {
        let set = dataset.set.clone().or_else(|| sets::guessed(&dataset.name).map(|set| set.name.to_owned()))?;
        Some((dataset.name.clone(), set))
    });
    named.collect()
}

/// The paper's rows beside a run's. Only tables 1 and 2 and, for ablations, 6: table 3 repeats table 1's setting.
pub fn beside(config: &EvaluatorConfig, summary: &Summary) -> Vec<Beside> {
    let sets = sets_of(config);
    let mut found = Vec::new();
    for row in &summary.table {
        // a run of one set has no row of its own for it
        let dataset = match (row.dataset.as_str(), config.datasets.as_slice()) {
            (ALL, [only]) => &only.name,
            (dataset, _) => dataset,
        };
        let Some(set) = sets.get(dataset) else { continue };
        let Some(arm) = config.arms.iter().find(|arm| arm.name == row.arm) else { continue };
        let (Some(method), ablation) = (method(arm), ablation(arm)) else { continue };
        for paper in PUBLISHED.iter() {
            let fits = paper.method == method
                && paper.ablation == ablation
                && (paper.generator == "itself") == own_answers(arm)
                && (matches!(paper.table, 1 | 2) || ablation.is_some());
            let Some((theirs, their_em)) = paper.figures.get(set).filter(|_| fits) else { continue };
            let mut label = format!("{}, {}", paper.label, paper.generator);
            if paper.table == 2 && paper.corpus != "none" {
                label = format!("{label}, {}", paper.corpus);
            }
            found.push(Beside {
                arm: row.arm.clone(),
                dataset: dataset.to_owned(),
                paper: label,
                table: paper.table,
                ours: row.gen_acc.value * 100.0,
                theirs: *theirs,
                our_em: row.em.value * 100.0,
                their_em: *their_em,
            });
        }
    }
    found
}

/// An arm's method as the paper's rows have it; none for what the paper has not: RAG of another arm's budget, controls.
fn method(arm: &ArmConfig) -> Option<String> {
    let control = arm.retriever.as_ref().is_some_and(|retriever| retriever.control.is_some());
    if control || matches!(arm.method, ArmMethod::SameBudgetRag { .. }) {
        return None;
    }
    let method = serde_json::to_value(&arm.method).ok()?;
    method["method"].as_str().map(str::to_owned)
}

fn ablation(arm: &ArmConfig) -> Option<String> {
    let method = serde_json::to_value(&arm.method).ok()?;
    method["search"]["ablation"].as_str().filter(|ablation| *ablation != "None").map(str::to_owned)
}

/// Whether the arm's own model answers, as the paper's end-to-end rows do.
fn own_answers(arm: &ArmConfig) -> bool {
    serde_json::to_value(&arm.method).is_ok_and(|method| method["answer"] == "Own")
}

/// Why the two are not the same measurement.
pub fn reasons(config: &EvaluatorConfig, summary: &Summary) -> Vec<String> {
    let model =
        if config.generator.model.is_empty() { "the gateway's first provider" } else { &config.generator.model };
    let mut reasons = vec![
        format!(
            "Generator: the paper's answers come from Qwen2.5-7B-Instruct, Qwen2.5-14B-Instruct or Claude-3-Haiku, yours from {model}."
        ),
        "Corpus: the paper searches Wikipedia of 2018 (21 M passages of 100 words) with E5-base-v2; yours is the index of this run."
            .to_owned(),
        format!(
            "Accuracy: the paper's GenAcc is a span, else Claude-3-Haiku's word, at any length; yours is {}, of answers of at most {} words that state it.",
            summary.accuracy, config.generator.max_answer_tokens
        ),
        "Exact match: the paper's generators write sentences, which keeps their EM low; a short-answer generator's is near its GenAcc."
            .to_owned(),
        "Searches: the reference's 3 turns execute up to 4 searches, sampled at temperature 0.6; yours follow maxSearches and decoding.temperature."
            .to_owned(),
    ];
    let sets = sets_of(config);
    for (dataset, set) in &sets {
        let size = SIZES.iter().find(|(name, _)| name == set).map(|(_, size)| *size);
        let asked = summary.table.iter().filter(|row| row.dataset == *dataset || config.datasets.len() == 1);
        let asked = asked.map(|row| row.n + row.masked).max().unwrap_or(0);
        if let Some(size) = size.filter(|size| *size != asked) {
            let eligible = if config.sample.eligible { ", of those that the corpus can answer" } else { "" };
            reasons.push(format!("Questions: {asked} of {dataset}{eligible}; the paper's set has {size}."));
        }
    }
    if sets.values().any(|set| set == "TwoWiki") {
        reasons.push(
            "The paper itself gives two figures for s3 8-3-3 on 2Wiki: 52.4 in tables 1 and 3, 55.1 in table 6."
                .to_owned(),
        );
    }
    reasons
}

/// The comparison as a table.
pub fn frame(summary: &Summary) -> Frame {
    use Kind::{Real, Text, Whole};
    let mut frame = Frame::new(&[
        ("arm", Text),
        ("dataset", Text),
        ("GenAcc", Real),
        ("paper", Text),
        ("table", Whole),
        ("paper GenAcc", Real),
        ("EM", Real),
        ("paper EM", Real),
    ]);
    let tenth = |value: f64| (value * 10.0).round() / 10.0;
    for one in &summary.published {
        frame.rows.push(vec![
            one.arm.as_str().into(),
            one.dataset.as_str().into(),
            tenth(one.ours).into(),
            one.paper.as_str().into(),
            u32::from(one.table).into(),
            one.theirs.into(),
            tenth(one.our_em).into(),
            one.their_em.into(),
        ]);
    }
    frame
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
