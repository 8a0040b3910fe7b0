//! How a turn's text is read and written by default.
//!
//! ```text
//! <important_info>[1, 3]</important_info>      optional: passages of the current window to keep
//! <query>words</query>                         search; JSON {"query": "words"} is accepted too
//! <search_complete>True</search_complete>      or stop
//! ```
//! The first action that is closed counts and ends the turn. Everything here is total: any text
//! gives a reading, at worst [`Action::Invalid`].

use crate::pyjson::{self, Json};
use crate::text::is_space;
use crate::types::Action;

/// Closes a search.
pub const QUERY_END: &str = "</query>";
/// Closes a stop.
pub const COMPLETE_END: &str = "</search_complete>";
const QUERY: &str = "<query>";
const COMPLETE: &str = "<search_complete>";
const SELECT: &str = "<important_info>";
const SELECT_END: &str = "</important_info>";

/// Shown after an unreadable turn.
pub const CORRECTION: &str =
    "\nThis could not be read. Write <query>words</query> or <search_complete>True</search_complete>.\n";

/// A turn's text, read against its window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// What it asks for.
    pub action: Action,
    /// Accepted selections as indices into the window (from 0), in the order written, each once.
    pub selected: Vec<usize>,
}

/// Reads a turn. `window` is the number of passages its ids may name; ids outside 1..=window and
/// those beyond the first `max_selected` are ignored. Of several selections the first counts, and
/// only before the action. A selection stands even if the action cannot be read.
pub fn read(text: &str, window: usize, max_selected: usize) -> Reading {
    let ends = [(QUERY_END, true), (COMPLETE_END, false)];
    let first = ends.into_iter().filter_map(|(end, search)| Some((text.find(end)?, search))).min();
    let before = &text[..first.map_or(text.len(), |(at, _)| at)];
    let action = match first {
        Some((_, true)) => opened(before, QUERY).map_or_else(|| invalid("a query is closed but not opened"), query),
        Some((_, false)) => {
            opened(before, COMPLETE).map_or_else(|| invalid("a stop is closed but not opened"), complete)
        }
        None if before.contains(QUERY) => invalid("the query is not closed"),
        None if before.contains(COMPLETE) => invalid("the stop is not closed"),
        None => invalid("neither a query nor a stop"),
    };
    Reading { action, selected: selection(before, window, max_selected) }
}

/// A turn that reads back as `action` with these ids (from 1); for supervised traces.
/// [`Action::Invalid`] and [`Action::Note`] have no text of their own and give only the selection.
pub fn write(ids: &[usize], action: &Action) -> String {
    let selection = if ids.is_empty() {
        String::new()
    } else {
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        format!("{SELECT}[{}]{SELECT_END}", ids.join(", "))
    };
    match action {
        Action::Search { query } => format!("{selection}{QUERY}{query}{QUERY_END}"),
        Action::Complete => format!("{selection}{COMPLETE}True{COMPLETE_END}"),
        Action::Invalid { .. } | Action::Note => selection,
    }
}

fn invalid(reason: &str) -> Action {
    Action::Invalid { reason: reason.to_owned() }
}

/// What follows the last opener, so that a repeated opener does not become part of a query.
fn opened<'a>(before: &'a str, tag: &str) -> Option<&'a str> {
    before.rfind(tag).map(|at| &before[at + tag.len()..])
}

/// Whether a stop means it.
pub(crate) fn says_yes(content: &str) -> bool {
    matches!(content.trim().to_lowercase().as_str(), "true" | "yes" | "1" | "y")
}

fn complete(content: &str) -> Action {
    if says_yes(content) { Action::Complete } else { invalid("the stop does not say True, and no query follows") }
}

/// A query as JSON or as plain words.
pub(crate) fn query(content: &str) -> Action {
    let content = content.trim();
    let query = match pyjson::parse(content) {
        Some(Json::String(query)) => query,
        Some(object @ Json::Object(_)) => match object.get("query") {
            Some(Json::String(query)) => query.clone(),
            Some(Json::Array(items)) => match items.first() {
                Some(Json::String(query)) => query.clone(),
                _ => return invalid("the query's JSON list does not start with a string"),
            },
            _ => return invalid("the query's JSON has no string under the key query"),
        },
        _ if content.starts_with('{') => return invalid("the query is broken JSON"),
        _ => content.to_owned(),
    };
    let words: Vec<&str> = query.split(is_space).filter(|word| !word.is_empty()).collect();
    if words.is_empty() {
        return invalid("the query is empty");
    }
    Action::Search { query: words.join(" ") }
}

