//! What is asked of a service that speaks `SerpAPI`'s JSON, and what its reply says.

use crate::corpus::Entry;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// Parameters that are not the configuration's to set.
pub const RESERVED: [&str; 4] = ["q", "engine", "api_key", "output"];
/// Longest text of a passage, characters; more is no snippet.
const LONGEST: usize = 8192;

/// Why a reply is no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// The service says that its search failed.
    Failed(String),
    /// It is not what the service promises.
    Malformed(String),
}

/// The query as it is sent: without white space around it, and not longer than so many characters, cut between words
/// where there are some.
pub fn trimmed(query: &str, characters: usize) -> &str {
    let query = query.trim();
    let Some((end, _)) = query.char_indices().nth(characters) else { return query };
    let cut = &query[..end];
    let whole = query[end..].starts_with(char::is_whitespace);
    match cut.rfind(char::is_whitespace).filter(|_| !whole) {
        Some(at) => cut[..at].trim_end(),
        None => cut.trim_end(),
    }
}

/// The reply's passages, in the order of the reference's server: the answer box, organic results, related questions.
pub fn passages(reply: &Value) -> Result<Vec<Entry>, Unusable> {
    let Value::Object(reply) = reply else {
        return Err(Unusable::Malformed("the reply is no JSON object".to_owned()));
    };
    let state = |pointer: [&str; 2]| reply.get(pointer[0])?.get(pointer[1])?.as_str();
    let status = state(["search_metadata", "status"]);
    let error = reply.get("error").and_then(Value::as_str);
    match status {
        None | Some("Success" | "Cached") => {}
        Some(status) => {
            let said = error.or(state(["search_metadata", "error"])).unwrap_or("no reason given");
            return Err(Unusable::Failed(format!("the search ended as {status}: {said}")));
        }
    }
    let lists = ["organic_results", "related_questions"];
    let found = lists.iter().any(|name| reply.contains_key(*name)) || reply.contains_key("answer_box");
    if !found {
        // a search that succeeds and finds nothing says so in `error`, too
        let empty = state(["search_information", "organic_results_state"]).is_some_and(|state| state.contains("mpty"));
        return match (status, error) {
            (Some(_), _) => Ok(Vec::new()),
            (None, _) if empty => Ok(Vec::new()),
            (None, Some(error)) => Err(Unusable::Failed(error.to_owned())),
            (None, None) => Err(Unusable::Malformed("the reply has neither results nor a status".to_owned())),
        };
    }
    let mut taken = Taken::default();
    if let Some(Value::Object(answer)) = reply.get("answer_box") {
        taken.take("answer box", answer, &["title"], &["snippet", "answer", "result"]);
    }
    for (name, kind, titles) in [
        ("organic_results", "organic", &["title"][..]),
        ("related_questions", "related question", &["question", "title"][..]),
    ] {
        match reply.get(name) {
            None | Some(Value::Null) => {}
            Some(Value::Array(items)) => {
                for item in items.iter().filter_map(Value::as_object) {
                    taken.take(kind, item, titles, &["snippet", "answer"]);
                }
            }
            Some(_) => return Err(Unusable::Malformed(format!("{name} is no list"))),
        }
    }
    Ok(taken.entries)
}

#[derive(Default)]
struct Taken {
    entries: Vec<Entry>,
    ids: BTreeSet<String>,
}

impl Taken {
    fn take(&mut self, kind: &str, item: &Map<String, Value>, titles: &[&str], texts: &[&str]) {
        let first = |names: &[&str]| names.iter().find_map(|name| item.get(*name).and_then(plain)).unwrap_or_default();
        let (title, text) = (first(titles), first(texts));
        if title.is_empty() && text.is_empty() {
            return;
        }
        let link = item.get("link").and_then(Value::as_str).map(str::trim).filter(|link| !link.is_empty());
        let stem = match link {
            Some(link) => link.to_owned(),
            None => hex::encode(&Sha256::digest(format!("{title}\n{text}"))[..16]),
        };
        // one page may be an answer and a result; ids of a list differ
        let mut id = stem.clone();
        for number in 2.. {
            if self.ids.insert(id.clone()) {
                break;
            }
            id = format!("{stem}#{number}");
        }
        let mut metadata = BTreeMap::from([("kind".to_owned(), kind.to_owned())]);
        metadata.extend(link.map(|link| ("link".to_owned(), link.to_owned())));
        self.entries.push(Entry { id, title, text, metadata });
    }
}

