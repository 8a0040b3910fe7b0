//! Answer normalisation and span tokens, as the reference's Python computes them.

use regex::Regex;
use std::sync::LazyLock;
use unicode_normalization::UnicodeNormalization;

/// A static pattern, `None` only if the pattern itself were wrong (a test compiles each).
fn class(pattern: &str) -> Option<Regex> {
    Regex::new(pattern).ok()
}

static WORD: LazyLock<Option<Regex>> = LazyLock::new(|| class(r"^[\p{L}\p{N}_]$"));
static TOKEN: LazyLock<Option<Regex>> = LazyLock::new(|| class(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]"));

/// White space in Python's sense: Unicode's, and the four ASCII separators.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `text` without white space (Python's) at its ends.
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Python's `\w`, which unlike Rust's leaves combining marks out.
fn is_word(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_alphanumeric() || c == '_';
    }
    let mut buffer = [0; 4];
    WORD.as_ref().is_some_and(|word| word.is_match(c.encode_utf8(&mut buffer)))
}

/// Lower-cased, without ASCII punctuation, without the whole words a, an, the, white space collapsed.
pub fn normalize(text: &str) -> String {
    let plain: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let mut kept = String::with_capacity(plain.len());
    let mut before: Option<char> = None;
    let mut rest = plain.as_str();
    while let Some(c) = rest.chars().next() {
        let article = if before.is_some_and(is_word) {
            None
        } else {
            ["the", "an", "a"]
                .into_iter()
                .find(|word| rest.strip_prefix(word).is_some_and(|tail| !tail.chars().next().is_some_and(is_word)))
        };
        let length = article.map_or(c.len_utf8(), str::len);
        if article.is_some() {
            kept.push(' ');
        } else {
            kept.push(c);
        }
        before = rest[..length].chars().next_back();
        rest = &rest[length..];
    }
    let words: Vec<&str> = kept.split(is_space).filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

/// Span tokens: after NFD, runs of letters, digits and marks, or single other visible characters;
/// lower-cased.
pub fn tokens(text: &str) -> Vec<String> {
    if text.is_ascii() {
        return ascii_tokens(text);
    }
    let decomposed: String = text.nfd().collect();
    TOKEN
        .as_ref()
        .map(|token| token.find_iter(&decomposed).map(|found| found.as_str().to_lowercase()).collect())
        .unwrap_or_default()
}

/// [`tokens`] for ASCII, where no table is needed; most of a corpus takes this way.
fn ascii_tokens(text: &str) -> Vec<String> {
    let bytes = text.as_bytes();
    let mut found = Vec::with_capacity(bytes.len() / 5);
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        while at < bytes.len() && bytes[at].is_ascii_alphanumeric() {
            at += 1;
        }
        if at == start {
            at += 1;
            if !bytes[start].is_ascii_graphic() {
                continue;
            }
        }
        found.push(text[start..at].to_ascii_lowercase());
    }
    found
}

/// [`tokens`] of the [`normalize`]d text: what spans are compared in.
pub fn span_tokens(text: &str) -> Vec<String> {
    tokens(&normalize(text))
}

/// Whether `needle` stands contiguously in `hay`; an empty needle always does, as in the reference.
pub fn contains(hay: &[String], needle: &[String]) -> bool {
    needle.is_empty() || hay.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn patterns_compile() {
        assert!(WORD.is_some() && TOKEN.is_some());
    }

    #[test]
    fn words_end_where_pythons_do() {
        assert_eq!(normalize("a\u{301}b"), "\u{301}b", "a combining mark ends the word a");
        assert_eq!(normalize("áb the\u{1f}an"), "áb");
        assert_eq!(normalize("a_b"), "ab", "punctuation goes first");
        assert_eq!(normalize("l'a"), "la");
        assert_eq!(normalize("中a"), "中a");
        assert_eq!(normalize("THE END"), "end");
    }

    #[test]
    fn both_tokenizers_agree_on_ascii() {
        let text = "It's 3.14\tof a~b\u{7f}c  $5";
        let found: Vec<String> = TOKEN.as_ref().unwrap().find_iter(text).map(|m| m.as_str().to_lowercase()).collect();
        assert_eq!(tokens(text), found);
        assert_eq!(tokens("Café №5"), ["cafe\u{301}", "№", "5"]);
    }
}
