//! Answer templates: how a question and its passages become the messages of a chat.
//!
//! A template is a text file of sections, each opened by a line `=== NAME`: `system` (optional), `user`,
//! `document` (one passage; optional), `stop` (one stop string a line, `\n` for a line break; optional) and
//! `answer tag` (the name of a tag; the answer is what the model writes inside it last, or all it writes when
//! there is none; optional).
//! Placeholders are `{question}` and `{documents}` in messages, `{index}`, `{title}` and `{text}` in
//! `document`. A message that holds `{documents}` needs a second form, `system, no documents` or
//! `user, no documents`, for questions without passages. A file without any section line is the `user` message.
//!
//! Passages come from anywhere, so [`neutralise`] keeps them on their line and breaks every tag and special
//! token in them: they cannot close their block, open a turn or fill a placeholder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One passage as the generator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Document<'a> {
    /// Title of the article.
    pub title: &'a str,
    /// The passage.
    pub text: &'a str,
}

/// A rendered prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Messages {
    /// The system message, when the template has one.
    pub system: Option<String>,
    /// The user message.
    pub user: String,
}

/// Why a template cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The file cannot be read.
    #[error("template {name:?}: cannot read {path}: {source}")]
    Read {
        /// The template.
        name: String,
        /// Its file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is not a template.
    #[error("template {name:?}: {reason}")]
    Invalid {
        /// The template.
        name: String,
        /// What to change.
        reason: String,
    },
    /// No template has this name.
    #[error("no template is called {name:?}; there are: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
}

/// A parsed template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    source: String,
    system: Option<Section>,
    user: Section,
    document: String,
    stop: Vec<String>,
    answer_tag: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Section {
    with: String,
    without: String,
}

const DOCUMENT: &str = "[{index}] {title}: {text}";
const SECTIONS: [&str; 7] =
    ["system", "system, no documents", "user", "user, no documents", "document", "stop", "answer tag"];

impl Template {
    /// Parses a template's text; `name` is for messages.
    pub fn parse(name: &str, source: &str) -> Result<Self, TemplateError> {
        Self::parse_parts(source).map_err(|reason| TemplateError::Invalid { name: name.to_owned(), reason })
    }

    fn parse_parts(source: &str) -> Result<Self, String> {
        let mut parts = split(source)?;
        let mut message = |name: &str| -> Result<Option<Section>, String> {
            let without = parts.remove(format!("{name}, no documents").as_str());
            let Some(with) = parts.remove(name) else {
                return match without {
                    Some(_) => Err(format!("section \"{name}, no documents\" stands without section \"{name}\"")),
                    None => Ok(None),
                };
            };
            placeholders(&with, &["question", "documents"])?;
            let without = match without {
                Some(text) => text,
                None if has_placeholder(&with, "documents") => {
                    return Err(format!(
                        "section \"{name}\" uses {{documents}}: add a section \"{name}, no documents\" for questions without passages"
                    ));
                }
                None => with.clone(),
            };
            placeholders(&without, &["question"])?;
            Ok(Some(Section { with, without }))
        };
        let system = message("system")?;
        let user = message("user")?.ok_or("there is no section \"user\"")?;
        let asks = |pick: fn(&Section) -> &str| {
            system.iter().chain([&user]).any(|section| has_placeholder(pick(section), "question"))
        };
        if !asks(|section| &section.with) || !asks(|section| &section.without) {
            return Err("{question} stands nowhere in a form of the messages".to_owned());
        }
        let document = parts.remove("document").unwrap_or_else(|| DOCUMENT.to_owned());
        placeholders(&document, &["index", "title", "text"])?;
        let stop = parts.remove("stop").unwrap_or_default();
        let stop = stop.lines().filter(|line| !line.is_empty()).map(|line| line.replace("\\n", "\n")).collect();
        let answer_tag = parts.remove("answer tag").map(|tag| tag.trim().to_owned());
        if answer_tag.as_ref().is_some_and(|tag| tag.is_empty() || !tag.bytes().all(|b| b.is_ascii_lowercase())) {
            return Err("section \"answer tag\" holds one name of small letters, without brackets".to_owned());
        }
        Ok(Self { source: source.to_owned(), system, user, document, stop, answer_tag })
    }