/// A text, or a list of texts, in one line each.
fn plain(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n"),
        _ => return None,
    };
    let text: String = text.trim().chars().take(LONGEST).collect();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn replies_become_passages_in_the_references_order() {
        let reply = json!({
            "search_metadata": {"status": "Success"},
            "related_questions": [{"question": "Is it big?", "snippet": "Yes.", "link": "https://b.example"}],
            "organic_results": [
                {"title": "Paris", "snippet": "The capital.", "link": "https://a.example"},
                {"title": "", "link": "https://nothing.example"},
                {"title": "Again", "snippet": "The same page.", "link": "https://a.example"},
                "not an object",
            ],
            "answer_box": {"type": "organic_result", "title": "Capital of France", "answer": "Paris"},
        });
        let found = passages(&reply).unwrap();
        let seen: Vec<_> = found.iter().map(|e| (e.title.as_str(), e.text.as_str())).collect();
        assert_eq!(
            seen,
            [
                ("Capital of France", "Paris"),
                ("Paris", "The capital."),
                ("Again", "The same page."),
                ("Is it big?", "Yes.")
            ]
        );
        let ids: Vec<_> = found.iter().skip(1).map(|entry| entry.id.as_str()).collect();
        assert_eq!(ids, ["https://a.example", "https://a.example#2", "https://b.example"]);
        assert_eq!((found[0].id.len(), found[0].metadata["kind"].as_str()), (32, "answer box"));
        assert_eq!(found[1].metadata["link"], "https://a.example");
    }

    #[test]
    fn nothing_found_is_a_result_and_everything_else_is_none() {
        let nothing = json!({
            "search_metadata": {"status": "Success"},
            "search_information": {"organic_results_state": "Fully empty"},
            "error": "Google hasn't returned any results for this query.",
        });
        assert_eq!(passages(&nothing), Ok(Vec::new()));
        assert_eq!(passages(&json!({"organic_results": []})), Ok(Vec::new()));
        for failed in [
            json!({"search_metadata": {"status": "Error"}, "error": "proxy timeout"}),
            json!({"search_metadata": {"status": "Processing"}, "organic_results": []}),
            json!({"error": "Your account has run out of searches."}),
        ] {
            assert!(matches!(passages(&failed), Err(Unusable::Failed(_))), "{failed}");
        }
        for malformed in
            [json!({}), json!([]), json!("ok"), json!({"organic_results": {"a": 1}}), json!({"results": []})]
        {
            assert!(matches!(passages(&malformed), Err(Unusable::Malformed(_))), "{malformed}");
        }
    }

    proptest! {
        #[test]
        fn queries_are_cut_between_words(query in "\\PC{0,80}", characters in 1usize..40) {
            let cut = trimmed(&query, characters);
            prop_assert!(cut.chars().count() <= characters);
            prop_assert!(query.trim().starts_with(cut));
            prop_assert_eq!(cut.trim(), cut);
        }
    }

    #[test]
    fn long_queries_lose_their_last_words() {
        assert_eq!(trimmed("  who painted the ceiling  ", 100), "who painted the ceiling");
        assert_eq!(trimmed("who painted the ceiling", 11), "who painted");
        assert_eq!(trimmed("who painted the ceiling", 14), "who painted");
        assert_eq!(trimmed("Donaudampfschifffahrt", 5), "Donau");
    }
}
