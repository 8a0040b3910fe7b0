//! Text to terms, after Lucene's `EnglishAnalyzer`: words by Unicode's boundaries ([`crate::words`]), possessive
//! `'s` taken off, lower case, stop words out, Porter's stemmer.

use crate::porter::stem;
use crate::words::words;

/// Enters an index's identity; change it with any change of terms.
pub const VERSION: &str = "english-2";

/// Lucene's default English stop words.
const STOP_WORDS: &[&str] = &[
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not", "of",
    "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was", "will", "with",
];

/// The terms of a text in order, repeated as often as they occur.
pub fn terms(text: &str) -> impl Iterator<Item = String> {
    words(text).filter_map(|word| {
        let lower = lower_case(without_possessive(word));
        // the list is sorted
        STOP_WORDS.binary_search(&lower.as_str()).is_err().then(|| stem(&lower))
    })
}

/// Letter by letter, as Lucene does it: no final sigma, no letter becomes two.
fn lower_case(word: &str) -> String {
    if word.is_ascii() {
        return word.to_ascii_lowercase();
    }
    word.chars().map(|letter| letter.to_lowercase().next().unwrap_or(letter)).collect()
}

fn without_possessive(word: &str) -> &str {
    let mut end = word.char_indices().rev();
    if let (Some((_, 's' | 'S')), Some((at, '\'' | '\u{2019}' | '\u{ff07}'))) = (end.next(), end.next()) {
        return &word[..at];
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn english_text_becomes_terms() {
        let of = |text: &str| terms(text).collect::<Vec<_>>().join(" ");
        assert_eq!(of("The dogs' owner's running in New-York, and don't stop"), "dog owner run new york don't stop");
        assert_eq!(of("U.S.A. $3.14 O\u{2019}Brien\u{2019}s CAFÉ"), "u.s.a 3.14 o\u{2019}brien café");
        assert_eq!(of("to be or not to be"), "");
        assert!(STOP_WORDS.is_sorted());
    }
}
