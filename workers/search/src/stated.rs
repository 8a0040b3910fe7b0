//! Whether an answer states a gold answer, or only names it: denies it, offers it beside others, lists it.
//!
//! A span alone is no answer. These rules need no model; what they cannot see a judge must.

use crate::text::{contains, span_tokens};

/// Words after which a span is denied.
const DENYING: &[&str] = &[
    "not",
    "never",
    "neither",
    "nor",
    "cannot",
    "without",
    "except",
    "excluding",
    "unlike",
    "isnt",
    "wasnt",
    "arent",
    "werent",
    "dont",
    "doesnt",
    "didnt",
    "cant",
    "wont",
    "couldnt",
    "wouldnt",
    "shouldnt",
    "hasnt",
    "havent",
    "hadnt",
    "aint",
    "deny",
    "denies",
    "denied",
    "wrong",
    "incorrect",
    "false",
    "untrue",
    "hardly",
    "barely",
    "no",
];
/// Those of them that name what something is not, and are done with it at the next comma.
const NAMING: &[&str] = &["not", "isnt", "wasnt", "arent", "werent"];
/// Pairs of words that deny what follows.
const DENYING_PAIRS: &[[&str; 2]] = &[
    ["instead", "of"],
    ["rather", "than"],
    ["other", "than"],
    ["anything", "but"],
    ["ruled", "out"],
    ["far", "from"],
    ["opposed", "to"],
];
/// Words that turn a clause round: what was denied before them is not denied after.
const TURNING: &[&str] = &["but", "instead", "however", "actually", "though", "although", "yet"];
/// Words between a span and what is said of it.
const COPULA: &[&str] = &["is", "was", "are", "were", "would", "be", "being", "seems"];
/// Judgements on a span that stands before them.
const REJECTING: &[&str] = &["not", "wrong", "incorrect", "false", "never", "untrue", "mistaken", "no"];
/// Words before a span that a denial reaches over.
const REACH: usize = 6;
/// Parts of an enumeration that hold no gold answer; more than so many make it a list of guesses.
const FOREIGN: usize = 3;

fn words(text: &str) -> Vec<String> {
    span_tokens(text)
}

fn places(haystack: &[String], needle: &[String]) -> Vec<usize> {
    if needle.is_empty() || needle.len() > haystack.len() {
        return Vec::new();
    }
    (0..=haystack.len() - needle.len()).filter(|at| haystack[*at..*at + needle.len()] == *needle).collect()
}

/// What stands between commas. The comma of a number's thousands is none.
fn between_commas(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut from = 0;
    for (at, _) in text.match_indices(',') {
        let digits = text[at + 1..].bytes().take_while(u8::is_ascii_digit).count();
        let thousands = digits == 3 && text[..at].ends_with(|before: char| before.is_ascii_digit());
        if !thousands {
            parts.push(&text[from..at]);
            from = at + 1;
        }
    }
    parts.push(&text[from..]);
    parts
}

/// A clause's words, and for each the part between commas that it stands in.
struct Clause {
    words: Vec<String>,
    part: Vec<usize>,
}

impl Clause {
    fn read(text: &str) -> Self {
        let mut clause = Self { words: Vec::new(), part: Vec::new() };
        for (number, part) in between_commas(text).into_iter().enumerate() {
            clause.words.extend(words(part));
            clause.part.resize(clause.words.len(), number);
        }
        clause
    }

    /// Whether what the word at `place` denies ends before the span at `at`: "Not Rome, Paris" has said what it is
    /// not, and then one thing that it is. A longer list may go on denying.
    fn is_over(&self, place: usize, at: usize, length: usize) -> bool {
        let (own, span) = (self.part[place], self.part[at]);
        let has_object = self.part.get(place + 1) == Some(&own);
        let is_last = self.part.last() == self.part.get(at + length - 1);
        NAMING.contains(&self.words[place].as_str()) && has_object && span == own + 1 && is_last
    }

    /// Whether the word at `place` is a whole part: "No, Paris" answers before it states.
    fn is_alone(&self, place: usize, at: usize) -> bool {
        let own = self.part[place];
        self.part.iter().filter(|part| **part == own).count() == 1 && self.part[at] > own
    }
}

