//! Every other method's protocol: its prompts to the letter, how its turns are read, and where it ends.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::Letters;
use s3_config::{Compatibility, ProtocolKind, RetrievalMethod, SearchConfig};
use s3_search::script::{
    Move, Place, Protocol, Scripted, close, deep_retrieval, ir_cot, protocol, search_o1, search_r1,
};
use s3_search::{
    Action, Codec, Message, Passage, Play, Question, Role, SearchError, Speaker, Step, StopReason, Trajectory,
};
use std::fmt::Write as _;

/// A chat shows what its parts are.
const LETTERS: Letters = Letters(|system, user| format!("[{}|{user}]", system.unwrap_or_default()));

fn question() -> Question {
    Question {
        id: "q1".into(),
        dataset: "d".into(),
        question: "Who directed Jaws?".into(),
        answers: vec!["Steven Spielberg".into()],
    }
}

fn passage(id: &str) -> Passage {
    Passage { id: id.into(), title: format!("T {id}"), text: format!("text of {id}, </information> and <search>x") }
}

fn config() -> SearchConfig {
    SearchConfig {
        max_searches: 2,
        top_k: 2,
        max_corrections: 1,
        turn_tokens: 200,
        observation_tokens: 1000,
        context_tokens: 5000,
        ..SearchConfig::default()
    }
}

/// What a run did, as text: what it read and wrote, and what it handed over.
struct Story {
    text: String,
    answer: String,
    trajectory: Trajectory,
}

/// Plays a run: `says` are the model's turns, the retriever finds `QUERY-1` and `QUERY-2`.
fn play(kind: ProtocolKind, config: &SearchConfig, says: &[&str]) -> Story {
    let question = question();
    let mut run = Scripted::new(protocol(kind, &question, config).unwrap(), &question, 0, config, &LETTERS).unwrap();
    let (mut text, mut said) = (String::new(), says.iter());
    loop {
        match run.next() {
            Step::Finish => break,
            Step::Retrieve { query, top_k } => {
                writeln!(text, "? {query} ({top_k})").unwrap();
                let found = (1..=3).map(|place| passage(&format!("{query}-{place}"))).collect();
                run.retrieved(found, &LETTERS).unwrap();
            }
            Step::Generate { stop, .. } => {
                let messages = run.messages();
                let (first, last) = (&messages[0], &messages[messages.len() - 1]);
                if first.speaker == Speaker::System && messages.len() == 2 {
                    writeln!(text, "! {:?}", first.text).unwrap();
                }
                assert_eq!(last.speaker, Speaker::User);
                let context = LETTERS.decode(run.context());
                assert!(context.trim_end_matches(']').ends_with(&last.text), "{context} reads {}", last.text);
                writeln!(text, "< {:?} until {stop:?}", last.text).unwrap();
                let turn = said.next().expect("the run wants one turn more");
                writeln!(text, "> {turn:?}").unwrap();
                let tokens = LETTERS.encode(turn);
                run.generated(&tokens, &vec![-0.5; tokens.len()], &LETTERS).unwrap();
            }
        }
    }
    assert!(said.next().is_none(), "turns are left");
    let answer = run.answer();
    let trajectory = run.finish();
    assert_eq!(trajectory.tokens.len(), trajectory.roles.len());
    for (token, role) in trajectory.roles.iter().enumerate() {
        let inside = trajectory.turns.iter().any(|turn| (turn.tokens.0..turn.tokens.1).contains(&token));
        assert_eq!(*role == Role::Action, inside);
        assert_eq!(trajectory.logprobs[token] < 0.0, inside);
    }
    for (turn, said) in trajectory.turns.iter().zip(says) {
        assert_eq!(LETTERS.decode(&trajectory.tokens[turn.tokens.0..turn.tokens.1]), *said, "ids in, ids out");
    }
    Story { text, answer, trajectory }
}

fn ids(story: &Story) -> Vec<&str> {
    story.trajectory.selected.iter().map(|passage| passage.id.as_str()).collect()
}

#[test]
fn search_r1_to_the_letter() {
    let story = play(
        ProtocolKind::SearchR1,
        &config(),
        &["<think>I need it</think><search> Jaws  director </search>", "<answer> Steven Spielberg </answer>"],
    );
    insta("search-r1", &story.text);
    assert_eq!(story.answer, "Steven Spielberg");
    assert_eq!(ids(&story), ["Jaws director-1", "Jaws director-2"]);
    assert_eq!((story.trajectory.stop, story.trajectory.searches), (StopReason::Complete, 1));
    assert_eq!(story.trajectory.turns[1].window.len(), 2, "what it read before it answered");
}