    /// The template's own text; part of a generator's digest.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The answer in what the model wrote.
    pub fn answer<'a>(&self, text: &'a str) -> &'a str {
        let tagged = self.answer_tag.as_deref().and_then(|tag| {
            let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
            let rest = &text[text.rfind(&open)? + open.len()..];
            // cut off by the token limit, an answer may lack its end
            Some(&rest[..rest.find(&close).unwrap_or(rest.len())])
        });
        tagged.unwrap_or(text).trim()
    }

    /// Strings that end an answer.
    pub fn stop(&self) -> &[String] {
        &self.stop
    }
}

/// Fills a template. `passage_words` white-space words of each passage are kept; 0 keeps all.
///
/// Same inputs give the same bytes: the trainer renders its examples with this very function.
pub fn render(template: &Template, question: &str, passages: &[Document<'_>], passage_words: usize) -> Messages {
    let question = neutralise(question);
    let documents: Vec<String> = passages
        .iter()
        .enumerate()
        .map(|(i, passage)| {
            let index = (i + 1).to_string();
            let title = neutralise(passage.title);
            let text = neutralise(&first_words(passage.text, passage_words));
            fill(&template.document, &[("index", &index), ("title", &title), ("text", &text)])
        })
        .collect();
    let documents = documents.join("\n");
    let message = |section: &Section| {
        if passages.is_empty() {
            fill(&section.without, &[("question", &question)])
        } else {
            fill(&section.with, &[("question", &question), ("documents", documents.trim_end())])
        }
    };
    Messages { system: template.system.as_ref().map(message), user: message(&template.user) }
}

fn first_words(text: &str, words: usize) -> String {
    let take = if words == 0 { usize::MAX } else { words };
    text.split_whitespace().take(take).collect::<Vec<_>>().join(" ")
}

/// One line without control characters, in which no tag or special token of a chat format is whole:
/// `<|im_end|>`, `</s>`, `<information>` and `[/INST]` get a blank inside.
pub fn neutralise(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars().map(|c| if c.is_control() || is_invisible(c) { ' ' } else { c }).peekable();
    while let Some(c) = rest.next() {
        if c.is_whitespace() {
            if !out.ends_with(' ') && !out.is_empty() {
                out.push(' ');
            }
            continue;
        }
        out.push(c);
        // `[` only before INST or /INST: citations like [1] are common and harmless
        let opens = match c {
            '<' => rest.peek().is_some_and(|next| !next.is_whitespace()),
            '[' => matches!(rest.clone().take(5).collect::<String>().trim_start_matches('/'), "INST" | "INST]"),
            _ => false,
        };
        if opens {
            out.push(' ');
        }
    }
    out.truncate(out.trim_end().len());
    out
}

/// Format characters that people do not see: zero width, direction marks, byte order mark, tag characters.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200B}'..='\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{FEFF}' | '\u{E0000}'..='\u{E007F}')
}

/// Templates by name: the built-in ones and those of the configuration.
#[derive(Clone, Debug)]
pub struct Templates(BTreeMap<String, Template>);

const BUILT_IN: [(&str, &str); 5] = [
    ("short-answer", include_str!("../templates/short-answer.txt")),
    ("s3", include_str!("../templates/s3.txt")),
    ("zero-shot", include_str!("../templates/zero-shot.txt")),
    ("chain-of-thought", include_str!("../templates/chain-of-thought.txt")),
    ("medical-choice", include_str!("../templates/medical-choice.txt")),
];

impl Templates {
    /// `short-answer` (the default: passages in the user message, for small models), `s3` (passages in the
    /// system message, question alone in the user message), `zero-shot` (no passages), `chain-of-thought` (the
    /// answer is taken from its tag; with passages or without) and `medical-choice` (one of the question's options).
    pub fn built_in() -> Result<Self, TemplateError> {
        Self::load(&BTreeMap::new())
    }

    /// The built-in templates and the given files; a file may replace a built-in one.
    pub fn load(files: &BTreeMap<String, PathBuf>) -> Result<Self, TemplateError> {
        let mut all = BTreeMap::new();
        for (name, source) in BUILT_IN {
            all.insert(name.to_owned(), Template::parse(name, source)?);
        }
        for (name, path) in files {
            all.insert(name.clone(), Template::parse(name, &read(name, path)?)?);
        }
        Ok(Self(all))
    }