/// Whether the span at `at` of a clause is denied by what stands before or after it.
fn is_denied(clause: &Clause, at: usize, length: usize) -> bool {
    let start = at.saturating_sub(REACH);
    let before = &clause.words[start..at];
    let turned = before.iter().rposition(|word| TURNING.contains(&word.as_str()));
    // "anything but" and "instead of" hold the turning word themselves
    let pair_ends =
        |end: usize| end > 0 && DENYING_PAIRS.iter().any(|[one, two]| before[end - 1] == *one && before[end] == *two);
    for (place, word) in before.iter().enumerate() {
        if place > 0 && pair_ends(place) && !(place > 1 && before[place - 2] == "none") {
            return true;
        }
        if turned.is_some_and(|turn| place < turn) || !DENYING.contains(&word.as_str()) {
            continue;
        }
        // "not only" affirms; "No, it was …" answers before it states
        let only = before.get(place + 1).is_some_and(|next| next == "only");
        let interjection = word == "no" && (before.len() - place > 2 || clause.is_alone(start + place, at));
        if !only && !interjection && !clause.is_over(start + place, at, length) {
            return true;
        }
    }
    let after = &clause.words[at + length..];
    let said: Vec<&str> = after.iter().map(String::as_str).skip_while(|word| COPULA.contains(word)).take(4).collect();
    let copula = after.first().is_some_and(|word| COPULA.contains(&word.as_str()));
    let contracted = after.first().is_some_and(|word| matches!(word.as_str(), "isnt" | "wasnt" | "arent" | "werent"));
    contracted || (copula && said.iter().any(|word| REJECTING.contains(word)) && !said.contains(&"only"))
}

/// Whether no clause of the answer denies a gold answer or asks for it.
fn affirms(answer: &str, golds: &[Vec<String>]) -> bool {
    !answer.split_inclusive(['.', ';', ':', '!', '?', '\n']).any(|text| {
        let (clause, asks) = (Clause::read(text), text.ends_with('?'));
        golds.iter().any(|gold| {
            places(&clause.words, gold).into_iter().any(|at| {
                // a question of several words; "Paris?" is an answer of a model that doubts
                is_denied(&clause, at, gold.len()) || (asks && clause.words.len() > gold.len())
            })
        })
    })
}

/// Whether the answer commits itself: no list of guesses, no "this or that".
fn commits(answer: &str, golds: &[Vec<String>]) -> bool {
    let lower = answer.to_lowercase();
    let parts: Vec<(Vec<String>, bool)> = lower
        .split([';', '\n', '|', '•', '·'])
        .flat_map(between_commas)
        .flat_map(|part| {
            let alternatives: Vec<&str> = part.split(" / ").flat_map(|one| one.split(" or ")).collect();
            let several = alternatives.len() > 1;
            alternatives.into_iter().map(|one| (words(one.trim_start_matches("or ")), several)).collect::<Vec<_>>()
        })
        .filter(|(words, _)| !words.is_empty())
        .collect();
    // a gold answer that itself holds a comma or an "or" lies across parts
    let within = |part: &[String]| {
        golds.iter().any(|gold| contains(part, gold) || (part.len() < gold.len() && !places(gold, part).is_empty()))
    };
    let foreign = parts.iter().filter(|(part, _)| !within(part)).count();
    let alternative = parts.iter().any(|(part, several)| *several && !within(part)) || {
        // the last of "a, b, or c" stands alone
        lower.contains(", or ") && foreign > 0
    };
    foreign <= FOREIGN && !alternative
}

