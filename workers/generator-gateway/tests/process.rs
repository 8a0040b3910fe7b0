//! The real process: killed, restarted, misconfigured, watched for secrets.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "../../../tests/support/full_disk.rs"]
mod full_disk;

use common::{Act, Upstream, World, answer, end_of, failure, free_port, page, request, serve_command};
use s3_config::{DTypeKind, DeviceKind, ModelSpec, ProviderConfig};
use s3_proto::v1;
use std::collections::BTreeMap;
use std::time::Duration;

/// What a case changes in a good configuration.
type Change<'a> = Box<dyn Fn(&mut World) + 'a>;

fn texts(response: &v1::AnswerResponse) -> Vec<String> {
    response.results.iter().map(|result| answer(result).text.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_nine_loses_no_acknowledged_answer_and_splits_no_batch() {
    const BATCHES: usize = 1250;
    const SIZE: usize = 8;
    let upstream = Upstream::start().await;
    upstream.delay(Duration::from_millis(1));
    let world = World::new(&upstream.url());
    let batch = |i: usize| request((0..SIZE).map(|j| format!("question {i}.{j}")));
    let mut acknowledged: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    let mut next = 0;
    // five that are killed in their work, and one that ends it and is killed then
    for round in 0..6 {
        let process = world.start();
        let client = world.client();
        let (done, finished) = tokio::sync::oneshot::channel::<()>();
        let kill = tokio::spawn(async move {
            if round < 5 {
                tokio::time::sleep(Duration::from_millis(300 + 300 * round)).await;
            } else {
                finished.await.unwrap();
            }
            process.kill();
        });
        // several batches are in work when the process dies
        'round: while next < BATCHES {
            let window: Vec<usize> = (next..BATCHES.min(next + 4)).collect();
            let sent: Vec<_> = window
                .iter()
                .map(|i| {
                    let (client, request) = (client.clone(), batch(*i));
                    tokio::spawn(async move { client.answer(request).await })
                })
                .collect();
            let mut ended = false;
            for (i, task) in window.into_iter().zip(sent) {
                match task.await.unwrap() {
                    Ok(response) => {
                        acknowledged.insert(i, texts(&response));
                    }
                    Err(_) => ended = true,
                }
            }
            next += 4;
            if ended {
                break 'round;
            }
        }
        // nobody listens in the rounds that are killed by the clock
        let _ = done.send(());
        kill.await.unwrap();
    }
    println!("{} of {} answers were acknowledged", SIZE * acknowledged.len(), SIZE * BATCHES);
    assert!(acknowledged.len() >= BATCHES - 5 * 4, "only {} batches were answered", acknowledged.len());

    let process = world.start();
    let before = upstream.calls();
    let client = world.client();
    for (i, expected) in &acknowledged {
        let response = client.answer(batch(*i)).await.unwrap();
        assert!(response.results.iter().all(|result| answer(result).cached), "batch {i}");
        assert_eq!(&texts(&response), expected, "batch {i}");
    }
    assert_eq!(upstream.calls(), before, "acknowledged answers were asked for again");
    for i in (0..next).filter(|i| !acknowledged.contains_key(i)) {
        let response = client.answer(batch(i)).await.unwrap();
        let cached = response.results.iter().filter(|result| answer(result).cached).count();
        assert!(cached == 0 || cached == SIZE, "batch {i}: {cached} of {SIZE} were kept");
    }
    let (code, log) = process.stop();
    assert_eq!(code, 0, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn identical_requests_have_one_answer_before_and_after_a_restart() {
    let upstream = Upstream::start().await;
    upstream.delay(Duration::from_millis(30));
    // an upstream that never says the same twice
    upstream.script((0..1000).map(|i| Act::Say(format!("take {i}"))));
    let world = World::new(&upstream.url());
    let process = world.start();
    let client = world.client();
    let tasks: Vec<_> = (0..200)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.answer(request(["same".to_owned(), "same".to_owned()])).await })
        })
        .collect();
    let mut seen = std::collections::BTreeSet::new();
    for task in tasks {
        seen.extend(texts(&task.await.unwrap().unwrap()));
    }
    assert_eq!(seen.len(), 1, "{seen:?}");
    let info = client.info("up", "").await.unwrap();
    process.kill();

    let process = world.start();
    let before = upstream.calls();
    let response = world.client().answer(request(["same".to_owned()])).await.unwrap();
    assert!(answer(&response.results[0]).cached);
    assert!(seen.contains(&answer(&response.results[0]).text));
    assert_eq!(upstream.calls(), before);
    assert_eq!(world.client().info("", "short-answer").await.unwrap(), info);
    assert_ne!(world.client().info("", "zero-shot").await.unwrap().digest, info.digest);
    drop(process);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_cache_is_refused_with_one_line() {
    let upstream = Upstream::start().await;
    let world = World::new(&upstream.url());
    let process = world.start();
    world.client().answer(request((0..50).map(|i| format!("q{i}")))).await.unwrap();
    let (second, line) = {
        // the same cache under a second gateway
        let mut other = World::new(&upstream.url());
        other.config.cache.clone_from(&world.config.cache);
        other.refused()
    };
    assert_eq!(second, 64);
    assert!(line.contains("in use"), "{line}");
    assert_eq!(process.stop().0, 0);

    let path = world.path("answers.redb");
    let whole = std::fs::read(&path).unwrap();
    let text = whole.windows(7).position(|window| window == b"answer ").unwrap();
    for at in [0, text] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xFF;
        std::fs::write(&path, bytes).unwrap();
        let (code, line) = world.refused();
        assert_eq!(code, 64, "{line}");
        assert!(line.contains("answers.redb") && line.contains("remove it"), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_inputs_end_in_one_line() {
    let upstream = Upstream::start().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let holder = std::net::TcpListener::bind(taken).unwrap();
    let model = |path: std::path::PathBuf, sha256: Option<&str>| {
        let plain = ModelSpec::at(path, DeviceKind::Cpu, DTypeKind::F32);
        let model = ModelSpec { sha256: sha256.map(str::to_owned), ..plain };
        vec![ProviderConfig::BuiltIn { name: "small".into(), model, batch: 4, context_tokens: 256 }]
    };
    let garbage = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(garbage.path(), b"GGUF but not really").unwrap();
    let cases: Vec<(&str, Change<'_>, i32, Vec<&str>)> = vec![
        ("grpc port", Box::new(|w| w.config.grpc = taken), 64, vec!["grpc", "free port"]),
        ("http port", Box::new(|w| w.config.http = Some(taken)), 64, vec!["http", "free port"]),
        ("admin port", Box::new(|w| w.config.runtime.admin = Some(taken)), 64, vec!["admin", "free port"]),
        ("no provider", Box::new(|w| w.config.providers.clear()), 64, vec!["providers"]),
        (
            "twice",
            Box::new(|w| {
                let one = w.config.providers[0].clone();
                w.config.providers.push(one);
            }),
            64,
            vec!["\"up\"", "twice"],
        ),
        (
            "template",
            Box::new(|w| {
                w.config.templates.insert("mine".into(), "/no/such/template".into());
            }),
            64,
            vec!["mine", "/no/such/template"],
        ),
        (
            "cache folder",
            Box::new(|w| w.config.cache = Some("/proc/nowhere/answers.redb".into())),
            74,
            vec!["answers.redb"],
        ),
        (
            "model",
            Box::new(|w| w.config.providers = model("/no/such/model.gguf".into(), None)),
            64,
            vec!["small", "/no/such/model.gguf"],
        ),
        (
            "sha256",
            Box::new(|w| w.config.providers = model(garbage.path().into(), Some(&"0".repeat(64)))),
            64,
            vec!["sha256", "0000"],
        ),
        ("garbage", Box::new(|w| w.config.providers = model(garbage.path().into(), None)), 64, vec!["small"]),
    ];
    for (name, change, expected, parts) in cases {
        let mut world = World::new(&upstream.url());
        change(&mut world);
        let (code, line) = world.refused();
        assert_eq!(code, expected, "{name}: {line}");
        for part in parts {
            assert!(line.contains(part), "{name}: {line}");
        }
    }
    drop(holder);

    let world = World::new(&upstream.url());
    let file = world.path("odd.yaml");
    let mut text = String::from("colour: red\n");
    world.command();
    text.push_str(&std::fs::read_to_string(world.path("gateway.yaml")).unwrap());
    std::fs::write(&file, text).unwrap();
    let (code, line) = end_of(serve_command(&file));
    assert_eq!(code, 64);
    assert!(line.contains("colour"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_endpoint_is_a_failure_of_each_item_and_kills_nothing() {
    let mut world = World::new(&format!("http://{}/v1", free_port()));
    world.provider(0).limits.attempts = 2;
    let process = world.start();
    let response = world.client().answer(request(["a".to_owned(), "b".to_owned()])).await.unwrap();
    for result in &response.results {
        assert_eq!(failure(result).0, v1::FailureKind::FailureUnavailable);
    }
    for (model, template) in [("nobody", ""), ("", "nothing")] {
        let mut wrong = request(["a".to_owned()]);
        (wrong.model, wrong.template) = (model.into(), template.into());
        let error = world.client().answer(wrong).await.unwrap_err();
        assert!(!error.is_outage() && error.to_string().contains("there are: "), "{error}");
    }
    assert_eq!(process.stop().0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_is_sent_rotated_and_never_shown() {
    const KEYS: [&str; 2] = ["sk-first-7d1f5c2b9a", "sk-second-0b44e8aa17"];
    let upstream = Upstream::start().await;
    let mut world = World::new(&upstream.url());
    let file = world.path("key");
    std::fs::write(&file, format!("{}\n", KEYS[0])).unwrap();
    world.provider(0).api_key_file = Some(file.clone());
    let admin = free_port();
    world.config.runtime.admin = Some(admin);
    let mut command = world.command();
    command.env("RUST_LOG", "trace").stderr(std::fs::File::create(world.path("log")).unwrap());
    let mut child = command.spawn().unwrap();
    while !s3_telemetry::read_progress(&world.path("progress.json")).is_some_and(|report| report.ready) {
        assert!(child.try_wait().unwrap().is_none(), "{}", std::fs::read_to_string(world.path("log")).unwrap());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let client = world.client();
    client.answer(request(["one".to_owned()])).await.unwrap();
    std::fs::write(&file, KEYS[1]).unwrap();
    // a file is looked at ten times a second
    let look = || tokio::time::sleep(Duration::from_millis(150));
    look().await;
    client.answer(request(["two".to_owned()])).await.unwrap();
    for (seen, key) in upstream.seen().iter().zip(KEYS) {
        assert!(seen.head.contains(&format!("Bearer {key}")), "{}", seen.head);
    }
    // an upstream that repeats the key in its error, in a final and in a repeated one
    let echo = format!(r#"{{"error":{{"message":"Incorrect API key provided: {}"}}}}"#, KEYS[1]);
    upstream.script([Act::Status(500, "", echo.clone()), Act::Status(401, "", echo)]);
    let response = client.answer(request(["three".to_owned()])).await.unwrap();
    let (kind, message) = failure(&response.results[0]);
    assert_eq!(kind, v1::FailureKind::FailureRejected);
    assert!(message.contains("[key]"), "{message}");
    std::fs::remove_file(&file).unwrap();
    look().await;
    let (kind, message) = failure(&client.answer(request(["four".to_owned()])).await.unwrap().results[0]);
    assert!(kind == v1::FailureKind::FailureRejected && message.contains("apiKeyFile"), "{message}");

    let (_, metrics) = page(&format!("http://{admin}/metrics")).await;
    assert!(metrics.contains("s3_gateway_requests_total{outcome=\"ok\",provider=\"up\"} 2"), "{metrics}");
    assert!(metrics.contains("s3_gateway_retries_total{provider=\"up\",reason=\"5xx\"} 1"), "{metrics}");
    child.kill().unwrap();
    child.wait().unwrap();
    let log = std::fs::read_to_string(world.path("log")).unwrap();
    let stored = String::from_utf8_lossy(&std::fs::read(world.path("answers.redb")).unwrap()).into_owned();
    assert!(log.len() > 1000, "the log was not captured");
    for key in KEYS {
        for (place, text) in [("log", &log), ("metrics", &metrics), ("message", &message), ("cache", &stored)] {
            assert!(!text.contains(key), "the key stands in the {place}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing_that_was_acknowledged() {
    let upstream = Upstream::start().await;
    let long = "word ".repeat(20_000);
    upstream.always(Act::Say(long.clone()));
    let world = World::new(&upstream.url());
    world.start().kill();
    let limited = full_disk::full_disk(&world.command(), 6000);
    let process = world.start_with(limited);
    let client = world.client();
    let batch = |i: usize| request((0..4).map(|j| format!("question {i}.{j}")));
    let mut acknowledged = 0;
    while client.answer(batch(acknowledged)).await.is_ok() {
        acknowledged += 1;
        assert!(acknowledged < 100, "the limit never came");
    }
    assert!(acknowledged > 0);
    let (code, log) = process.wait();
    assert_eq!(code, 74, "{log}");
    let errors: Vec<&str> = log.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(matches!(errors[..], [line] if line.contains("answers.redb cannot be written")), "{log}");

    let process = world.start();
    let before = upstream.calls();
    for i in 0..acknowledged {
        let response = world.client().answer(batch(i)).await.unwrap();
        assert!(response.results.iter().all(|result| answer(result).cached && answer(result).text == long.trim()));
    }
    assert_eq!(upstream.calls(), before);
    assert!(world.client().answer(batch(acknowledged)).await.is_ok());
    drop(process);
}
