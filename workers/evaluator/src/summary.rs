//! From per-question results to the table of arms and the paired tests.

use crate::arms;
use crate::measure::{Flags, Measures, measure};
use crate::published::{Beside, beside, reasons};
use crate::results::{CallSpreads, Facts, ResultRow, Results};
use crate::statistics::percentiles::{Spread, spread};
use crate::statistics::{Interval, bootstrap, correction, detectable, mcnemar, wilson};
use s3_artifacts::{ArtifactError, digest_json};
use s3_config::{
    ArmConfig, ArmMethod, BudgetUnit, Correction, EvaluatorConfig, GeneratorConfig, METRICS, Metric, Prices,
    StatisticsConfig,
};
use s3_rollout::Usage;
use s3_search::score::Verdict;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The row of all datasets together.
pub const ALL: &str = "all";

/// Bounded summary of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Summary {
    /// What the accuracy column is: `GenAcc (span)`, or with a judge.
    pub accuracy: String,
    /// Confidence level of all intervals.
    pub confidence: f64,
    /// The arm that gains are measured against.
    pub baseline: Option<String>,
    /// Arms in the configured order; per arm all datasets together, then each where there are several.
    pub table: Vec<TableRow>,
    /// Paired tests over all datasets together.
    pub pairs: Vec<Pair>,
    /// The same within each dataset, where there are several: a family of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_dataset: Vec<Pair>,
    /// What each family is corrected by.
    #[serde(default)]
    pub correction: Correction,
    /// Columns of the tables.
    #[serde(default = "all_metrics")]
    pub metrics: Vec<Metric>,
    /// The reference's published figures beside this run's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<Beside>,
    /// Why the two differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published_reasons: Vec<String>,
    /// What a reader must know.
    pub notes: Vec<String>,
    /// The report page.
    #[serde(default)]
    pub report: Option<String>,
}

fn all_metrics() -> Vec<Metric> {
    METRICS.to_vec()
}

/// One arm on one dataset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TableRow {
    /// Arm.
    pub arm: String,
    /// Dataset, or [`ALL`].
    pub dataset: String,
    /// Questions with a verdict.
    pub n: usize,
    /// Questions without one: left out of every figure.
    pub masked: usize,
    /// Generation accuracy, Wilson interval.
    pub gen_acc: Interval,
    /// Exact match, Wilson interval.
    pub em: Interval,
    /// Token F1, `BCa` bootstrap interval.
    pub f1: Interval,
    /// Gain beyond the baseline arm, paired `BCa` bootstrap interval.
    pub gbr: Option<Interval>,
    /// Searches per question.
    pub searches: f64,
    /// Passages that the generator read, per question.
    pub passages: f64,
    /// Tokens that the searcher wrote, per question.
    pub tokens: f64,
    /// A gold answer's span stands in the answer, Wilson interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span: Option<Interval>,
    /// The judge says yes, Wilson interval; none without a judge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge: Option<Interval>,
    /// Evidence recall, `BCa` bootstrap interval; see [`Measures::evidence`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Interval>,
    /// Words that the generator was given to read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub words: Option<Spread>,
    /// Seconds per question, of the row of all datasets; like `seconds` in no digest and no file of the artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Spread>,
    /// Seconds per call to retriever, generator and judge, of the row of all datasets; as above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls: Option<CallSpreads>,
    /// Tokens of the generator, of the row of all datasets; as above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// What these tokens cost, where prices are configured; as above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
    /// Wall-clock seconds of the arm, shared evenly over its questions; in no digest and no file of the artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

/// Two arms on the questions that both have a verdict for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pair {
    /// Dataset, or [`ALL`].
    #[serde(default = "all_datasets", skip_serializing_if = "is_all")]
    pub dataset: String,
    /// The arm.
    pub arm: String,
    /// The one it is compared with.
    pub against: String,
    /// Questions.
    pub n: usize,
    /// Only `arm` is right.
    pub wins: usize,
    /// Only `against` is right.
    pub losses: usize,
    /// Difference in accuracy, paired `BCa` bootstrap interval.
    pub difference: Interval,
    /// Exact `McNemar` test, two-sided.
    pub p: f64,
    /// Corrected over all pairs of its family.
    #[serde(alias = "pHolm")]
    pub p_corrected: f64,
}

fn all_datasets() -> String {
    ALL.to_owned()
}

fn is_all(dataset: &str) -> bool {
    dataset == ALL
}

