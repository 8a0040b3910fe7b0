//! One phrase about what a job made, for the line that says it is done.

use crate::progress::number;
use crate::text::thousands;
use s3_plan::ComponentKind;
use serde_json::Value;

/// From the outcome's summary; `done` where there is nothing to tell.
pub fn highlight(kind: ComponentKind, summary: &Value) -> String {
    let count = |name: &str| summary.get(name).and_then(Value::as_u64);
    let figure = |pointer: &str| summary.pointer(pointer).and_then(Value::as_f64);
    let phrase = match kind {
        ComponentKind::Fetch | ComponentKind::GatewayFetch => {
            count("fetched").map(|files| format!("{} files fetched", thousands(files)))
        }
        ComponentKind::IndexBuild => {
            count("passages").map(|passages| format!("{} passages indexed", thousands(passages)))
        }
        ComponentKind::Baseline => count("right")
            .zip(count("questions"))
            .map(|(right, all)| format!("naive RAG answers {} of {} questions", thousands(right), thousands(all))),
        ComponentKind::Training => count("steps").map(|steps| {
            let norm = figure("/last/gradNorm").map(|norm| format!(", last gradient norm {}", number(norm)));
            let gain = figure("/probeFirst/gain")
                .zip(figure("/probeLast/gain"))
                .map(|(first, last)| format!(", held-out gain {} → {}", number(first), number(last)));
            format!("{} steps{}{}", thousands(steps), norm.unwrap_or_default(), gain.unwrap_or_default())
        }),
        ComponentKind::Evaluation => summary
            .get("table")
            .and_then(Value::as_array)
            .and_then(|rows| rows.iter().find(|row| row["dataset"] == "all").or(rows.first()))
            .and_then(|row| row["n"].as_u64())
            .map(|questions| format!("{} questions answered by every arm", thousands(questions))),
        ComponentKind::Retriever
        | ComponentKind::WebSearch
        | ComponentKind::Gateway
        | ComponentKind::ModelServer
        | ComponentKind::Searcher
        | ComponentKind::WarmStart => None,
    };
    phrase.unwrap_or_else(|| "done".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_was_made_is_said_in_a_phrase() {
        let say = |kind, summary| highlight(kind, &summary);
        assert_eq!(say(ComponentKind::IndexBuild, json!({"passages": 10_033})), "10,033 passages indexed");
        assert_eq!(
            say(ComponentKind::Training, json!({"steps": 3, "last": {"gradNorm": 0.4142}})),
            "3 steps, last gradient norm 0.414"
        );
        assert_eq!(say(ComponentKind::Evaluation, json!({})), "done");
    }
}