/// Whether an answer that holds a span of a gold answer also states it.
pub fn states(answer: &str, golds: &[String]) -> bool {
    let golds: Vec<Vec<String>> = golds.iter().map(|gold| span_tokens(gold)).filter(|gold| !gold.is_empty()).collect();
    affirms(answer, &golds) && commits(answer, &golds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn states_one(answer: &str, gold: &str) -> bool {
        states(answer, &[gold.to_owned()])
    }

    #[test]
    fn denials_guesses_and_lists_state_nothing() {
        for (answer, gold) in [
            ("Not Paris, but Rome", "Paris"),
            ("It is not Paris.", "Paris"),
            ("It isn't Paris", "Paris"),
            ("Anything but Paris", "Paris"),
            ("Rome rather than Paris", "Paris"),
            ("Paris is wrong", "Paris"),
            ("Paris is not the answer.", "Paris"),
            ("Paris isn't it", "Paris"),
            ("Any city except Paris", "Paris"),
            ("Paris or London", "Paris"),
            ("London, Rome, or Paris", "Paris"),
            ("Either London or Paris", "Paris"),
            ("Paris, London, Rome, Berlin, Madrid", "Paris"),
            ("Paris / London", "Paris"),
            ("12, 345, 678, 901, 234", "345"),
            ("Is it Paris?", "Paris"),
            ("Not Rome, not Paris", "Paris"),
            ("Not Rome, nor Paris", "Paris"),
            ("Not Rome, Paris, London", "Paris"),
            ("Not Rome, Paris or London", "Paris"),
            ("Not, as many think, Paris", "Paris"),
            ("It was not Rome, London, or Paris", "Paris"),
            ("Everywhere without Rome, Paris", "Paris"),
            ("No Paris", "Paris"),
            ("No, not Paris", "Paris"),
            ("No, Paris is wrong", "Paris"),
            ("1901, 1902, 1903, 1904, 1905, 1906", "1904"),
        ] {
            assert!(!states_one(answer, gold), "{answer}");
        }
    }

    #[test]
    fn plain_answers_state_what_they_say() {
        for (answer, gold) in [
            ("Paris", "Paris"),
            ("It was the Beatles.", "Beatles"),
            ("Rome is wrong. It is Paris.", "Paris"),
            ("Not Rome but Paris", "Paris"),
            ("Not Rome, Paris", "Paris"),
            ("It isn't Rome, it is Paris", "Paris"),
            ("Not 1,000, 2,000", "2,000"),
            ("No, Paris", "Paris"),
            ("No, it was Paris", "Paris"),
            ("not only Paris but the whole region", "Paris"),
            ("none other than Paris", "Paris"),
            ("Washington, D.C.", "Washington, D.C."),
            ("October 5, 1962", "October 5, 1962"),
            ("Trick or Treat", "Trick or Treat"),
            ("No", "No"),
            ("Never Let Me Go", "Never Let Me Go"),
            ("1,000,000", "1,000,000"),
            ("From 1,000 to 2,000, 3,000 at most", "3,000"),
            ("Springfield, Sangamon County, Illinois, United States", "Springfield"),
            ("Paris, the capital of France, on the Seine", "Paris"),
        ] {
            assert!(states_one(answer, gold), "{answer}");
        }
        let names = ["Paris", "Lutetia", "City of Light"].map(str::to_owned);
        for answer in [
            "Paris or Lutetia",
            "Either Paris or Lutetia.",
            "Lutetia, or Paris",
            "Paris, Lutetia or the City of Light",
            "Not Rome, Paris or Lutetia",
        ] {
            assert!(states(answer, &names), "{answer}");
        }
        let band = ["John", "Paul", "George", "Ringo"].map(str::to_owned);
        assert!(states("John, Paul, George, Ringo", &band));
    }

    /// Words that no rule knows, all different.
    fn invented() -> impl Strategy<Value = Vec<String>> {
        proptest::collection::hash_set("q[aeiou][b-df-hj-np-tv-z]{3,5}", 6)
            .prop_map(|set| set.into_iter().collect::<Vec<_>>())
            .prop_shuffle()
    }

    proptest! {
        #[test]
        fn what_is_denied_or_left_open_is_never_stated(words in invented()) {
            let [gold, other, third, ..] = words.as_slice() else { return Ok(()) };
            for answer in [
                format!("Not {gold}, {other}"),
                format!("Not {gold}, but {other}"),
                format!("Not {other}, not {gold}"),
                format!("Not {other}, {gold}, {third}"),
                format!("Not {other}, {third}, {gold}"),
                format!("Not {other}, {gold} or {third}"),
                format!("Neither {other} nor {gold}"),
                format!("{gold} or {other}"),
                format!("{other}, or {gold}"),
                format!("{other}, {third} or {gold}"),
                format!("{gold} isn't it, {other} is"),
                format!("Is it {gold}, {other}?"),
                words.join(", "),
            ] {
                prop_assert!(!states(&answer, std::slice::from_ref(gold)), "{}", answer);
            }
        }

        #[test]
        fn what_is_said_plainly_is_stated(words in invented(), aliases in 1usize..4, first in 0usize..3) {
            let (golds, others) = words.split_at(aliases);
            let (gold, other) = (&golds[first % aliases], &others[0]);
            for answer in [
                gold.clone(),
                format!("Not {other}, {gold}"),
                format!("It is not {other}, it is {gold}."),
                format!("No, {gold}"),
                format!("{gold}, not {other}"),
                golds.join(" or "),
                format!("Either {}", golds.join(" or ")),
                golds.join(", or "),
            ] {
                prop_assert!(states(&answer, golds), "{} of {:?}", answer, golds);
            }
        }
    }
}