impl Summary {
    /// Without what differs between two equal runs.
    #[must_use]
    pub fn timeless(&self) -> Self {
        let mut summary = self.clone();
        summary.report = None;
        for row in &mut summary.table {
            (row.seconds, row.latency, row.calls, row.usage, row.cost) = (None, None, None, None, None);
        }
        summary
    }

    /// With what differs between two equal runs again; costs need the prices, see [`Summary::with_prices`].
    #[must_use]
    pub fn with_facts(mut self, facts: &Facts) -> Self {
        let mut questions: BTreeMap<String, usize> = BTreeMap::new();
        for row in &self.table {
            let most = questions.entry(row.arm.clone()).or_default();
            *most = (*most).max(row.n + row.masked);
        }
        for row in &mut self.table {
            let share = (row.n + row.masked) as f64 / questions[&row.arm].max(1) as f64;
            row.seconds = facts.seconds.get(&row.arm).map(|all| all * share);
            if row.dataset == ALL {
                row.latency = facts.latency.get(&row.arm).copied();
                row.calls = facts.calls.get(&row.arm).copied();
                row.usage = facts.usage.get(&row.arm).copied();
            }
        }
        self
    }

    /// With what the tokens cost.
    #[must_use]
    pub fn with_prices(mut self, prices: Option<Prices>) -> Self {
        let Some(prices) = prices else { return self };
        let million = |tokens: u64, price: f64| tokens as f64 * price / 1e6;
        for row in &mut self.table {
            let cost =
                |used: Usage| million(used.prompt_tokens, prices.prompt) + million(used.answer_tokens, prices.answer);
            row.cost = row.usage.map(cost);
        }
        self
    }

    /// Whether a column is wanted.
    pub fn shows(&self, metric: Metric) -> bool {
        self.metrics.contains(&metric)
    }
}

/// Name of the accuracy column.
pub fn accuracy_name(generator: &GeneratorConfig) -> String {
    match &generator.judge {
        None => "GenAcc (span)".into(),
        Some(judge) => format!("GenAcc (span + judge {judge})"),
    }
}

/// Makes the summary.
pub fn summarise(config: &EvaluatorConfig, results: &Results) -> Result<Summary, ArtifactError> {
    let statistics = Figures { seed: config.seed, config: &config.statistics };
    let datasets: BTreeSet<&str> = results.rows.iter().map(|row| row.dataset.as_str()).collect();
    let closed_book =
        config.arms.iter().filter(|arm| matches!(arm.method, ArmMethod::Direct {} | ArmMethod::ChainOfThought(_)));
    let closed_book: BTreeSet<String> = closed_book.map(|arm| arm.name.clone()).collect();
    let (measures, flags) = measure(results, &closed_book);
    let mut table = Vec::new();
    for arm in &config.arms {
        let mut rows: Vec<Measured> =
            results.rows.iter().zip(&measures).filter(|(row, _)| row.arm == arm.name).collect();
        // resamples draw places: one order, so that GBR and the paired difference are the same figure
        rows.sort_by_key(|(row, _)| row.place);
        table.push(statistics.row(&arm.name, ALL, &rows)?);
        if datasets.len() > 1 {
            for dataset in &datasets {
                let part: Vec<Measured> = rows.iter().copied().filter(|(row, _)| row.dataset == *dataset).collect();
                table.push(statistics.row(&arm.name, dataset, &part)?);
            }
        }
    }
    let pairs = statistics.pairs(&config.arms, &results.rows, &[ALL])?;
    let parts: Vec<&str> = if datasets.len() > 1 { datasets.iter().copied().collect() } else { Vec::new() };
    let by_dataset = statistics.pairs(&config.arms, &results.rows, &parts)?;
    let mut notes = notes(config, results, &table, &pairs);
    notes.extend(flagged(&flags));
    let mut summary = Summary {
        accuracy: accuracy_name(&config.generator),
        confidence: config.statistics.confidence,
        baseline: config.statistics.baseline.clone(),
        table,
        pairs,
        by_dataset,
        correction: config.statistics.correction,
        metrics: config.metrics.clone(),
        published: Vec::new(),
        published_reasons: Vec::new(),
        notes,
        report: config.report.as_ref().map(|report| report.path.to_string_lossy().into_owned()),
    };
    summary.published = beside(config, &summary);
    if !summary.published.is_empty() {
        summary.published_reasons = reasons(config, &summary);
    }
    Ok(summary.with_facts(&results.facts).with_prices(config.prices))
}

