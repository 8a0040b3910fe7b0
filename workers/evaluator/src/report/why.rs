//! Why an answer has the verdict that it has, in words.

use s3_search::score::{Verdict, answer_tokens, exact_match, has_span};

/// The rule that decided, with the judge's word and its reason; `limit` is the number of words that an answer may have, where it is known.
pub(super) fn why(
    answer: Option<&str>,
    golds: &[String],
    limit: Option<usize>,
    (judge, reason): (Option<Verdict>, &str),
    verdict: Verdict,
) -> String {
    let Some(answer) = answer else { return String::new() };
    let judged = match judge {
        Some(Verdict::Correct) => "the judge says it holds a gold answer",
        Some(Verdict::Incorrect) => "the judge says it holds no gold answer",
        Some(Verdict::Undecided) => "the judge said neither yes nor no",
        Some(Verdict::Failed) => "the judge could not be asked",
        None => "",
    };
    let span = match (has_span(answer, golds), verdict) {
        _ if exact_match(answer, golds) => "equal to a gold answer".to_owned(),
        (false, _) => "no gold answer stands in it".to_owned(),
        (true, Verdict::Correct) => "a gold answer stands in it".to_owned(),
        (true, _) => match limit.filter(|limit| answer_tokens(answer) > *limit) {
            Some(limit) => format!("a gold answer stands in it, but it is longer than {limit} words"),
            None if judge == Some(Verdict::Incorrect) => "a gold answer stands in it".to_owned(),
            None => "a gold answer stands in it, but it does not state it".to_owned(),
        },
    };
    match (judged.is_empty(), reason.is_empty()) {
        (true, _) => span,
        (false, true) => format!("{span}; {judged}"),
        (false, false) => format!("{span}; {judged}: {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deciding_rule_is_named() {
        let golds = ["Paris".to_owned()];
        let say = |answer, judge, verdict| why(Some(answer), &golds, Some(4), (judge, ""), verdict);
        assert_eq!(say("Paris", None, Verdict::Correct), "equal to a gold answer");
        assert_eq!(say("in Paris", None, Verdict::Correct), "a gold answer stands in it");
        assert_eq!(say("Rome", None, Verdict::Incorrect), "no gold answer stands in it");
        assert!(say("Paris is the one and only", None, Verdict::Incorrect).contains("longer than 4 words"));
        assert!(say("not Paris, Rome", None, Verdict::Incorrect).contains("does not state it"));
        let denied = say("in Paris", Some(Verdict::Incorrect), Verdict::Incorrect);
        assert_eq!(denied, "a gold answer stands in it; the judge says it holds no gold answer");
        let undecided = (Some(Verdict::Undecided), "the two judges disagree");
        let told = why(Some("Rome"), &golds, None, undecided, Verdict::Undecided);
        assert!(told.ends_with("the judge said neither yes nor no: the two judges disagree"), "{told}");
        assert_eq!(why(None, &golds, None, (None, ""), Verdict::Failed), "");
    }
}