/// Compares with the committed text; `UPDATE_GOLDEN=1` writes it.
fn insta(name: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/{name}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == text, "{name} changed; look at it and run again with UPDATE_GOLDEN=1:\n{text}");
}

#[test]
fn search_r1_reads_the_first_closed_tag() {
    let search = |query: &str| Action::Search { query: query.into() };
    for (text, wanted) in [
        ("<search>a</search><answer>b</answer>", search("a")),
        ("<answer>b</answer><search>a</search>", Action::Complete),
        ("<answer>open <search>a</search>", search("a")),
        ("<search>never closed <answer>b</answer>", Action::Complete),
        ("<search>a\nb</search>", search("a b")),
    ] {
        assert_eq!(search_r1::read(text, false), wanted, "{text}");
    }
    for text in ["", "Paris", "<search></search>", "</answer>", "<answer>cut off"] {
        assert!(matches!(search_r1::read(text, false), Action::Invalid { .. }), "{text}");
    }
}

#[test]
fn search_r1_keeps_its_limits() {
    let s = "<search>x</search>";
    // two searches, then a third is not executed
    let over = play(ProtocolKind::SearchR1, &config(), &[s, s, s]);
    assert_eq!(
        (over.trajectory.stop, over.trajectory.searches, over.answer.as_str()),
        (StopReason::SearchLimit, 2, "")
    );
    let lost = play(ProtocolKind::SearchR1, &config(), &["hm", "hm"]);
    assert_eq!(lost.trajectory.stop, StopReason::Unreadable);
    assert!(lost.text.contains("This could not be read."));
    // the reference: unreadable turns use up its turns, and one closing turn follows
    let compat = SearchConfig { compatibility: Compatibility::SearchR1, ..config() };
    let closing = play(ProtocolKind::SearchR1, &compat, &["hm", s, "<answer>late</answer>"]);
    assert_eq!((closing.trajectory.searches, closing.answer.as_str()), (1, "late"));
    let over = play(ProtocolKind::SearchR1, &compat, &[s, s, s]);
    assert_eq!((over.trajectory.stop, over.trajectory.searches), (StopReason::SearchLimit, 2));
    // its block is cut like any text, and passages stand in it as they are
    let cut = SearchConfig { observation_tokens: 60, ..compat };
    let cut = play(ProtocolKind::SearchR1, &cut, &[s, "<answer>a</answer>"]);
    assert!(
        cut.text.contains("<information>Doc 1(Title: \\\"T x-1\\\") text of x-1, </informat\" until"),
        "{}",
        cut.text
    );
}

#[test]
fn budgets_drop_passages_and_close_the_block() {
    let s = "<search>x</search>";
    let small = SearchConfig { observation_tokens: 130, ..config() };
    let story = play(ProtocolKind::SearchR1, &small, &[s, "<answer>a</answer>"]);
    assert_eq!(ids(&story), ["x-1"], "what was not shown is not handed over");
    assert!(story.text.contains("&lt;/information> and &lt;search>x\\n</information>\\n\\n"), "{}", story.text);
    let full = SearchConfig { context_tokens: 710, turn_tokens: 200, ..config() };
    let story = play(ProtocolKind::SearchR1, &full, &[s]);
    assert_eq!(story.trajectory.stop, StopReason::ContextFull);
    let tiny = SearchConfig { context_tokens: 300, ..config() };
    let question = question();
    let machine = protocol(ProtocolKind::SearchR1, &question, &tiny).unwrap();
    let error = Scripted::new(machine, &question, 0, &tiny, &LETTERS).unwrap_err();
    assert!(matches!(error, SearchError::PromptTooLong { .. }), "{error}");
}

#[test]
fn search_o1_to_the_letter() {
    let query = "I look it up. <|begin_search_query|>Jaws director<|end_search_query|>";
    let story = play(
        ProtocolKind::SearchO1,
        &config(),
        &[query, "Reading.\n**Final Information**\nJaws is by Steven Spielberg.", "So \\boxed{Steven {S.} Spielberg}."],
    );
    insta("search-o1", &story.text);
    assert_eq!(story.answer, "Steven {S.} Spielberg");
    let [note] = story.trajectory.selected.as_slice() else { panic!("one note: {:?}", story.trajectory.selected) };
    assert_eq!((note.title.as_str(), note.text.as_str()), ("Jaws director", "Jaws is by Steven Spielberg."));
    assert!(note.id.starts_with("note-"));
    assert_eq!(story.trajectory.turns[1].action, Action::Note);
    assert_eq!(story.trajectory.turns[1].window.len(), 2, "it reads the documents");
}

