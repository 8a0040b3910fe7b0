//! Porter's stemmer of 1980, with the departures of its author's own later code (`bli`, `logi`), as
//! Lucene's `PorterStemFilter` has it. Snowball's English stemmer, the one in most crates, is Porter's
//! second algorithm and gives other stems.

/// Stem of a lower-case word. Words of one or two letters stay.
pub fn stem(word: &str) -> String {
    let mut letters: Vec<char> = word.chars().collect();
    if letters.len() > 2 {
        plural_and_past(&mut letters);
        final_y(&mut letters);
        replace_by(&mut letters, DOUBLE_SUFFIXES);
        replace_by(&mut letters, SINGLE_SUFFIXES);
        drop_suffix(&mut letters);
        final_e(&mut letters);
    }
    letters.into_iter().collect()
}

fn is_consonant(word: &[char], at: usize) -> bool {
    match word[at] {
        'a' | 'e' | 'i' | 'o' | 'u' => false,
        'y' => at == 0 || !is_consonant(word, at - 1),
        _ => true,
    }
}

/// Number of vowel-consonant sequences.
fn measure(stem: &[char]) -> usize {
    let mut count = 0;
    let mut vowel_before = false;
    for at in 0..stem.len() {
        let consonant = is_consonant(stem, at);
        if consonant && vowel_before {
            count += 1;
        }
        vowel_before = !consonant;
    }
    count
}

fn has_vowel(stem: &[char]) -> bool {
    (0..stem.len()).any(|at| !is_consonant(stem, at))
}

fn ends_in_double_consonant(word: &[char]) -> bool {
    let n = word.len();
    n >= 2 && word[n - 1] == word[n - 2] && is_consonant(word, n - 1)
}

/// Consonant, vowel, consonant other than w, x, y: then a dropped e comes back (`hop` + `ing`).
fn ends_in_short_syllable(word: &[char]) -> bool {
    let n = word.len();
    n >= 3
        && is_consonant(word, n - 1)
        && !is_consonant(word, n - 2)
        && is_consonant(word, n - 3)
        && !matches!(word[n - 1], 'w' | 'x' | 'y')
}

/// The length of the stem before `suffix`, when the word ends in it.
fn stem_before(word: &[char], suffix: &str) -> Option<usize> {
    let length = suffix.chars().count();
    let stem = word.len().checked_sub(length)?;
    suffix.chars().eq(word[stem..].iter().copied()).then_some(stem)
}

fn set(word: &mut Vec<char>, stem: usize, ending: &str) {
    word.truncate(stem);
    word.extend(ending.chars());
}

fn plural_and_past(word: &mut Vec<char>) {
    if let Some(stem) = stem_before(word, "sses").or_else(|| stem_before(word, "ies")) {
        // sses -> ss, ies -> i
        let keep = if word.ends_with(&['s', 's', 'e', 's']) { "ss" } else { "i" };
        set(word, stem, keep);
    } else if word.ends_with(&['s']) && !word.ends_with(&['s', 's']) {
        word.pop();
    }
    if let Some(stem) = stem_before(word, "eed") {
        if measure(&word[..stem]) > 0 {
            word.pop();
        }
        return;
    }
    let Some(stem) = stem_before(word, "ed").or_else(|| stem_before(word, "ing")) else { return };
    if !has_vowel(&word[..stem]) {
        return;
    }
    word.truncate(stem);
    if ["at", "bl", "iz"].iter().any(|suffix| stem_before(word, suffix).is_some()) {
        word.push('e');
    } else if ends_in_double_consonant(word) {
        if !matches!(word[word.len() - 1], 'l' | 's' | 'z') {
            word.pop();
        }
    } else if measure(word) == 1 && ends_in_short_syllable(word) {
        word.push('e');
    }
}

fn final_y(word: &mut [char]) {
    let Some(last) = word.len().checked_sub(1) else { return };
    if word[last] == 'y' && has_vowel(&word[..last]) {
        word[last] = 'i';
    }
}