type Measured<'a> = (&'a ResultRow, &'a Measures);

/// What a reader must know of the questions themselves.
fn flagged(flags: &[Flags]) -> Vec<String> {
    let mut notes = Vec::new();
    let known = flags.iter().filter(|flag| flag.closed_book.is_some()).count();
    let closed = flags.iter().filter(|flag| flag.closed_book == Some(true)).count();
    if known > 0 && closed > 0 {
        notes.push(format!("{closed} of {known} questions are answered rightly without any passage (closed book)."));
    }
    let unseen = flags.iter().filter(|flag| flag.unseen).count();
    if unseen > 0 {
        notes.push(format!(
            "For {unseen} of {} questions no passage that any arm saw holds a gold answer.",
            flags.len()
        ));
    }
    notes
}

struct Figures<'a> {
    seed: u64,
    config: &'a StatisticsConfig,
}

impl Figures<'_> {
    fn row(&self, arm: &str, dataset: &str, rows: &[Measured]) -> Result<TableRow, ArtifactError> {
        let known: Vec<Measured> = rows.iter().copied().filter(|(row, _)| row.verdict.value().is_some()).collect();
        let n = known.len();
        let wilson = |right: usize, n: usize| wilson::interval(right, n, self.config.confidence);
        let share = |right: &dyn Fn(&ResultRow) -> bool| wilson(known.iter().filter(|(row, _)| right(row)).count(), n);
        let f1: Vec<f64> = known.iter().filter_map(|(row, _)| row.f1).collect();
        let f1 = self.bootstrap(&f1, &["f1", arm, dataset])?;
        let gains: Vec<f64> = rows.iter().filter_map(|(row, _)| row.gain).collect();
        let baseline = self.config.baseline.as_deref().unwrap_or_default();
        let name = ["difference", arm, baseline, dataset];
        let gbr = if gains.is_empty() { None } else { Some(self.bootstrap(&gains, &name)?) };
        let mean = |of: &dyn Fn(&ResultRow) -> f64| {
            rows.iter().map(|(row, _)| of(row)).sum::<f64>() / rows.len().max(1) as f64
        };
        let spans: Vec<bool> = known.iter().filter_map(|(_, one)| one.span).collect();
        let judged: Vec<bool> = known.iter().filter_map(|(_, one)| one.judge).collect();
        let yes = |of: &[bool]| of.iter().filter(|yes| **yes).count();
        let evidence: Vec<f64> = known.iter().map(|(_, one)| one.evidence).collect();
        let evidence = self.bootstrap(&evidence, &["evidence", arm, dataset])?;
        let words: Vec<f64> = rows.iter().map(|(_, one)| one.words as f64).collect();
        Ok(TableRow {
            arm: arm.to_owned(),
            dataset: dataset.to_owned(),
            n,
            masked: rows.len() - n,
            gen_acc: share(&|row| row.verdict == Verdict::Correct),
            em: share(&|row| row.exact_match == Some(true)),
            f1: Interval { low: f1.low.max(0.0), ..f1 },
            gbr,
            searches: mean(&|row| f64::from(row.searches)),
            passages: mean(&|row| row.passages.len() as f64),
            tokens: mean(&|row| row.episode.as_ref().map_or(0, crate::results::EpisodeRow::written) as f64),
            span: Some(wilson(yes(&spans), spans.len())),
            judge: (!judged.is_empty()).then(|| wilson(yes(&judged), judged.len())),
            evidence: Some(Interval { low: evidence.low.max(0.0), ..evidence }),
            words: spread(&words),
            latency: None,
            calls: None,
            usage: None,
            cost: None,
            seconds: None,
        })
    }

    /// Every figure has a stream of its own, named by what it is about.
    fn bootstrap(&self, values: &[f64], name: &[&str]) -> Result<Interval, ArtifactError> {
        let digest = digest_json(&(self.seed, name))?;
        let seed = u64::from_str_radix(digest.get(..16).unwrap_or_default(), 16).unwrap_or(self.seed);
        Ok(bootstrap::mean(values, 1.0, self.config.confidence, self.config.resamples, seed))
    }

    /// Every arm against each of `pairedAgainst` (else the baseline), each pair once, in each of these datasets: one
    /// family of tests.
    fn pairs(&self, arms: &[ArmConfig], rows: &[ResultRow], datasets: &[&str]) -> Result<Vec<Pair>, ArtifactError> {
        let mut against: Vec<&str> = self.config.paired_against.iter().map(String::as_str).collect();
        if against.is_empty() {
            against.extend(self.config.baseline.as_deref());
        }
        let mut pairs = Vec::new();
        for dataset in datasets {
            let mut right: BTreeMap<&str, BTreeMap<usize, f64>> = BTreeMap::new();
            for row in rows.iter().filter(|row| *dataset == ALL || row.dataset == *dataset) {
                if let Some(value) = row.verdict.value() {
                    right.entry(&row.arm).or_default().insert(row.place, value);
                }
            }
            let mut done = BTreeSet::new();
            for other in &against {
                for arm in arms.iter().map(|arm| arm.name.as_str()) {
                    if arm != *other && done.insert([arm.min(other), arm.max(other)]) {
                        pairs.push(self.pair(dataset, arm, other, &right)?);
                    }
                }
            }
        }
        let p: Vec<f64> = pairs.iter().map(|pair| pair.p).collect();
        for (pair, p) in pairs.iter_mut().zip(correction::adjust(self.config.correction, &p)) {
            pair.p_corrected = p;
        }
        Ok(pairs)
    }

    fn pair(
        &self,
        dataset: &str,
        arm: &str,
        other: &str,
        right: &BTreeMap<&str, BTreeMap<usize, f64>>,
    ) -> Result<Pair, ArtifactError> {
        let empty = BTreeMap::new();
        let (ours, theirs) = (right.get(arm).unwrap_or(&empty), right.get(other).unwrap_or(&empty));
        let differences: Vec<f64> =
            ours.iter().filter_map(|(place, value)| theirs.get(place).map(|theirs| value - theirs)).collect();
        let wins = differences.iter().filter(|one| **one > 0.0).count();
        let losses = differences.iter().filter(|one| **one < 0.0).count();
        let p = mcnemar::p_value(wins, losses);
        Ok(Pair {
            dataset: dataset.to_owned(),
            arm: arm.to_owned(),
            against: other.to_owned(),
            n: differences.len(),
            wins,
            losses,
            difference: self.bootstrap(&differences, &["difference", arm, other, dataset])?,
            p,
            p_corrected: p,
        })
    }
}

