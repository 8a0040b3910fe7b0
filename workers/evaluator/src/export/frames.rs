//! What the tables hold.

use super::frame::{Cell, Frame, Kind};
use crate::measure::{closed_book_arms, measure};
use crate::results::Results;
use crate::statistics::Interval;
use crate::statistics::percentiles::spread;
use crate::summary::{ALL, Summary};
use s3_search::score::Verdict;
use serde_json::Value;
use std::collections::BTreeSet;

/// One row a question and arm.
pub fn questions(results: &Results, identity: &Value) -> Frame {
    use Kind::{Real, Text, Truth, Whole};
    let mut frame = Frame::new(&[
        ("dataset", Text),
        ("id", Text),
        ("place", Whole),
        ("arm", Text),
        ("question", Text),
        ("gold_answers", Text),
        ("answer", Text),
        ("refused", Text),
        ("verdict", Text),
        ("correct", Truth),
        ("exact_match", Truth),
        ("f1", Real),
        ("span", Truth),
        ("judge", Truth),
        ("judge_reason", Text),
        ("gain", Real),
        ("evidence_recall", Real),
        ("searches", Whole),
        ("passages", Whole),
        ("passage_ids", Text),
        ("passage_words", Whole),
        ("searcher_tokens", Whole),
        ("closed_book_correct", Truth),
        ("unseen", Truth),
    ]);
    let (measures, flags) = measure(results, &closed_book_arms(identity));
    for (row, measures) in results.rows.iter().zip(&measures) {
        let question = &results.questions.questions[row.place];
        let flags = flags[row.place];
        frame.rows.push(vec![
            row.dataset.as_str().into(),
            row.id.as_str().into(),
            row.place.into(),
            row.arm.as_str().into(),
            question.question.as_str().into(),
            Value::from(question.answers.clone()).to_string().into(),
            row.answer.clone().into(),
            row.refused.clone().into(),
            format!("{:?}", row.verdict).into(),
            row.verdict.value().map(|_| row.verdict == Verdict::Correct).into(),
            row.exact_match.into(),
            row.f1.into(),
            measures.span.into(),
            measures.judge.into(),
            Some(row.judge_reason.clone()).filter(|reason| !reason.is_empty()).into(),
            row.gain.into(),
            measures.evidence.into(),
            row.searches.into(),
            row.passages.len().into(),
            Value::from(row.passages.clone()).to_string().into(),
            measures.words.into(),
            row.episode.as_ref().map(crate::results::EpisodeRow::written).into(),
            flags.closed_book.into(),
            flags.unseen.into(),
        ]);
    }
    frame
}

/// One row an arm and dataset.
pub fn table(summary: &Summary) -> Frame {
    use Kind::{Real, Text, Whole};
    let mut frame = Frame::new(&[("arm", Text), ("dataset", Text), ("n", Whole), ("masked", Whole)]);
    let name = |frame: &mut Frame, name: &str, kind: Kind| {
        frame.columns.push(super::frame::Column { name: name.to_owned(), kind });
    };
    for figure in ["gen_acc", "exact_match", "f1", "gbr", "span", "judge", "evidence_recall"] {
        for end in ["", "_low", "_high"] {
            name(&mut frame, &format!("{figure}{end}"), Real);
        }
    }
    for mean in ["searches", "passages", "searcher_tokens"] {
        name(&mut frame, mean, Real);
    }
    for spread in ["passage_words", "seconds", "search_call_seconds", "generation_call_seconds", "judge_call_seconds"] {
        for part in ["mean", "p50", "p90", "p95", "p99"] {
            name(&mut frame, &format!("{spread}_{part}"), Real);
        }
    }
    for count in ["prompt_tokens", "answer_tokens", "answers_from_cache"] {
        name(&mut frame, count, Whole);
    }
    name(&mut frame, "cost", Real);
    for row in &summary.table {
        let mut cells: Vec<Cell> =
            vec![row.arm.as_str().into(), row.dataset.as_str().into(), row.n.into(), row.masked.into()];
        let figures = [Some(row.gen_acc), Some(row.em), Some(row.f1), row.gbr, row.span, row.judge, row.evidence];
        for figure in figures {
            let part = |of: fn(&Interval) -> f64| Cell::from(figure.as_ref().map(of));
            cells.extend([part(|f| f.value), part(|f| f.low), part(|f| f.high)]);
        }
        cells.extend([row.searches.into(), row.passages.into(), row.tokens.into()]);
        let calls = row.calls.unwrap_or_default();
        for spread in [row.words, row.latency, calls.search, calls.generation, calls.judge] {
            let parts = spread.map(|s| [s.mean, s.p50, s.p90, s.p95, s.p99]);
            cells.extend((0..5).map(|at| Cell::from(parts.map(|parts| parts[at]))));
        }
        let usage = row.usage;
        cells.extend([
            usage.map(|used| used.prompt_tokens).into(),
            usage.map(|used| used.answer_tokens).into(),
            usage.map(|used| used.cached).into(),
            row.cost.into(),
        ]);
        frame.rows.push(cells);
    }
    frame
}