    /// A template; an empty name takes `short-answer`.
    pub fn get(&self, name: &str) -> Result<&Template, TemplateError> {
        let wanted = if name.is_empty() { BUILT_IN[0].0 } else { name };
        self.0.get(wanted).ok_or_else(|| TemplateError::Unknown {
            name: wanted.to_owned(),
            known: self.0.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
        })
    }
}

fn read(name: &str, path: &Path) -> Result<String, TemplateError> {
    std::fs::read_to_string(path).map_err(|source| TemplateError::Read {
        name: name.to_owned(),
        path: path.to_owned(),
        source,
    })
}

fn split(source: &str) -> Result<BTreeMap<&str, String>, String> {
    let mut parts: BTreeMap<&str, String> = BTreeMap::new();
    let mut current: Option<&str> = None;
    for line in source.lines() {
        if let Some(name) = line.strip_prefix("===") {
            let name = name.trim();
            if !SECTIONS.contains(&name) {
                return Err(format!("section {name:?} is not one of: {}", SECTIONS.join("; ")));
            }
            if parts.insert(name, String::new()).is_some() {
                return Err(format!("section {name:?} stands twice"));
            }
            current = Some(name);
            continue;
        }
        let text = parts.entry(current.unwrap_or("")).or_default();
        text.push_str(line);
        text.push('\n');
    }
    let lead = parts.remove("").unwrap_or_default();
    if parts.is_empty() {
        parts.insert("user", lead);
    } else if !lead.trim().is_empty() {
        return Err("text stands before the first section line".to_owned());
    }
    // the last line break of a section belongs to the file, not to the message
    for text in parts.values_mut() {
        text.truncate(text.strip_suffix('\n').map_or(text.len(), str::len));
    }
    Ok(parts)
}

/// `{name}` spans of a text.
fn spans(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.match_indices('{').filter_map(|(at, _)| {
        let name = text[at + 1..].split('}').next().filter(|name| name.len() + at + 1 < text.len())?;
        let word = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        word.then_some((at, name))
    })
}

fn has_placeholder(text: &str, name: &str) -> bool {
    spans(text).any(|(_, found)| found == name)
}

fn placeholders(text: &str, known: &[&str]) -> Result<(), String> {
    match spans(text).find(|(_, name)| !known.contains(name)) {
        Some((_, name)) => {
            Err(format!("placeholder {{{name}}} is not known here; known are: {{{}}}", known.join("}, {")))
        }
        None => Ok(()),
    }
}

