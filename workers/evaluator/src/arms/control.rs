//! Control retrievers: what an arm is worth when its searches find nothing, anything, or the answer.

use crate::error::EvalError;
use crate::questions::QuestionSet;
use s3_config::RetrievalMethod;
use s3_rollout::{Retrieve, RetrieverPeer, RolloutError, question_key};
use s3_search::{Passage, Question, eligible};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Passages with a gold answer that are kept of each question.
const HOLDERS: usize = 64;
/// Passages of the index's ranking that the oracle orders by.
const DEPTH: u32 = 100;

/// A corpus whose passages are read when they are wanted: only the places of its lines are kept.
pub struct Corpus {
    path: PathBuf,
    file: File,
    /// Where each line begins, and where the last one ends.
    lines: Vec<u64>,
}

impl Corpus {
    /// Finds the lines of a JSON-lines file.
    pub fn open(path: &Path) -> Result<Self, EvalError> {
        let file = File::open(path).map_err(|error| EvalError::read(path, error))?;
        let (mut lines, mut at, mut line) = (vec![0], 0, Vec::new());
        let mut reader = BufReader::with_capacity(1 << 20, &file);
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).map_err(|error| EvalError::read(path, error))? as u64;
            if read == 0 {
                break;
            }
            at += read;
            if line.iter().all(u8::is_ascii_whitespace) {
                // a blank line is no passage; it stands behind the one before
                if let Some(last) = lines.last_mut() {
                    *last = at;
                }
            } else {
                lines.push(at);
            }
        }
        if lines.len() < 2 {
            return Err(EvalError::Config(format!("the corpus {} has no passage", path.display())));
        }
        Ok(Self { path: path.to_owned(), file, lines })
    }

    /// How many passages there are.
    pub fn len(&self) -> usize {
        self.lines.len() - 1
    }

    /// One passage.
    pub fn passage(&self, place: usize) -> Result<Passage, EvalError> {
        let (start, end) = (self.lines[place], self.lines[place + 1]);
        let mut bytes = vec![0; usize::try_from(end - start).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut bytes, start).map_err(|error| EvalError::read(&self.path, error))?;
        let fault = |reason: String| EvalError::Line { path: self.path.clone(), line: place + 1, reason };
        let row: Value = serde_json::from_slice(&bytes).map_err(|error| fault(error.to_string()))?;
        let text = |key: &str| row.get(key).and_then(Value::as_str).map(str::to_owned);
        let id = match &row["id"] {
            Value::String(id) => id.clone(),
            Value::Number(id) => id.to_string(),
            _ => return Err(fault("it has no id".to_owned())),
        };
        if let Some(body) = text("text") {
            return Ok(Passage { id, title: text("title").unwrap_or_default(), text: body });
        }
        // the reference's form: the title is the first line, in quotes
        let Some(contents) = text("contents") else { return Err(fault("it has neither text nor contents".to_owned())) };
        let (title, text) = contents.split_once('\n').unwrap_or(("", &contents));
        Ok(Passage { id, title: title.trim_matches('"').to_owned(), text: text.to_owned() })
    }
}

/// The controls.
pub enum ControlRetriever {
    /// Finds nothing.
    Empty,
    /// Finds passages drawn by (seed, question, query).
    Random {
        /// Drawn from.
        corpus: Arc<Corpus>,
        /// Of the run.
        seed: u64,
    },
    /// Finds the passages first that hold a gold answer, or that the set marks as evidence: those that the index ranks in
    /// its order, then the others in the corpus's; then what else the index ranks.
    Oracle {
        /// By question.
        golds: BTreeMap<String, Vec<Passage>>,
        /// The index, where there is one.
        base: Option<Box<RetrieverPeer>>,
    },
}

impl ControlRetriever {
    /// Reads the corpus once and keeps the passages with a gold answer of each question.
    pub fn oracle(corpus: &Corpus, questions: &[Question], base: Option<RetrieverPeer>) -> Result<Self, EvalError> {
        let mut fault = None;
        let texts = (0..corpus.len()).map_while(|place| match corpus.passage(place) {
            Ok(passage) => Some((passage.title, passage.text)),
            Err(error) => {
                fault = Some(error);
                None
            }
        });
        let holders = eligible::holders(questions, texts, HOLDERS);
        if let Some(fault) = fault {
            return Err(fault);
        }
        let mut golds: BTreeMap<String, Vec<Passage>> = BTreeMap::new();
        for (question, places) in questions.iter().zip(holders) {
            let passages = places.into_iter().map(|place| corpus.passage(place)).collect::<Result<Vec<_>, _>>()?;
            golds.insert(key(question), passages);
        }
        Ok(Self::Oracle { golds, base: base.map(Box::new) })
    }