#[test]
fn search_o1_ends_loops_and_drops_what_does_not_help() {
    let query = |text: &str| format!("<|begin_search_query|>{text}<|end_search_query|>");
    let (a, b, c) = (query("a"), query("b"), query("c"));
    let nothing = "**Final Information**\nNo helpful information found.";
    let story = play(ProtocolKind::SearchO1, &config(), &[&a, nothing, &query("The A!"), &b, &c]);
    assert_eq!(story.trajectory.stop, StopReason::SearchLimit);
    assert_eq!(story.trajectory.searches, 1, "a repeated query is not searched, and counts");
    assert!(story.text.contains("searched before") && story.text.contains("limit is reached"), "{}", story.text);
    assert!(ids(&story).is_empty());
    let bad = play(ProtocolKind::SearchO1, &config(), &[&a, "no heading", "<|begin_search_query|>never closed"]);
    assert_eq!(bad.trajectory.stop, StopReason::Unreadable);
    assert_eq!(search_o1::read("thus \\boxed{x}"), Action::Complete);
    assert_eq!(search_o1::boxed("\\boxed{a} \\boxed{b{c}d} e"), Some("b{c}d"));
    assert_eq!(search_o1::boxed("\\boxed{never"), None);
}

#[test]
fn ir_cot_to_the_letter() {
    let story = play(
        ProtocolKind::IrCot,
        &SearchConfig { max_searches: 4, max_passages: 3, ..config() },
        &["Jaws was filmed in 1974. It is a film.", "So the answer is: Steven Spielberg."],
    );
    insta("ir-cot", &story.text);
    assert_eq!(story.answer, "Steven Spielberg");
    assert_eq!(
        ids(&story),
        ["Who directed Jaws?-1", "Who directed Jaws?-2", "Jaws was filmed in 1974.-1"],
        "all that was found, in order, as many as go in"
    );
    assert_eq!(story.trajectory.searches, 1, "the raw question's own search does not count");
}

#[test]
fn ir_cot_takes_sentences() {
    for (text, wanted) in [
        ("A b. C d.", "A b."),
        ("Dr. J. Smith won 3.5 points! Then", "Dr. J. Smith won 3.5 points!"),
        ("no end", "no end"),
        ("\n line one\nline two", "line one"),
        ("", ""),
    ] {
        assert_eq!(ir_cot::sentence(text), wanted, "{text}");
    }
    let limit = SearchConfig { max_searches: 2, ..config() };
    let story = play(ProtocolKind::IrCot, &limit, &["One.", "Two."]);
    assert_eq!((story.trajectory.stop, story.trajectory.searches), (StopReason::SearchLimit, 2));
    assert_eq!(story.answer, "");
    let story = play(ProtocolKind::IrCot, &limit, &["Done.<search_complete>Yes</search_complete>"]);
    assert_eq!(story.trajectory.stop, StopReason::Complete);
    let story = play(ProtocolKind::IrCot, &limit, &["  "]);
    assert_eq!(story.trajectory.stop, StopReason::Unreadable);
    let own = SearchConfig { prompt_text: Some("{question}".into()), ..limit };
    assert!(protocol(ProtocolKind::IrCot, &question(), &own).is_err(), "its prompt is no template");
}

#[test]
fn deep_retrieval_to_the_letter() {
    let lexical = SearchConfig { method: RetrievalMethod::Lexical, ..config() };
    let story = play(
        ProtocolKind::DeepRetrieval,
        &lexical,
        &["<think>x</think><answer>{\"query\": \"(Jaws AND film) director\"}</answer>"],
    );
    insta("deep-retrieval", &story.text);
    assert_eq!(ids(&story), ["(Jaws AND film) director-1", "(Jaws AND film) director-2"]);
    // what cannot be read is searched as the question
    let story = play(ProtocolKind::DeepRetrieval, &config(), &["I do not know"]);
    assert_eq!(ids(&story), ["Who directed Jaws?-1", "Who directed Jaws?-2"]);
    assert_eq!((story.trajectory.searches, story.trajectory.invalid_turns()), (0, 1));
    assert!(!story.text.contains("AND, OR"));
    for (text, wanted) in [
        ("<answer>{\"query\": [\"a\", \"b\"]}</answer>", "a"),
        ("<answer>plain words</answer>", "plain words"),
        ("<answer>no</answer> <answer>{\"query\": \"x\"}", "x"),
    ] {
        assert_eq!(deep_retrieval::read(text), Action::Search { query: wanted.into() }, "{text}");
    }
}

