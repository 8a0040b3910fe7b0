//! The report page in a real browser: what a person sees and does, on a desk and on a phone.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code)] // each test file uses its part
mod support;

use fantoccini::key::Key;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use s3_artifacts::Journal;
use s3_evaluator::questions::QuestionSet;
use s3_evaluator::report;
use s3_evaluator::results::{EpisodeRow, Facts, ResultRow, Results, TurnRow};
use s3_evaluator::summary::summarise;
use s3_rollout::record::{StepEntry, step_journal};
use s3_search::score::Verdict;
use s3_search::{Action, Passage, Question, StopReason};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use support::{World, run};

/// Questions of the evaluation, and so episodes of its searcher.
const QUESTIONS: u64 = 12;

/// A `WebDriver` server with a port of its own, ended with the test.
struct Driver {
    process: Child,
    address: String,
}

impl Driver {
    fn start() -> Self {
        let mut process = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .spawn()
            .expect("chromedriver does not start; tests/tools/needs.sh --tests installs it");
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let port = lines
            .find_map(|line| Some(line.unwrap().split_once("started successfully on port ")?.1.to_owned()))
            .expect("chromedriver says its port");
        // it goes on writing, and a full pipe would stop it
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, address: format!("http://127.0.0.1:{}", port.trim_end_matches('.')) }
    }

    /// A fresh browser; `phone` is 390 × 844 with touch, else 1440 × 900.
    async fn open(&self, phone: bool, page: &Path) -> Page {
        let profile = tempfile::tempdir().unwrap();
        let mut options = json!({"args": [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", "--window-size=1440,900", format!("--user-data-dir={}", profile.path().display()),
        ]});
        if phone {
            options["mobileEmulation"] =
                json!({"deviceMetrics": {"width": 390, "height": 844, "pixelRatio": 2.0, "touch": true}});
        }
        let capabilities = json!({"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}});
        let Value::Object(capabilities) = capabilities else { unreachable!() };
        let mut builder = ClientBuilder::new(HttpConnector::new());
        let client = builder.capabilities(capabilities).connect(&self.address).await.expect("a browser starts");
        client.goto(&format!("file://{}", page.display())).await.unwrap();
        let page = Page { client, driver: self.address.clone(), _profile: profile };
        page.wait("document.documentElement.dataset.ready !== undefined", json!(true)).await;
        page
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // it may have ended already
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An open report.
struct Page {
    client: Client,
    driver: String,
    _profile: tempfile::TempDir,
}

impl Page {
    async fn read(&self, script: &str) -> Value {
        self.client.execute(&format!("return {script};"), Vec::new()).await.unwrap()
    }

    async fn text(&self, selector: &str) -> String {
        self.client.find(Locator::Css(selector)).await.unwrap().text().await.unwrap()
    }

    async fn count(&self, selector: &str) -> usize {
        self.client.find_all(Locator::Css(selector)).await.unwrap().len()
    }

    async fn press(&self, keys: &str) {
        self.client.find(Locator::Css("body")).await.unwrap().send_keys(keys).await.unwrap();
    }

    /// Waits until a script gives this value.
    async fn wait(&self, script: &str, wanted: Value) {
        let mut seen = Value::Null;
        for _ in 0..600 {
            seen = self.read(script).await;
            if seen == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{script} is {seen}, not {wanted}");
    }

    /// Nothing is wider than the window, and no script failed.
    async fn sound(&self) {
        let wider = "[...document.querySelectorAll('body *')].filter((e) => !e.closest('.scroll, pre, .skip') && \
             e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80))";
        assert_eq!(self.read(wider).await, json!([]), "wider than the window");
        assert_eq!(self.read("document.documentElement.scrollWidth <= innerWidth").await, json!(true));
        // Chromium's own command for what a page wrote to its console
        let session = self.client.session_id().await.unwrap().unwrap();
        let reply = reqwest::Client::new()
            .post(format!("{}/session/{session}/se/log", self.driver))
            .json(&json!({"type": "browser"}))
            .send()
            .await
            .unwrap();
        assert_eq!(reply.json::<Value>().await.unwrap()["value"], json!([]), "the browser's console");
    }

    async fn picture(&self, name: &str) {
        // for people who want to look: S3_SCREENSHOTS=FOLDER
        if let Some(folder) = std::env::var_os("S3_SCREENSHOTS") {
            std::fs::write(Path::new(&folder).join(name), self.client.screenshot().await.unwrap()).unwrap();
        }
    }
}

/// A journal of five steps, as the trainer writes it.
fn write_training(folder: &Path) {
    for step in 1..=5u32 {
        let at = f64::from(step);
        let figures = [("gain", 0.05 * at - 0.1), ("accuracy", 0.1 * at), ("entropy", 1.0 / at), ("gradNorm", 0.5)];
        let figures: BTreeMap<String, f64> = figures.map(|(name, value)| (name.to_owned(), value)).into();
        let mut journal = Journal::open(&step_journal(folder, step)).unwrap();
        journal.append("figures", StepEntry::Figures { figures }).unwrap();
    }
}

#[test]
fn a_person_reads_the_report() {
    let world = World::start();
    let root = world.dir.path().to_owned();
    std::fs::create_dir(root.join("training")).unwrap();
    write_training(&root.join("training"));
    let config = world.config("e", QUESTIONS as usize, "");
    let text = std::fs::read_to_string(&config).unwrap();
    let page = root.join("e/report.html");
    let plain = format!("report: {{path: {}}}", page.display());
    assert!(text.contains(&plain));
    let with = format!("report: {{path: {}, training: [{}]}}", page.display(), root.join("training").display());
    std::fs::write(&config, text.replace(&plain, &with)).unwrap();
    let (code, _, stderr) = run(&["run"], &config);
    assert_eq!(code, 0, "{stderr}");

    tokio::runtime::Runtime::new().unwrap().block_on(read(&page));
}

/// The HTTP client of this project wants a provider even where nothing is encrypted.
fn encrypt() {
    // another test of this process may have been first
    let _ = rustls::crypto::ring::default_provider().install_default();
}

async fn read(page: &Path) {
    encrypt();
    let driver = Driver::start();
    let desk = driver.open(false, page).await;
    assert_eq!(desk.text("h1").await, format!("4 ways to answer {QUESTIONS} questions"));
    assert_eq!(desk.count("#results tbody tr").await, 4);
    assert_eq!(desk.count("#tests tbody tr").await, 5);
    assert_eq!(desk.count("#curves svg path.line").await, 4 + 1, "a line a figure, and the legend's");
    assert_eq!(desk.text("#found").await, format!("{QUESTIONS} of {QUESTIONS} episodes"));
    desk.sound().await;
    desk.picture("desk.png").await;

    // a click opens an episode with its turns and every arm's answer
    let rows = desk.client.find_all(Locator::Css("#rows .row .q")).await.unwrap();
    let second = rows[1].text().await.unwrap();
    rows[1].click().await.unwrap();
    assert_eq!(desk.text("#detail .question").await, second);
    desk.wait("document.querySelectorAll('#detail table tr').length", json!(4)).await;
    assert!(desk.count("#detail .step").await >= 3, "what was found, what was done, what was answered");
    let shades = "document.querySelectorAll('#detail .tokens span').length";
    assert!(desk.read(shades).await.as_u64().unwrap() > 0, "each token with what it was worth to the searcher");
    assert!(desk.text("#detail .why").await.contains("gold answer"), "why the verdict");
    // other filters narrow the list, and clear again
    let pick = |name: &str, value: &str| {
        format!(
            "(() => {{ const s = document.getElementById('{name}'); s.value = '{value}'; s.dispatchEvent(new Event('change')); return document.getElementById('found').textContent; }})()"
        )
    };
    let all = json!(format!("{QUESTIONS} of {QUESTIONS} episodes"));
    assert_eq!(desk.read(&pick("dataset", "0")).await, all);
    assert_ne!(desk.read(&pick("count", "1")).await, Value::Null);
    assert_eq!(desk.read(&pick("count", "")).await, all);
    assert_eq!(desk.read(&pick("against", "0")).await, all);
    desk.wait("[...document.querySelectorAll('.quad strong')].map((n) => n.textContent)[1]", json!("0")).await;
    assert_eq!(desk.read(&pick("against", "")).await, all);
    // keys move, filter and clear; the quadrants' numbers add up
    desk.press("j").await;
    let third = desk.read("document.querySelector('.row[aria-selected=true] .q').textContent").await;
    assert_eq!(json!(desk.text("#detail .question").await), third);
    let quadrants = "[...document.querySelectorAll('.quad strong')].map((n) => Number(n.textContent))";
    let counts: Vec<u64> = serde_json::from_value(desk.read(quadrants).await).unwrap();
    assert_eq!(counts.iter().sum::<u64>(), QUESTIONS);
    for (key, count) in ["1", "2", "3", "4"].into_iter().zip(counts) {
        desk.press(key).await;
        let found = if count == 0 { String::new() } else { format!("{count} of {QUESTIONS} episodes") };
        desk.wait("document.getElementById('found').textContent", json!(found)).await;
        desk.press(key).await;
    }
    // a search narrows the list to what holds all its words
    let search = desk.client.find(Locator::Css("#search")).await.unwrap();
    let shown = "[...document.querySelectorAll('#rows .row .q')].map((n) => n.textContent)";
    search.send_keys(&second).await.unwrap();
    desk.wait(&format!("{shown}.includes({})", json!(second)), json!(true)).await;
    // golds and titles are found, too, once all blocks are open
    desk.wait("document.getElementById('found').textContent.includes('Opening')", json!(false)).await;
    search.send_keys(" nowhere").await.unwrap();
    desk.wait(shown, json!([])).await;
    assert_eq!(desk.text("#rows").await, "No episode fits these filters.");
    search.send_keys(&String::from(char::from(Key::Escape))).await.unwrap();
    desk.wait("document.getElementById('search').value", json!("")).await;
    desk.sound().await;
    desk.client.clone().close().await.unwrap();

    // a phone shows one pane at a time
    let phone = driver.open(true, page).await;
    assert_eq!(phone.read("innerWidth").await, json!(390));
    phone.sound().await;
    phone.picture("phone.png").await;
    let row = phone.client.find(Locator::Css("#rows .row")).await.unwrap();
    row.click().await.unwrap();
    phone.wait("getComputedStyle(document.getElementById('list')).display", json!("none")).await;
    phone.wait("document.querySelectorAll('#detail table tr').length", json!(4)).await;
    phone.sound().await;
    phone.picture("phone-episode.png").await;
    phone.client.find(Locator::Css("#detail .back")).await.unwrap().click().await.unwrap();
    phone.wait("getComputedStyle(document.getElementById('list')).display !== 'none'", json!(true)).await;
    phone.client.clone().close().await.unwrap();
}

/// Episodes of the large page: two searchers on half as many questions.
const MANY: usize = 100_000;

/// Text that no packer makes small: words by number.
fn words(seed: usize, count: usize) -> String {
    let word = |at: usize| format!("{:x}", (seed * 7919 + at * 104_729 + 17).wrapping_mul(2_654_435_761) % 0xf_ffff);
    (0..count).map(word).collect::<Vec<_>>().join(" ")
}

fn many() -> (s3_config::EvaluatorConfig, Results) {
    let config: s3_config::EvaluatorConfig = serde_json::from_value(json!({
        "runtime": {"name": "e", "stateDir": "state"},
        "seed": 1,
        "arms": [
            {"name": "rag", "method": "Rag", "topK": 3},
            {"name": "early", "method": "S3", "searcher": {"path": "m"}, "search": {}},
            {"name": "late", "method": "S3", "searcher": {"path": "m"}, "search": {}},
        ],
        "datasets": [], "sample": {"size": 1},
        "retriever": {"address": "http://127.0.0.1:1"},
        "generator": {"endpoint": {"address": "http://127.0.0.1:1"}},
        "statistics": {"baseline": "rag", "resamples": 100},
        "output": "out",
    }))
    .unwrap();
    let half = MANY / 2;
    let questions: Vec<Question> = (0..half)
        .map(|at| Question {
            id: format!("q{at}"),
            dataset: ["nq", "triviaqa"][at % 2].into(),
            question: format!("what is {} number {at}", words(at, 5)),
            answers: vec![format!("answer{at}")],
        })
        .collect();
    let passages: BTreeMap<String, Passage> = (0..10_000)
        .map(|id| (id.to_string(), Passage { id: id.to_string(), title: format!("T{id}"), text: words(id, 70) }))
        .collect();
    let ids = |at: usize, n: usize| (0..n).map(|k| ((at * 3 + k) % 10_000).to_string()).collect::<Vec<_>>();
    let mut rows = Vec::with_capacity(3 * half);
    let mut logprobs = BTreeMap::new();
    for (place, question) in questions.iter().enumerate() {
        for (arm, right) in [("rag", place % 3 == 0), ("early", place % 4 == 0), ("late", place % 2 == 0)] {
            let turn = |start: usize, action| TurnRow {
                text: format!("<query>{{\"query\": \"{}\"}}</query>", words(place + start, 4)),
                action,
                window: ids(place + start, 3),
                selected: vec![0, 2],
                tokens: (start, start + 20),
            };
            let search = Action::Search { query: words(place, 4) };
            let episode = (arm != "rag").then(|| EpisodeRow {
                tokens: (0..80).map(|at| (place as u32 + at) % 4000).collect(),
                prompt_tokens: 10,
                turns: vec![turn(10, search), turn(40, Action::Complete)],
                stop: StopReason::Complete,
            });
            if episode.is_some() {
                logprobs
                    .insert((arm.to_owned(), place), (0..40).map(|at| -((place + at * 37) as i32 % 3000)).collect());
            }
            rows.push(ResultRow {
                dataset: question.dataset.clone(),
                id: question.id.clone(),
                arm: arm.into(),
                place,
                answer: Some(if right { question.answers[0].clone() } else { words(place, 1) }),
                refused: None,
                judge: None,
                judge_reason: String::new(),
                verdict: Verdict::from(right),
                exact_match: Some(right),
                f1: Some(f64::from(u8::from(right))),
                gain: None,
                searches: u32::from(arm != "rag"),
                passages: ids(place, 3),
                episode,
            });
        }
    }
    let set = QuestionSet {
        sha256: "0".into(),
        seed: 1,
        eligible: false,
        considered: half,
        in_training: 0,
        unanswerable: 0,
        questions,
        evidence: Vec::new(),
    };
    let pieces = (0..4000).map(|id| (id, format!("w{id} "))).collect();
    (config, Results { questions: set, rows, passages, logprobs, pieces, facts: Facts::default() })
}

#[test]
fn a_hundred_thousand_episodes_open_at_once() {
    let (config, results) = many();
    let summary = summarise(&config, &results).unwrap();
    let page =
        report::Page { results: &results, identity: &json!({}), summary: &summary, training: &[], attribution: &[] };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.html");
    let html = report::render(&page).unwrap();
    std::fs::write(&path, &html).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        encrypt();
        let driver = Driver::start();
        let desk = driver.open(false, &path).await;
        let ready = desk.read("document.documentElement.dataset.ready").await;
        let ready: u64 = ready.as_str().unwrap().parse().unwrap();
        println!("{MANY} episodes, {} MB, listed after {ready} ms", html.len() / 1_000_000);
        // a quiet machine takes a third of it; what must not happen is that everything is parsed at once
        assert!(ready < 15_000, "{ready} ms");
        desk.wait("document.getElementById('found').textContent", json!("50,000 of 100,000 episodes")).await;
        // the end of the list, its last question, and its details
        let list = desk.client.find(Locator::Css("#list")).await.unwrap();
        list.send_keys(&String::from(char::from(Key::End))).await.unwrap();
        desk.wait("document.querySelector('#detail .question').textContent.endsWith('number 49999')", json!(true)).await;
        desk.wait("document.querySelectorAll('#detail .tokens span').length", json!(40)).await;
        // two checkpoints beside each other, on the same question
        let pick = "(() => { const s = document.getElementById('source'); s.value = '1'; s.dispatchEvent(new Event('change')); const a = document.getElementById('against'); a.value = '0'; a.dispatchEvent(new Event('change')); return [...document.querySelectorAll('.quad strong')].map((n) => n.textContent); })()";
        // late is right on even places, early on every fourth: both, gained, lost, neither
        assert_eq!(desk.read(pick).await, json!(["12,500", "12,500", "0", "25,000"]));
        desk.wait("document.querySelectorAll('#detail h3.second').length", json!(1)).await;
        desk.press("2").await;
        desk.wait("document.getElementById('found').textContent", json!("12,500 of 100,000 episodes")).await;
        desk.sound().await;
        desk.picture("desk-many.png").await;
        desk.client.clone().close().await.unwrap();
    });
}
