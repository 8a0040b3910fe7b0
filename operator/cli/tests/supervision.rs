//! `s3 run` over stand-in workers: order, readiness, restarts, interruption, resumption.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{World, digest, errors, read, stderr, stdout};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::Child;

const BUILD_OF_THREE: &str = "      lexical: {}
      workers: 3
      dense:
        encoder:
          model: {uri: pvc://data/encoder}
";

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

#[test]
fn a_run_goes_in_order_and_a_second_one_has_nothing_to_do() {
    let world = World::new();
    let first = world.run();
    let digest_line = digest(&first);
    let events = world.events();
    let at = |name: &str, what: &str| {
        events.iter().position(|(n, w, _)| n == name && w == what).unwrap_or_else(|| panic!("no {name} {what}"))
    };
    assert!(at("small-index", "end") < at("small-retriever", "start"));
    for service in ["small-retriever", "gateway-built-in"] {
        assert!(at(service, "ready") < at("small-baseline", "start"));
        assert!(at("small-eval", "end") < at(service, "end"), "services end last");
    }
    assert!(at("small-baseline", "end") < at("small-train", "start"));
    assert!(at("small-train", "end") < at("small-eval", "start"));
    assert_eq!(world.alive(), [0; 0]);

    let text = stdout(&first);
    assert!(text.contains("GenAcc (span)") && text.contains("+0.250") && text.contains("[+0.140, +0.390]"), "{text}");
    assert!(text.contains("This is a smoke run."), "{text}");
    let status = read(&world.path(".s3/run/status/EvalRun-small.yaml"));
    assert!(status.contains("reason: Complete") && status.contains("arm: s3"), "{status}");
    let status = read(&world.path(".s3/run/status/S3TrainingJob-small.yaml"));
    assert!(status.contains("reason: StepsDone"), "{status}");

    world.forget_events();
    let second = world.run();
    assert_eq!(digest(&second), digest_line);
    assert_eq!(world.events(), [], "nothing is started again");
    assert_eq!(stdout(&second), text, "the table is shown again");

    let report = world.s3(&["report"]);
    assert!(stdout(&report).contains("GenAcc (span)"));
    let status = stdout(&world.s3(&["status"]));
    assert!(status.contains("small-train") && status.contains("finished"), "{status}");
    assert!(stdout(&world.s3(&["logs"])).contains("small-train"));
}

#[test]
fn replicas_are_started_and_tried_again_together() {
    let world = World::new();
    let text = common::MANIFEST.replace("  steps: 2\n", "  steps: 2\n  parallelism: {replicas: 2}\n");
    assert!(text.contains("parallelism"));
    world.manifest(&text);
    world.control("replica", "small-train", "1");
    digest(&world.run());
    assert_eq!(world.count("small-train", "start"), 4, "both, and both again after one was killed");
    assert_eq!(world.alive(), [0; 0]);
    let config = |name: &str| read(&world.path(".s3/run/configs").join(name));
    let (first, second) = (config("small-train.yaml"), config("small-train-r1.yaml"));
    let members = |text: &str| text.lines().filter(|line| line.contains("- 127.0.0.1:")).count();
    assert_eq!((members(&first), members(&second)), (2, 2), "{second}");
    assert!(first.contains("    rank: 0") && second.contains("    rank: 1"), "{second}");
    assert!(first.contains("result.json") && !second.contains("result.json"), "files are the first one's");
}

#[test]
fn workers_of_a_build_are_started_together_and_share_the_machine() {
    let world = World::new();
    let text = common::MANIFEST.replace("      lexical: {}\n", BUILD_OF_THREE);
    assert!(text.contains("workers: 3"));
    world.manifest(&text);
    std::fs::create_dir(world.path("data/encoder")).unwrap();
    for file in ["model.safetensors", "config.json", "tokenizer.json"] {
        std::fs::write(world.path("data/encoder").join(file), "e").unwrap();
    }
    let planned = world.s3(&["plan", "run.yaml"]);
    assert!(stdout(&planned).contains("workers   3, which share its work"), "{}", stdout(&planned));
    world.control("replica", "small-index", "1");
    digest(&world.run());
    assert_eq!(world.count("small-index", "start"), 6, "all, and all again after one was killed");
    let config = |name: &str| read(&world.path(".s3/run/configs").join(name));
    let third = config("small-index-r2.yaml");
    assert!(
        third.contains("    rank: 2") && third.contains("  threads: ") && !third.contains("result.json"),
        "{third}"
    );
    assert!(config("small-index.yaml").contains("result.json"));
    // another number of workers is the same work
    world.manifest(&text.replace("workers: 3", "workers: 2"));
    world.forget_events();
    digest(&world.run());
    assert_eq!(world.count("small-index", "start"), 0);
}

#[test]
fn what_may_pass_is_tried_again() {
    let world = World::new();
    world.control("crash", "small-train", "2");
    world.control("crash", "gateway-built-in", "1");
    let output = world.run();
    digest(&output);
    assert_eq!(world.count("small-train", "start"), 3);
    assert_eq!(world.count("gateway-built-in", "start"), 2);
    assert!(stderr(&output).contains("signal 9"), "{}", stderr(&output));
}

#[test]
fn what_cannot_pass_ends_with_the_workers_own_line() {
    let world = World::new();
    world.control("exit", "small-train", "64");
    let output = world.run();
    assert_eq!(output.status.code(), Some(64));
    let lines = errors(&output);
    assert_eq!(lines.len(), 1);
    assert!(lines[0].starts_with("small-train: the model is of an unknown architecture"), "{lines:?}");
    assert_eq!(world.count("small-train", "start"), 1);
    assert_eq!(world.alive(), [0; 0]);
    let status = read(&world.path(".s3/run/status/S3TrainingJob-small.yaml"));
    assert!(status.contains("unknown architecture"), "{status}");

    // Put right, the run goes on: what was finished stays.
    world.release("exit", "small-train");
    world.forget_events();
    digest(&world.run());
    assert_eq!(world.count("small-index", "start"), 0);
    assert_eq!(world.count("small-baseline", "start"), 0);
}

#[test]
fn a_dependency_that_stays_away_ends_the_run_after_a_bounded_number_of_tries() {
    let world = World::new();
    world.control("exit", "small-baseline", "69");
    let output = world.s3(&[&World::RUN[..], &["--restarts", "2"]].concat());
    assert_eq!(output.status.code(), Some(69));
    assert_eq!(world.count("small-baseline", "start"), 3);
}

#[test]
fn killed_with_all_force_it_leaves_no_process_and_goes_on_to_the_same_digest() {
    let whole = digest(&World::new().run());
    for (component, units) in [("small-index", 3), ("small-train", 6), ("small-eval", 2)] {
        let world = World::new();
        world.control("slow", component, "0.05");
        let journal = world.path(".s3/run/work").join(component).join("state/journal");
        let mut run = world.start(&[]);
        world.until("the kill point", || {
            std::fs::read_to_string(&journal).is_ok_and(|text| text.lines().count() >= units)
        });
        signal(&run, Signal::SIGKILL);
        run.wait().unwrap();
        world.until("orphans to vanish", || world.alive().is_empty());
        let done = read(&journal).lines().count();
        assert!((units..10).contains(&done), "killed in the middle of {component}");
        assert_eq!(digest(&world.run()), whole, "killed in {component} after {done} units");
        let lines = read(&journal);
        assert_eq!(lines.lines().count(), 10, "no unit is done twice: {lines}");
    }
}

#[test]
fn interrupted_it_lets_jobs_save_and_says_how_to_go_on() {
    let world = World::new();
    world.control("slow", "small-train", "0.2");
    let run = world.start(&[]);
    world.until("training", || world.count("small-train", "start") == 1);
    signal(&run, Signal::SIGINT);
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{}", stderr(&output));
    assert_eq!(world.count("small-train", "saved"), 1);
    let last = stderr(&output).lines().last().unwrap_or_default().to_owned();
    assert!(last.contains("2 of 4 jobs finished") && last.contains("run the same command again"), "{last}");
    assert_eq!(world.alive(), [0; 0]);
    world.release("slow", "small-train");
    assert_eq!(digest(&world.run()), digest(&World::new().run()));
}

#[test]
fn changed_settings_put_earlier_work_aside_and_repeat_only_what_depends_on_them() {
    let world = World::new();
    digest(&world.run());
    world.forget_events();
    world.manifest(&common::MANIFEST.replace("size: 8", "size: 9"));
    let output = world.run();
    digest(&output);
    let started: Vec<String> =
        world.events().into_iter().filter(|(_, what, _)| what == "start").map(|(name, ..)| name).collect();
    assert!(started.contains(&"small-eval".to_owned()) && !started.contains(&"small-train".to_owned()), "{started:?}");
    assert!(stderr(&output).contains("earlier work kept in"), "{}", stderr(&output));
    assert_eq!(std::fs::read_dir(world.path(".s3/run/archive")).unwrap().count(), 1);
}

#[test]
fn one_state_folder_takes_one_run() {
    let world = World::new();
    world.control("slow", "small-index", "0.5");
    let run = world.start(&[]);
    world.until("the index", || world.count("small-index", "start") == 1);
    let second = world.run();
    assert_eq!(second.status.code(), Some(64));
    assert!(errors(&second)[0].starts_with("another s3 works on"), "{:?}", errors(&second));
    signal(&run, Signal::SIGTERM);
    run.wait_with_output().unwrap();
}

#[test]
fn a_question_is_answered_after_the_run_and_beside_kept_services() {
    let world = World::new();
    digest(&world.run());
    let output = world.s3(&["ask", "What is the capital of France?"]);
    let text = stdout(&output);
    assert!(text.contains("search    capital France") && text.contains("answer    Paris"), "{text}{}", stderr(&output));
    assert!(text.contains("✓ 1. Paris"), "{text}");
    assert_eq!(world.alive(), [0; 0]);

    let run = world.start(&["--keep-services"]);
    world.until("services", || stdout_of_status(&world).matches("ready").count() == 2);
    let output = world.s3(&["ask", "What is the capital of France?"]);
    assert!(stdout(&output).contains("answer    Paris"), "{}", stderr(&output));
    signal(&run, Signal::SIGINT);
    digest(&run.wait_with_output().unwrap());
}

fn stdout_of_status(world: &World) -> String {
    stdout(&world.s3(&["status"]))
}
