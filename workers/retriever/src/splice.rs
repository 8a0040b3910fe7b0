//! Passages as the reference's clients read them, cut out of the stored lines without taking them apart: what is a JSON
//! string in the line is one in the reply.

use memchr::memchr2;

/// The strings of a stored line as they stand in it, without their quotes.
struct Parts<'a> {
    id: &'a [u8],
    title: &'a [u8],
    text: &'a [u8],
    /// From the comma before the metadata to the end of the object, or only that.
    rest: &'a [u8],
}

/// A string's content and what follows its closing quote.
fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut at = 0;
    loop {
        at += memchr2(b'"', b'\\', bytes.get(at..)?)?;
        if bytes[at] == b'"' {
            return Some((&bytes[..at], &bytes[at + 1..]));
        }
        at += 2;
    }
}

fn parts(line: &[u8]) -> Option<Parts<'_>> {
    let (id, rest) = string(line.strip_prefix(br#"{"id":""#)?)?;
    let (title, rest) = string(rest.strip_prefix(br#","title":""#)?)?;
    let (text, rest) = string(rest.strip_prefix(br#","text":""#)?)?;
    Some(Parts { id, title, text, rest: rest.trim_ascii_end() })
}

/// Writes `{"id", "contents", "title", "text"}` and the metadata, if any; says whether the line was a passage.
#[must_use]
pub fn document(line: &[u8], out: &mut Vec<u8>) -> bool {
    let Some(Parts { id, title, text, rest }) = parts(line) else { return false };
    let pieces: [&[u8]; 12] = [
        br#"{"id":""#,
        id,
        br#"","contents":"\""#,
        title,
        br#"\"\n"#,
        text,
        br#"","title":""#,
        title,
        br#"","text":""#,
        text,
        br#"""#,
        rest,
    ];
    for piece in pieces {
        out.extend_from_slice(piece);
    }
    true
}

/// Writes the string that the reference's combined server hands out: the title in quotes, a line break, the text.
#[must_use]
pub fn contents(line: &[u8], out: &mut Vec<u8>) -> bool {
    let Some(Parts { title, text, .. }) = parts(line) else { return false };
    let pieces: [&[u8]; 5] = [br#""\""#, title, br#"\"\n"#, text, br#"""#];
    for piece in pieces {
        out.extend_from_slice(piece);
    }
    true
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::corpus::{Entry, contents as rendered};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    proptest! {
        #[test]
        fn as_if_taken_apart(id in ".{1,9}", title in "[\\PC\"\\\\\n]{0,30}", text in "[\\PC\"\\\\\n\t]{0,90}", tag in ".{0,3}") {
            let mut entry = Entry { id, title, text, ..Entry::default() };
            if !tag.is_empty() {
                entry.metadata.insert("tag".to_owned(), tag);
            }
            let mut line = serde_json::to_vec(&entry).unwrap();
            line.push(b'\n');
            let mut out = Vec::new();
            prop_assert!(document(&line, &mut out));
            let mut expected = json!({
                "id": entry.id, "title": entry.title, "text": entry.text,
                "contents": rendered(&entry.title, &entry.text),
            });
            if !entry.metadata.is_empty() {
                expected["metadata"] = json!(entry.metadata);
            }
            prop_assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), expected);
            let mut out = Vec::new();
            prop_assert!(contents(&line, &mut out));
            prop_assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), rendered(&entry.title, &entry.text));
        }
    }

    #[test]
    fn anything_else_is_no_passage() {
        for line in ["", "{}", r#"{"id":"a","title":"b"}"#, r#"{"id":"a\"#, r#"{"id":"a","title":"b","text":"c"#] {
            assert!(!document(line.as_bytes(), &mut Vec::new()), "{line}");
        }
    }
}