/// One row a paired test.
pub fn pairs(summary: &Summary) -> Frame {
    use Kind::{Real, Text, Whole};
    let mut frame = Frame::new(&[
        ("dataset", Text),
        ("arm", Text),
        ("against", Text),
        ("n", Whole),
        ("only_arm_right", Whole),
        ("only_against_right", Whole),
        ("difference", Real),
        ("difference_low", Real),
        ("difference_high", Real),
        ("p_mcnemar", Real),
        ("p_corrected", Real),
    ]);
    for pair in summary.pairs.iter().chain(&summary.by_dataset) {
        frame.rows.push(vec![
            pair.dataset.as_str().into(),
            pair.arm.as_str().into(),
            pair.against.as_str().into(),
            pair.n.into(),
            pair.wins.into(),
            pair.losses.into(),
            pair.difference.value.into(),
            pair.difference.low.into(),
            pair.difference.high.into(),
            pair.p.into(),
            pair.p_corrected.into(),
        ]);
    }
    frame
}

/// One row an arm and dataset and text: what the generator was given to read, what the searcher wrote.
pub fn contexts(results: &Results) -> Frame {
    use Kind::{Real, Text, Whole};
    let mut frame = Frame::new(&[
        ("arm", Text),
        ("dataset", Text),
        ("of", Text),
        ("unit", Text),
        ("samples", Whole),
        ("total", Real),
        ("mean", Real),
        ("p50", Real),
        ("p90", Real),
        ("p95", Real),
        ("p99", Real),
    ]);
    let (measures, _) = measure(results, &BTreeSet::new());
    let keys: BTreeSet<(&str, &str)> = results
        .rows
        .iter()
        .flat_map(|row| [(row.arm.as_str(), ALL), (row.arm.as_str(), row.dataset.as_str())])
        .collect();
    for (arm, dataset) in keys {
        let rows = || {
            let all = results.rows.iter().zip(&measures);
            all.filter(move |(row, _)| row.arm == arm && (dataset == ALL || row.dataset == dataset))
        };
        let words: Vec<f64> = rows().map(|(_, measures)| measures.words as f64).collect();
        let written = rows().filter_map(|(row, _)| row.episode.as_ref());
        let written: Vec<f64> = written.map(|episode| episode.written() as f64).collect();
        for (of, unit, values) in [("context", "words", words), ("searcher", "tokens", written)] {
            let Some(found) = spread(&values) else { continue };
            let mut cells: Vec<Cell> = vec![arm.into(), dataset.into(), of.into(), unit.into(), found.n.into()];
            cells.extend([found.total, found.mean, found.p50, found.p90, found.p95, found.p99].map(Cell::from));
            frame.rows.push(cells);
        }
    }
    frame
}