fn selection(before: &str, window: usize, max_selected: usize) -> Vec<usize> {
    let content = before.find(SELECT).map(|at| &before[at + SELECT.len()..]);
    let Some((content, _)) = content.and_then(|rest| rest.split_once(SELECT_END)) else { return Vec::new() };
    let mut selected = Vec::new();
    for word in content.split(|c: char| !c.is_alphanumeric() && !matches!(c, '-' | '.' | '_')) {
        // only whole positive integers: -1, 1.5 and v2 name no passage
        let word = word.trim_end_matches('.');
        if word.starts_with(|c: char| c.is_ascii_digit())
            && let Ok(id) = word.parse::<usize>()
            && (1..=window).contains(&id)
            && !selected.contains(&(id - 1))
            && selected.len() < max_selected
        {
            selected.push(id - 1);
        }
    }
    selected
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    fn search(query: &str) -> Action {
        Action::Search { query: query.into() }
    }

    #[test]
    fn reads_what_is_allowed() {
        for (text, ids, action) in [
            ("<query>who  is\nhe</query>", vec![], search("who is he")),
            ("<important_info>[3, 1]</important_info><query>{\"query\": \"x\"}</query>", vec![2, 0], search("x")),
            (
                "<important_info>[1,1,9,0,-2]</important_info>\n<search_complete> yes </search_complete>",
                vec![0],
                Action::Complete,
            ),
            (
                "<important_info>1 2 3</important_info><search_complete>True</search_complete>",
                vec![0, 1],
                Action::Complete,
            ),
            (
                "<important_info>Doc 2.</important_info><query>a</query><search_complete>True</search_complete>",
                vec![1],
                search("a"),
            ),
            ("<query><query>again</query>", vec![], search("again")),
            ("<query>a</query><important_info>[1]</important_info>", vec![], search("a")),
            ("<query>\"quoted\"</query>", vec![], search("quoted")),
            ("<query>1984</query>", vec![], search("1984")),
        ] {
            assert_eq!(read(text, 3, 2), Reading { action, selected: ids }, "{text}");
        }
    }

    #[test]
    fn refuses_the_rest() {
        for text in [
            "",
            "Paris",
            "<query>",
            "<query> </query>",
            "x</query>",
            "<query>{\"q\": 1}</query>",
            "<query>{broken</query>",
            "<query>{\"query\": []}</query>",
            "<search_complete>False</search_complete>",
            "</search_complete>",
        ] {
            assert!(matches!(read(text, 3, 3).action, Action::Invalid { .. }), "{text}");
        }
    }

    fn soup() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just(QUERY.to_owned()),
            Just(QUERY_END.to_owned()),
            Just(COMPLETE.to_owned()),
            Just(COMPLETE_END.to_owned()),
            Just(SELECT.to_owned()),
            Just(SELECT_END.to_owned()),
            Just("True".to_owned()),
            Just("[1, 2, 99]".to_owned()),
            Just("<information>Doc 1 (Title: \"".to_owned()),
            Just("{\"query\": ".to_owned()),
            ".{0,8}",
        ];
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn ids_stay_in_the_window(text in soup(), window in 0usize..5, max in 0usize..4) {
            let reading = read(&text, window, max);
            prop_assert!(reading.selected.len() <= max);
            prop_assert!(reading.selected.iter().all(|&id| id < window));
        }

        #[test]
        fn written_turns_read_back(ids in prop::sample::subsequence(vec![1usize, 2, 3, 4], 0..4), query in "[a-z]{1,8}( [a-z]{1,8}){0,3}") {
            for action in [search(&query), Action::Complete] {
                let reading = read(&write(&ids, &action), 4, 4);
                prop_assert_eq!(&reading.action, &action);
                prop_assert_eq!(reading.selected, ids.iter().map(|id| id - 1).collect::<Vec<_>>());
            }
        }

        #[test]
        fn the_reference_parsers_take_any_text(text in soup()) {
            let _parsed = crate::compat::parse_action(&crate::compat::kept_response(&text));
            let _documents = crate::compat::extract_documents(&text);
        }
    }
}
