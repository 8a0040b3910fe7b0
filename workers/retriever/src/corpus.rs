//! Reading a corpus as a stream: one JSON object a line.

use crate::error::{Result, RetrieverError};
use s3_config::CorpusConfig;
use s3_search::Passage;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Longest accepted line; a longer one is a file of another kind.
const LINE_LIMIT: usize = 16 << 20;

/// `{id, title, text}`, or the reference's `{id, contents}` with `"title"` on the first line.
#[derive(Deserialize)]
struct Line {
    id: String,
    title: Option<String>,
    text: Option<String>,
    contents: Option<String>,
}

/// Title and text of the reference's `contents`: a first line in quotes is the title.
fn split_contents(contents: &str) -> (String, String) {
    let (first, rest) = contents.split_once('\n').unwrap_or(("", contents));
    let title = first.strip_prefix('"').and_then(|title| title.strip_suffix('"')).unwrap_or(first);
    (title.to_owned(), rest.to_owned())
}

fn parse(line: &str) -> Result<Passage, String> {
    let form = "expected {\"id\",\"title\",\"text\"} or {\"id\",\"contents\"}, all strings";
    let Line { id, title, text, contents } = serde_json::from_str(line).map_err(|error| format!("{error}; {form}"))?;
    if id.is_empty() {
        return Err("the id is empty".to_owned());
    }
    // Both forms together are what the reference's servers hand out; title and text are the plainer.
    match (title, text, contents) {
        (title, Some(text), _) => Ok(Passage { id, title: title.unwrap_or_default(), text }),
        (_, None, Some(contents)) => {
            let (title, text) = split_contents(&contents);
            Ok(Passage { id, title, text })
        }
        (_, None, None) => Err(format!("neither text nor contents; {form}")),
    }
}

/// The passage as the reference writes and embeds it: the title in quotes, a line break, the text.
pub fn contents(passage: &Passage) -> String {
    format!("\"{}\"\n{}", passage.title, passage.text)
}

/// sha256 of the corpus file, compared with the configured one.
pub fn corpus_digest(corpus: &CorpusConfig) -> Result<String> {
    File::open(&corpus.path).map_err(RetrieverError::open("corpus", &corpus.path))?;
    if let Some(expected) = &corpus.sha256 {
        s3_artifacts::verify_file(&corpus.path, expected)?;
        return Ok(expected.to_ascii_lowercase());
    }
    Ok(s3_artifacts::digest_file(&corpus.path)?)
}

/// Hands every passage, in file order and up to the configured limit, to `each`; returns their number.
///
/// The whole file is hashed on the way: what was read is what `digest` names, even when the file is
/// replaced between two readings. A bad line or a repeated id ends the reading.
pub fn read_corpus(corpus: &CorpusConfig, digest: &str, mut each: impl FnMut(Passage) -> Result<()>) -> Result<u64> {
    let path = &corpus.path;
    let mut hasher = Sha256::new();
    let mut ids = HashSet::new();
    let mut passages = 0;
    let limit = corpus.limit.unwrap_or(u64::MAX);
    lines("corpus", path, |number, line| {
        hasher.update(line);
        let bad = |reason: String| RetrieverError::Line { path: path.clone(), line: number, reason };
        let text = std::str::from_utf8(line).map_err(|_| bad("not UTF-8".to_owned()))?.trim_ascii();
        if text.is_empty() || passages >= limit {
            return Ok(());
        }
        let passage = parse(text).map_err(bad)?;
        if !ids.insert(passage.id.clone()) {
            return Err(bad(format!("id {:?} stands on an earlier line too; ids must be unique", passage.id)));
        }
        passages += 1;
        each(passage)
    })?;
    if hex::encode(hasher.finalize()) != digest {
        return Err(RetrieverError::content(path, "the file changed while it was read; start the build again"));
    }
    if passages == 0 {
        return Err(RetrieverError::content(path, "no passages in it"));
    }
    Ok(passages)
}

/// Calls `each` with the number (from one) and the bytes of every line, line end included.
pub(crate) fn lines(what: &'static str, path: &Path, mut each: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    let file = File::open(path).map_err(RetrieverError::open(what, path))?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut line = Vec::new();
    let mut number = 0;
    loop {
        line.clear();
        loop {
            let chunk = reader.fill_buf().map_err(RetrieverError::io("read", path))?;
            let (part, ended) = match chunk.iter().position(|byte| *byte == b'\n') {
                Some(at) => (&chunk[..=at], true),
                None => (chunk, chunk.is_empty()),
            };
            line.extend_from_slice(part);
            let used = part.len();
            reader.consume(used);
            if line.len() > LINE_LIMIT {
                let reason = format!("longer than {LINE_LIMIT} bytes; is this a jsonl file?");
                return Err(RetrieverError::Line { path: path.to_owned(), line: number + 1, reason });
            }
            if ended {
                break;
            }
        }
        if line.is_empty() {
            return Ok(());
        }
        number += 1;
        each(number, &line)?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(text: &str, limit: Option<u64>) -> Result<Vec<Passage>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.jsonl");
        std::fs::write(&path, text).unwrap();
        let corpus = CorpusConfig { path, sha256: None, limit };
        let digest = corpus_digest(&corpus)?;
        let mut passages = Vec::new();
        read_corpus(&corpus, &digest, |passage| {
            passages.push(passage);
            Ok(())
        })?;
        Ok(passages)
    }

    #[test]
    fn both_forms_read_the_same() {
        let ours = r#"{"id":"7","title":"A (film)","text":"Line one\nline \"two\""}"#;
        let reference = r#"{"id":"7","contents":"\"A (film)\"\nLine one\nline \"two\""}"#;
        let read_ours = read(ours, None).unwrap();
        assert_eq!(read_ours, read(&format!("\n{reference}\n"), None).unwrap());
        assert_eq!(contents(&read_ours[0]), "\"A (film)\"\nLine one\nline \"two\"");
    }

    #[test]
    fn bad_lines_are_named() {
        let good = |id: &str| format!("{{\"id\":\"{id}\",\"title\":\"\",\"text\":\"t\"}}\n");
        for (bad, says) in [
            ("{\"id\":\"x\"}", "neither text nor contents"),
            ("{\"id\":3,\"text\":\"t\"}", "invalid type"),
            ("not json", "expected"),
            (good("a").trim(), "unique"),
            ("{\"id\":\"\",\"text\":\"t\"}", "empty"),
        ] {
            let error = read(&(good("a") + &good("b") + bad + "\n" + &good("c")), None).unwrap_err().to_string();
            assert!(error.contains("line 3") && error.contains(says), "{error}");
            assert!(!error.contains('\n'));
            // what stands behind the limit is not looked at
            assert_eq!(read(&(good("a") + &good("b") + bad), Some(2)).unwrap().len(), 2);
        }
        assert!(read("\n\n", None).unwrap_err().to_string().contains("no passages"));
    }
}