    /// Reads the corpus once and keeps the passages of each question's evidence titles; refused where no question has any.
    pub fn evidence(corpus: &Corpus, set: &QuestionSet, base: Option<RetrieverPeer>) -> Result<Self, EvalError> {
        let wanted: BTreeSet<&str> = set.evidence.iter().flatten().map(String::as_str).collect();
        if wanted.is_empty() {
            let why = "retriever.control Evidence: no question of these sets has evidence marked; use Oracle";
            return Err(EvalError::Config(why.into()));
        }
        let mut titled: BTreeMap<String, Vec<Passage>> = BTreeMap::new();
        for place in 0..corpus.len() {
            let passage = corpus.passage(place)?;
            if wanted.contains(passage.title.as_str()) {
                titled.entry(passage.title.clone()).or_default().push(passage);
            }
        }
        let mut golds = BTreeMap::new();
        for (question, titles) in set.questions.iter().zip(&set.evidence) {
            golds.insert(
                key(question),
                titles.iter().filter_map(|title| titled.get(title)).flatten().cloned().collect(),
            );
        }
        Ok(Self::Oracle { golds, base: base.map(Box::new) })
    }
}

/// What tells questions apart, those of equal ids too.
fn key(question: &Question) -> String {
    format!("{}\n{}", question_key(question), question.question)
}

/// `count` different places below `length`, by hash.
fn draw(seed: u64, question: &str, query: &str, length: usize, count: usize) -> Result<Vec<usize>, RolloutError> {
    let mut places = Vec::new();
    let mut seen = BTreeSet::new();
    let mut round = 0u64;
    while places.len() < count.min(length) {
        let digest = s3_artifacts::digest_json(&("random passage", seed, question, query, round))?;
        let number = u64::from_str_radix(digest.get(..16).unwrap_or_default(), 16).unwrap_or(round);
        let place = (number % length as u64) as usize;
        if seen.insert(place) {
            places.push(place);
        }
        round += 1;
    }
    Ok(places)
}

/// Golds first, each passage once.
fn golds_first(golds: &[Passage], ranked: Vec<Passage>, top_k: usize) -> Vec<Passage> {
    let holds: HashMap<&str, &Passage> = golds.iter().map(|passage| (passage.id.as_str(), passage)).collect();
    let (first, rest): (Vec<_>, Vec<_>) =
        ranked.into_iter().partition(|passage| holds.contains_key(passage.id.as_str()));
    let mut seen = BTreeSet::new();
    let all = first.into_iter().chain(golds.iter().cloned()).chain(rest);
    all.filter(|passage| seen.insert(passage.id.clone())).take(top_k).collect()
}

impl Retrieve for ControlRetriever {
    fn retrieve(&self, queries: &[String], _: u32, _: RetrievalMethod) -> Result<Vec<Vec<Passage>>, RolloutError> {
        match self {
            Self::Empty => Ok(vec![Vec::new(); queries.len()]),
            Self::Random { .. } | Self::Oracle { .. } => {
                let reason = "a control was asked without a question".to_owned();
                Err(RolloutError::Reply { service: "control retriever", reason })
            }
        }
    }

    fn retrieve_for(
        &self,
        questions: &[&Question],
        queries: &[String],
        top_k: u32,
        method: RetrievalMethod,
    ) -> Result<Vec<Vec<Passage>>, RolloutError> {
        let broken = |error: EvalError| RolloutError::Reply { service: "corpus", reason: error.to_string() };
        let asked = questions.iter().zip(queries);
        match self {
            Self::Empty => self.retrieve(queries, top_k, method),
            Self::Random { corpus, seed } => asked
                .map(|(question, query)| {
                    let places = draw(*seed, &key(question), query, corpus.len(), top_k as usize)?;
                    places.into_iter().map(|place| corpus.passage(place).map_err(broken)).collect()
                })
                .collect(),
            Self::Oracle { golds, base } => {
                let ranked = match base {
                    Some(base) => base.retrieve(queries, top_k.max(DEPTH.min(base.deepest())), method)?,
                    None => vec![Vec::new(); queries.len()],
                };
                let one = |((question, _), ranked): ((&&Question, &String), Vec<Passage>)| {
                    let golds = golds.get(&key(question)).map(Vec::as_slice).unwrap_or_default();
                    golds_first(golds, ranked, top_k as usize)
                };
                Ok(asked.zip(ranked).map(one).collect())
            }
        }
    }