fn notes(config: &EvaluatorConfig, results: &Results, table: &[TableRow], pairs: &[Pair]) -> Vec<String> {
    let set = &results.questions;
    let n = set.questions.len();
    let mut notes = vec![detectable::sentence(n, config.statistics.confidence)];
    // below this many questions a run is a smoke run: not even ten points can be relied on to show
    let delta = detectable::difference(n, detectable::ASSUMED_DISCORDANT, config.statistics.confidence);
    if delta.is_none_or(|delta| delta > 0.1) {
        notes.insert(
            0,
            "This is a smoke run: it shows that every part works; its intervals are too wide to claim a gain.".into(),
        );
    }
    if n < config.sample.size && config.sample.size != usize::MAX {
        notes.push(format!("{} questions were asked for, {n} were to be had.", config.sample.size));
    }
    let searches = |pair: &&Pair| config.arms.iter().any(|arm| arm.name == pair.arm && arms::has_searcher(arm));
    if let Some(pair) = pairs.iter().find(searches).or(pairs.first()).filter(|pair| pair.n > 0) {
        let share = (pair.wins + pair.losses) as f64 / pair.n as f64 * 100.0;
        notes.push(format!(
            "{} and {} disagree on {share:.0} % of the questions (discordant pairs).",
            pair.arm, pair.against
        ));
    }
    for row in table.iter().filter(|row| row.dataset == ALL && row.masked > 0) {
        notes.push(format!("{}: {} questions have no verdict and are left out of its figures.", row.arm, row.masked));
    }
    notes.extend(arms::notes(&config.arms));
    let by_count = |arm| arms::budget_from(arm).filter(|(_, by)| *by == BudgetUnit::Passages);
    for (arm, (from, _)) in config.arms.iter().filter_map(|arm| Some((arm, by_count(arm)?))) {
        let counts = |name: &str| -> BTreeMap<usize, usize> {
            results.rows.iter().filter(|row| row.arm == name).map(|row| (row.place, row.passages.len())).collect()
        };
        let (ours, theirs) = (counts(&arm.name), counts(from));
        let short = ours.iter().filter(|(place, count)| theirs.get(*place) != Some(*count)).count();
        if short > 0 {
            notes.push(format!(
                "{}: for {short} questions the index ranks fewer passages than {from} handed over; all it ranks were given.",
                arm.name
            ));
        }
    }
    notes
}