const DOUBLE_SUFFIXES: &[(&str, &str)] = &[
    ("ational", "ate"),
    ("tional", "tion"),
    ("enci", "ence"),
    ("anci", "ance"),
    ("izer", "ize"),
    ("bli", "ble"),
    ("alli", "al"),
    ("entli", "ent"),
    ("eli", "e"),
    ("ousli", "ous"),
    ("ization", "ize"),
    ("ation", "ate"),
    ("ator", "ate"),
    ("alism", "al"),
    ("iveness", "ive"),
    ("fulness", "ful"),
    ("ousness", "ous"),
    ("aliti", "al"),
    ("iviti", "ive"),
    ("biliti", "ble"),
    ("logi", "log"),
];

const SINGLE_SUFFIXES: &[(&str, &str)] =
    &[("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""), ("ness", "")];

/// The first suffix that fits decides, whether or not its stem is long enough.
fn replace_by(word: &mut Vec<char>, rules: &[(&str, &str)]) {
    for (suffix, ending) in rules {
        if let Some(stem) = stem_before(word, suffix) {
            if measure(&word[..stem]) > 0 {
                set(word, stem, ending);
            }
            return;
        }
    }
}

fn drop_suffix(word: &mut Vec<char>) {
    const SUFFIXES: &[&str] = &[
        "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism", "ate",
        "iti", "ous", "ive", "ize",
    ];
    for suffix in SUFFIXES {
        let Some(stem) = stem_before(word, suffix) else { continue };
        if *suffix == "ion" && !matches!(word[..stem].last(), Some('s' | 't')) {
            continue;
        }
        if measure(&word[..stem]) > 1 {
            word.truncate(stem);
        }
        return;
    }
}

fn final_e(word: &mut Vec<char>) {
    if let Some(stem) = stem_before(word, "e") {
        let measured = measure(&word[..stem]);
        if measured > 1 || (measured == 1 && !ends_in_short_syllable(&word[..stem])) {
            word.pop();
        }
    }
    if word.ends_with(&['l', 'l']) && measure(&word[..word.len() - 1]) > 1 {
        word.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Porter's own examples, then cases where Porter's second algorithm differs (`generously`, `dying`).
    #[test]
    fn stems_as_published() {
        for (word, expected) in [
            ("caresses", "caress"),
            ("ponies", "poni"),
            ("ties", "ti"),
            ("cats", "cat"),
            ("feed", "feed"),
            ("agreed", "agre"),
            ("plastered", "plaster"),
            ("motoring", "motor"),
            ("sing", "sing"),
            ("conflated", "conflat"),
            ("hopping", "hop"),
            ("falling", "fall"),
            ("filing", "file"),
            ("happy", "happi"),
            ("sky", "sky"),
            ("relational", "relat"),
            ("vietnamization", "vietnam"),
            ("formality", "formal"),
            ("sensibility", "sensibl"),
            ("hopefulness", "hope"),
            ("electricity", "electr"),
            ("revival", "reviv"),
            ("adjustment", "adjust"),
            ("adoption", "adopt"),
            ("probate", "probat"),
            ("controlling", "control"),
            ("archaeology", "archaeolog"),
            ("generously", "gener"),
            ("dying", "dy"),
            ("by", "by"),
            ("naïveté", "naïveté"),
        ] {
            assert_eq!(stem(word), expected, "{word}");
        }
    }

    /// 1,536 words of the quickstart's corpus, every kind of ending, with the stems of NLTK 3.10's
    /// `PorterStemmer(mode=MARTIN_EXTENSIONS)`.
    #[test]
    fn stems_equal_another_implementation() {
        let fixture = include_str!("../tests/fixtures/porter.tsv");
        for line in fixture.lines() {
            let (word, expected) = line.split_once('\t').unwrap_or((line, ""));
            assert_eq!(stem(word), expected, "{word}");
        }
    }
}
