//! Several workers build one index: the same as one does, whoever is first, killed or missing; and never two of a kind.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{World, command, read_json, refused};
use s3_retriever::index::Index;
use s3_retriever::team::Team;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime};

const PASSAGES: usize = 6000;

/// The configuration of one of several workers.
fn worker(world: &World, rank: usize, workers: usize) -> PathBuf {
    let mut config = world.build_config();
    let members: Vec<String> = (0..workers).map(|rank| format!("r{rank}.builders:9400")).collect();
    config["runtime"]["team"] = json!({"rank": rank, "members": members, "togetherSeconds": 60, "silenceSeconds": 30});
    if rank > 0 {
        (config["runtime"]["progress"], config["runtime"]["result"]) = (Value::Null, Value::Null);
    }
    world.save(&format!("worker-{rank}.yaml"), &config)
}

fn start(config: &Path) -> Child {
    command(&["build", "--config", config.to_str().unwrap()]).stderr(Stdio::piped()).spawn().unwrap()
}

fn end(child: Child) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Shards that are there: number and when each was written.
fn shards(world: &World) -> Vec<(usize, SystemTime)> {
    let Ok(state) = std::fs::read_dir(world.path("build-state")) else { return Vec::new() };
    let folder = state.flatten().map(|entry| entry.path()).find(|path| {
        path.is_dir() && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vectors-"))
    });
    let Some(entries) = folder.and_then(|folder| std::fs::read_dir(folder).ok()) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            let first: usize = name.strip_suffix(".shard")?.parse().ok()?;
            Some((first / 256, entry.metadata().ok()?.modified().ok()?))
        })
        .collect();
    found.sort_unstable();
    found
}

#[test]
fn any_number_of_workers_builds_the_same_index() {
    let world = World::new(PASSAGES);
    let expected = world.build();
    let digest = expected["digest"].as_str().unwrap().to_owned();
    for (workers, order) in [(2, vec![0, 1]), (3, vec![2, 1, 0]), (3, vec![0, 2, 1])] {
        std::fs::remove_dir_all(world.path("index")).unwrap();
        let children: Vec<Child> = order.iter().map(|rank| start(&worker(&world, *rank, workers))).collect();
        children.into_iter().for_each(end);
        assert_eq!(read_json(&world.path("build-result.json")), expected, "{workers} workers");
        assert_eq!(Index::open_current(&world.path("index")).unwrap().digest, digest);
        assert!(shards(&world).is_empty(), "shards are left behind");
        // what comes too late has nothing to do
        end(start(&worker(&world, 1, workers)));
        assert!(shards(&world).is_empty());
    }
}

#[test]
fn a_killed_worker_goes_on_from_its_shards() {
    let world = World::new(PASSAGES);
    let expected = world.build();
    std::fs::remove_dir_all(world.path("index")).unwrap();
    let configs = [0, 1, 2].map(|rank| worker(&world, rank, 3));
    // in the midst of its share: something is there and something is missing
    let share = (0..PASSAGES.div_ceil(256)).filter(|shard| shard % 3 == 1).count();
    let mut kept = Vec::new();
    for round in 0.. {
        assert!(round < 20, "the worker ends before it can be killed");
        let mut child = start(&configs[1]);
        while shards(&world).is_empty() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kept = shards(&world);
        assert!(kept.iter().all(|(shard, _)| shard % 3 == 1), "{kept:?}");
        if !kept.is_empty() && kept.len() < share {
            break;
        }
        std::fs::remove_dir_all(world.path("build-state")).unwrap();
    }
    // the others build meanwhile; the last shards are this worker's
    let (first, third) = (start(&configs[0]), start(&configs[2]));
    end(third);
    let started = Instant::now();
    while shards(&world).len() < kept.len() + PASSAGES.div_ceil(256) - share {
        assert!(started.elapsed() < Duration::from_secs(60), "the others do not finish: {:?}", shards(&world));
        std::thread::sleep(Duration::from_millis(5));
    }
    let now = shards(&world);
    assert!(kept.iter().all(|shard| now.contains(shard)), "finished shards were written again");
    assert!(!world.path("index/CURRENT").exists(), "published without the shards of one worker");
    end(start(&configs[1]));
    end(first);
    assert_eq!(read_json(&world.path("build-result.json")), expected);
}

#[test]
fn a_killed_first_worker_goes_on_and_the_others_need_not_wait_for_it() {
    let world = World::new(PASSAGES);
    let expected = world.build();
    std::fs::remove_dir_all(world.path("index")).unwrap();
    let configs = [0, 1].map(|rank| worker(&world, rank, 2));
    let mut first = start(&configs[0]);
    while !shards(&world).iter().any(|(shard, _)| shard % 2 == 0) {
        assert!(first.try_wait().unwrap().is_none(), "it ended");
        std::thread::sleep(Duration::from_millis(1));
    }
    first.kill().unwrap();
    first.wait().unwrap();
    end(start(&configs[1]));
    assert!(!world.path("index/CURRENT").exists(), "published by another than the first");
    end(start(&configs[0]));
    assert_eq!(read_json(&world.path("build-result.json")), expected);
    // another number of workers goes on from the same shards: one builds what two began
    std::fs::remove_dir_all(world.path("index")).unwrap();
    end(start(&worker(&world, 1, 2)));
    assert!(!shards(&world).is_empty());
    assert_eq!(world.build(), expected);
}

#[test]
fn nobody_is_a_worker_twice_and_a_missing_one_is_named() {
    let world = World::new(600);
    for rank in [0, 1] {
        let path = worker(&world, rank, 2);
        let config: s3_config::IndexBuildConfig = s3_config::load(&path).unwrap();
        let held = Team::join(&config.runtime).unwrap().unwrap();
        let (code, line) = refused(&["build", "--config", path.to_str().unwrap()]);
        assert_eq!(code, 69);
        assert!(line.contains(&format!("another process is worker {rank} of the build")), "{line}");
        drop(held);
    }
    let mut config = read_json(&worker(&world, 0, 2));
    config["runtime"]["team"]["togetherSeconds"] = json!(1);
    let path = world.save("impatient.yaml", &config);
    let (code, line) = refused(&["build", "--config", path.to_str().unwrap()]);
    assert_eq!(code, 76);
    assert!(line.contains("worker 1 (r1.builders:9400) of this build was not heard of for 1 s"), "{line}");
    config["runtime"]["team"]["rank"] = json!(2);
    let (code, line) = refused(&["build", "--config", world.save("third.yaml", &config).to_str().unwrap()]);
    assert_eq!(code, 64);
    assert!(line.contains("number them from 0"), "{line}");
    config["runtime"]["team"]["rank"] = json!(1);
    config["dense"] = Value::Null;
    let (code, line) = refused(&["build", "--config", world.save("lexical.yaml", &config).to_str().unwrap()]);
    assert_eq!(code, 64);
    assert!(line.contains("share the embedding"), "{line}");
}
