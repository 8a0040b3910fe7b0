//! `reward.onFailure: Fail`: an attempt ends with what it lost, keeps what it has, and the next one asks the rest.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code)] // each test file uses its part
mod support;

use s3_telemetry::ExitClass;
use std::sync::atomic::Ordering;
use support::{World, run};

const TRAIN: &str = "steps: 3\nrollout: {questions: 4, samples: 4, batch: 8, microBatch: 4}\n";

#[test]
fn a_lost_answer_ends_the_attempt_and_the_next_one_goes_on() {
    let world = World::start();
    let fail = format!("{TRAIN}reward: {{onFailure: Fail}}\n");
    let (code, _, stderr) = run("train", &world.config("whole", &fail));
    assert_eq!(code, 0, "{stderr}");
    let paid = world.behaviour.answered.swap(0, Ordering::SeqCst);

    // every answer that is lost is lost for good until the service is whole again
    world.behaviour.failing.store(5, Ordering::SeqCst);
    let config = world.config("lossy", &fail);
    let attempts = 2;
    for _ in 0..attempts {
        let (code, _, stderr) = run("train", &config);
        assert_eq!(code, i32::from(ExitClass::Unavailable.code()), "{stderr}");
        assert!(stderr.contains("onInfrastructureFailure is Fail") && stderr.contains("lost for the test"), "{stderr}");
    }
    world.behaviour.failing.store(0, Ordering::SeqCst);
    let (code, _, stderr) = run("train", &config);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(world.outcome("lossy").digest, world.outcome("whole").digest, "nothing is masked, nothing is lost");
    // what was answered before stays answered; of what was under way a chunk each may be asked again
    let asked = world.behaviour.answered.load(Ordering::SeqCst);
    assert!(asked <= paid + attempts * 25, "{asked} answers for {paid}");

    // masked, it is another run that learns from what is left
    world.behaviour.failing.store(5, Ordering::SeqCst);
    let (code, _, stderr) = run("train", &world.config("masked", TRAIN));
    assert_eq!(code, 0, "{stderr}");
    assert!(world.outcome("masked").summary["masked"].as_f64().unwrap() > 0.0);
    assert_ne!(world.outcome("masked").digest, world.outcome("whole").digest);
}

#[test]
fn a_chat_template_of_ones_own_is_what_the_model_reads() {
    let world = World::start();
    let root = world.dir.path();
    let plain = root.join("own.jinja");
    let train = TRAIN.replace("steps: 3", "steps: 1");
    let with = |name: &str| {
        let path = world.config(name, &train);
        let text = std::fs::read_to_string(&path).unwrap();
        let told = text.replace("device: Cpu}", &format!("device: Cpu, chatTemplate: {}}}", plain.display()));
        assert_ne!(text, told);
        std::fs::write(&path, told).unwrap();
        path
    };
    std::fs::write(&plain, "{% for message in messages %}[{{ message.role }}: {{ message.content }}]{% endfor %}")
        .unwrap();
    let (code, _, stderr) = run("train", &with("told"));
    assert_eq!(code, 0, "{stderr}");
    let codec = s3_model::TokenizerFile::from_folder(&root.join("model")).unwrap();
    let prompt = |name: &str| {
        let steps = s3_rollout::record::read_training(&root.join(name).join("state/training")).unwrap();
        let episode = &steps[1].episodes[0].episode;
        codec.decode(&episode.tokens[..episode.prompt_tokens]).unwrap()
    };
    assert!(prompt("told").starts_with("[user: ") && prompt("told").ends_with(']'), "{}", prompt("told"));
    let (code, _, stderr) = run("train", &world.config("own", &train));
    assert_eq!(code, 0, "{stderr}");
    assert!(prompt("own").starts_with("user\n"), "{}", prompt("own"));
    // it belongs to what a run is
    std::fs::write(&plain, "{% for message in messages %}<{{ message.content }}>{% endfor %}").unwrap();
    let (code, _, stderr) = run("train", &with("told"));
    assert!(code == 64 && stderr.contains("chatTemplate: was"), "{code} {stderr}");
    for (bad, why) in [("{% for %}", "chat template"), ("nothing", "leaves the message out")] {
        std::fs::write(&plain, bad).unwrap();
        let (code, _, stderr) = run("train", &with("bad"));
        assert!(code == 64 && stderr.contains(why) && stderr.contains("own.jinja"), "{code} {stderr}");
    }
}