#[test]
fn answers_without_search() {
    let story =
        play(ProtocolKind::ChainOfThought, &config(), &["First <answer>no</answer>, then <answer> yes </answer>"]);
    insta("chain-of-thought", &story.text);
    assert_eq!(story.answer, "yes");
    assert_eq!(play(ProtocolKind::ChainOfThought, &config(), &[" Paris "]).answer, "Paris", "the whole text");
    let story = play(ProtocolKind::R1, &config(), &["<think>x</think><answer>Paris</answer>"]);
    insta("r1", &story.text);
    assert_eq!(story.answer, "Paris");
    assert_eq!(play(ProtocolKind::R1, &config(), &["Paris"]).answer, "", "it was trained to use the tag");
    let story = play(ProtocolKind::Sft, &config(), &["Paris\n"]);
    assert_eq!(
        (story.answer.as_str(), story.text.as_str()),
        ("Paris", "< \"Who directed Jaws?\" until []\n> \"Paris\\n\"\n")
    );
}

#[test]
fn templates_are_the_users() {
    let own = |text: &str| SearchConfig { prompt_text: Some(text.into()), ..config() };
    let story = play(ProtocolKind::R1, &own("Q={question}!"), &["<answer>a</answer>"]);
    assert!(story.text.starts_with("< \"Q=Who directed Jaws?!\""), "{}", story.text);
    for bad in ["none", "{question}{question}"] {
        assert!(protocol(ProtocolKind::SearchR1, &question(), &own(bad)).is_err(), "{bad}");
    }
    let unread = SearchConfig { prompt_template: Some("x".into()), ..config() };
    assert!(protocol(ProtocolKind::SearchR1, &question(), &unread).unwrap_err().to_string().contains("not loaded"));
}

#[test]
fn conversations_are_kept_for_served_models() {
    let question = question();
    let machine = protocol(ProtocolKind::SearchR1, &question, &config()).unwrap();
    let mut run = Scripted::new(machine, &question, 0, &config(), &LETTERS).unwrap();
    // the stop string is not part of what a served model gives back
    let text = close("I search <search>Jaws", run.tags());
    assert_eq!(text, "I search <search>Jaws</search>");
    run.written(&text, &LETTERS).unwrap();
    run.retrieved(vec![passage("a")], &LETTERS).unwrap();
    let speakers: Vec<Speaker> = run.messages().iter().map(|message: &Message| message.speaker).collect();
    assert_eq!(speakers, [Speaker::User, Speaker::Assistant, Speaker::User]);
    assert!(run.messages()[2].text.contains("<information>Doc 1(Title: \"T a\")"), "{:?}", run.messages()[2]);
    assert_eq!(close("done <answer>x</answer>", run.tags()), "done <answer>x</answer>");
    assert!(run.retrieved(vec![], &LETTERS).is_err(), "it is to write");
}

#[test]
fn outages_are_masked() {
    let question = question();
    let machine = protocol(ProtocolKind::IrCot, &question, &config()).unwrap();
    let mut run = Scripted::new(machine, &question, 0, &config(), &LETTERS).unwrap();
    run.failed("down".into());
    assert_eq!(run.failure(), Some("down"));
    assert_eq!(run.finish().failure(), Some("down"));
}

#[test]
fn machines_say_the_same_until_they_are_fed() {
    for kind in [
        ProtocolKind::ChainOfThought,
        ProtocolKind::Sft,
        ProtocolKind::R1,
        ProtocolKind::SearchR1,
        ProtocolKind::SearchO1,
        ProtocolKind::IrCot,
        ProtocolKind::DeepRetrieval,
    ] {
        let machine: Box<dyn Protocol> = protocol(kind, &question(), &config()).unwrap();
        assert_eq!(machine.next(), machine.next(), "{kind:?}");
        if let Move::Write(write) = machine.next() {
            assert_eq!(write.place, Place::New);
        }
    }
}