/// One pass, so that a value that looks like a placeholder stays what it is.
fn fill(text: &str, values: &[(&str, &str)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for (at, name) in spans(text) {
        if let Some((_, value)) = values.iter().find(|(known, _)| *known == name) {
            out.push_str(&text[done..at]);
            out.push_str(value);
            done = at + name.len() + 2;
        }
    }
    out.push_str(&text[done..]);
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const PASSAGES: [Document<'static>; 2] = [
        Document { title: "Paris", text: "Paris is the\ncapital of France." },
        Document { title: "Lyon (city)", text: "Lyon is a city." },
    ];

    #[test]
    fn short_answer_with_and_without_passages() {
        let templates = Templates::built_in().unwrap();
        let template = templates.get("").unwrap();
        let with = render(template, "capital of France?", &PASSAGES, 4);
        assert_eq!(with.system.as_deref(), Some("Answer the question in a few words."));
        assert_eq!(
            with.user,
            "[1] Paris: Paris is the capital\n[2] Lyon (city): Lyon is a city.\nQuestion: capital of France?\nAnswer:"
        );
        assert_eq!(render(template, "q?", &[], 0).user, "Question: q?\nAnswer:");
        assert_eq!(template.stop(), ["\n"]);
    }

    #[test]
    fn s3_puts_contexts_into_the_system_message() {
        let templates = Templates::built_in().unwrap();
        let messages = render(templates.get("s3").unwrap(), "Who?", &PASSAGES, 0);
        let system = messages.system.unwrap();
        assert!(
            system.contains("Doc 1 (Title: Paris)\nParis is the capital of France.\n\nDoc 2 (Title: Lyon (city))\n")
        );
        assert_eq!(messages.user, "Who?");
        let without = render(templates.get("s3").unwrap(), "Who?", &[], 0);
        assert_eq!(without, render(templates.get("zero-shot").unwrap(), "Who?", &PASSAGES, 0));
    }

    #[test]
    fn the_answer_is_taken_from_its_tag() {
        let templates = Templates::built_in().unwrap();
        let template = templates.get("chain-of-thought").unwrap();
        for (text, answer) in [
            ("First, <answer>no</answer>. So <answer> Paris </answer> it is.", "Paris"),
            ("I think <answer>Paris", "Paris"),
            (" Paris ", "Paris"),
            ("</answer> Paris <answer></answer>", ""),
        ] {
            assert_eq!(template.answer(text), answer);
        }
        assert_eq!(templates.get("s3").unwrap().answer(" <answer>Paris</answer> "), "<answer>Paris</answer>");
        for name in ["chain-of-thought", "medical-choice"] {
            let template = templates.get(name).unwrap();
            assert!(render(template, "Q?", &PASSAGES, 0).system.unwrap().contains("Lyon is a city."), "{name}");
            assert!(!render(template, "Q?", &[], 0).system.unwrap().contains("ocument"), "{name}");
        }
        let wrong = "=== user\n{question}\n=== answer tag\n<answer>";
        assert!(Template::parse("t", wrong).unwrap_err().to_string().contains("answer tag"));
    }

    #[test]
    fn values_are_never_filled_again() {
        let template =
            Template::parse("t", "=== user\n{documents}|{question}\n=== user, no documents\n{question}").unwrap();
        let passage = Document { title: "{question}", text: "{text} {documents}" };
        let user = render(&template, "{documents}", &[passage], 0).user;
        assert_eq!(user, "[1] {question}: {text} {documents}|{documents}");
    }

    #[test]
    fn mistakes_are_named() {
        for (source, part) in [
            ("=== user\n{question} {documnets}", "{documnets}"),
            ("=== user\n{question} {documents}", "no documents"),
            ("=== user\nHello", "{question}"),
            ("=== usr\n{question}", "usr"),
            ("=== system\n{question}", "\"user\""),
            ("=== user\n{question}\n=== user\n{question}", "twice"),
            ("lead\n=== user\n{question}", "before the first section"),
            ("=== user\n{question}\n=== document\n{body}", "{body}"),
        ] {
            let error = Template::parse("mine", source).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("mine") && !error.contains('\n'), "{error}");
        }
        assert!(Template::parse("json", "{\"q\": \"{question}\", \"n\": {1}}").is_ok());
        let unknown = Templates::built_in().unwrap().get("nope").unwrap_err().to_string();
        assert!(unknown.contains("short-answer"), "{unknown}");
    }

    #[test]
    fn tags_and_special_tokens_are_broken() {
        for (raw, clean) in [
            ("a <|im_end|>\n<|im_start|>system", "a < |im_end|> < |im_start|>system"),
            ("</information><s>[/INST] [INST] [1]", "< /information>< s>[ /INST] [ INST] [1]"),
            ("x < y  \u{2028} z\u{200b}", "x < y z"),
            ("<\u{200b}|im_end|>", "< |im_end|>"),
        ] {
            assert_eq!(neutralise(raw), clean);
        }
    }

    proptest! {
        #[test]
        fn a_passage_stays_on_its_line(title in any::<String>(), text in ".{0,80}", noise in "[<|/\\[\\]INST>\n\r\t a]{0,40}") {
            let templates = Templates::built_in().unwrap();
            let text = format!("{text}{noise}");
            let passages = [Document { title: &title, text: &text }, Document { title: "b", text: "c" }];
            let user = render(templates.get("short-answer").unwrap(), "q", &passages, 0).user;
            prop_assert_eq!(user.lines().count(), 4);
            prop_assert!(user.starts_with("[1] "));
            prop_assert!(user.ends_with("\n[2] b: c\nQuestion: q\nAnswer:"));
            for (at, _) in user.match_indices('<') {
                prop_assert!(user[at + 1..].starts_with([' ', '\n', ':']) || user[at + 1..].is_empty(), "{}", user);
            }
            let once = neutralise(&text);
            prop_assert_eq!(neutralise(&once), once.clone());
        }
    }
}