    fn looks_at_questions(&self) -> bool {
        !matches!(self, Self::Empty)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn corpus(dir: &Path) -> Arc<Corpus> {
        let path = dir.join("corpus.jsonl");
        let rows = [
            r#"{"id":"a","title":"France","text":"Paris is its capital."}"#,
            "",
            r#"{"id":2,"contents":"\"Spain\"\nMadrid is its capital."}"#,
            r#"{"id":"c","title":"Paris","text":"A prince of Troy."}"#,
        ];
        std::fs::write(&path, rows.join("\n")).unwrap();
        Arc::new(Corpus::open(&path).unwrap())
    }

    fn question(id: &str, golds: &[&str]) -> Question {
        let answers = golds.iter().map(|gold| (*gold).to_owned()).collect();
        Question { id: id.into(), dataset: "d".into(), question: format!("{id}?"), answers }
    }

    #[test]
    fn passages_are_read_where_they_stand() {
        let dir = tempfile::tempdir().unwrap();
        let corpus = corpus(dir.path());
        let all: Vec<Passage> = (0..corpus.len()).map(|place| corpus.passage(place).unwrap()).collect();
        let seen: Vec<(&str, &str)> = all.iter().map(|p| (p.id.as_str(), p.title.as_str())).collect();
        assert_eq!(seen, [("a", "France"), ("2", "Spain"), ("c", "Paris")]);
        assert_eq!(all[1].text, "Madrid is its capital.");
        std::fs::write(dir.path().join("bad"), "{\"id\":\"x\"}\n").unwrap();
        let bad = Corpus::open(&dir.path().join("bad")).unwrap();
        assert!(bad.passage(0).unwrap_err().to_string().contains("line 1"));
        std::fs::write(dir.path().join("none"), "\n").unwrap();
        assert!(Corpus::open(&dir.path().join("none")).is_err());
    }

    #[test]
    fn evidence_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let corpus = corpus(dir.path());
        let mut set =
            QuestionSet { questions: vec![question("q", &["Troy"]), question("r", &[])], ..QuestionSet::default() };
        set.evidence = vec![vec!["Spain".into(), "Paris".into()], Vec::new()];
        let control = ControlRetriever::evidence(&corpus, &set, None).unwrap();
        let asked: Vec<&Question> = set.questions.iter().collect();
        let found = control.retrieve_for(&asked, &["x".into(), "y".into()], 3, RetrievalMethod::Default).unwrap();
        let titles = |at: usize| found[at].iter().map(|passage| passage.title.as_str()).collect::<Vec<_>>();
        assert_eq!((titles(0), titles(1)), (vec!["Spain", "Paris"], Vec::new()));
        set.evidence.clear();
        assert!(
            ControlRetriever::evidence(&corpus, &set, None).is_err_and(|error| error.to_string().contains("Oracle"))
        );
    }

    #[test]
    fn the_random_one_repeats_and_differs() {
        let dir = tempfile::tempdir().unwrap();
        let of = |seed| ControlRetriever::Random { corpus: corpus(dir.path()), seed };
        let (a, b) = (question("a", &[]), question("b", &[]));
        let ask = |control: &ControlRetriever, question: &Question| {
            let found = control.retrieve_for(&[question], &["q".into()], 2, RetrievalMethod::Default).unwrap();
            found[0].iter().map(|passage| passage.id.clone()).collect::<Vec<_>>()
        };
        assert_eq!(ask(&of(1), &a), ask(&of(1), &a));
        let drawn: BTreeSet<_> = (0..9).flat_map(|seed| [ask(&of(seed), &a), ask(&of(seed), &b)]).collect();
        assert!(drawn.len() > 3, "{drawn:?}");
        assert!(drawn.iter().all(|ids| ids.len() == 2 && ids[0] != ids[1]));
        let most = of(1).retrieve_for(&[&a], &["q".into()], 9, RetrievalMethod::Default).unwrap();
        assert_eq!(most[0].len(), 3, "no more than there are");
        assert!(of(1).looks_at_questions() && of(1).retrieve(&["q".into()], 1, RetrievalMethod::Default).is_err());
    }

    #[test]
    fn the_oracle_gives_golds_first() {
        let dir = tempfile::tempdir().unwrap();
        let questions = [question("capital", &["Paris"]), question("other", &["Lisbon"])];
        let oracle = ControlRetriever::oracle(&corpus(dir.path()), &questions, None).unwrap();
        let asked: Vec<&Question> = questions.iter().collect();
        let found = oracle.retrieve_for(&asked, &["x".into(), "x".into()], 5, RetrievalMethod::Default).unwrap();
        let ids = |at: usize| found[at].iter().map(|passage| passage.id.as_str()).collect::<Vec<_>>();
        assert_eq!((ids(0), ids(1)), (vec!["a", "c"], vec![]));
        let p = |id: &str| Passage { id: id.into(), ..Passage::default() };
        let merged = golds_first(&[p("a"), p("c")], vec![p("x"), p("c"), p("y")], 4);
        assert_eq!(merged.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), ["c", "a", "x", "y"]);
    }

    #[test]
    fn the_empty_one_is_empty() {
        let found = ControlRetriever::Empty.retrieve(&["a".into(), "b".into()], 3, RetrievalMethod::Default).unwrap();
        assert_eq!(found, vec![Vec::new(), Vec::new()]);
    }
}
