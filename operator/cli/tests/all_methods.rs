//! Every method on two datasets from one file, with real models and a real index: killed, continued, and the same again.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Questions asked, of both datasets together.
const QUESTIONS: usize = 2;
/// Limits of every method that plays, so that a small model is soon done.
const SEARCH: &str = "search: {maxSearches: 1, topK: 1, maxSelected: 1, maxPassages: 2, passageTokens: 32, observationTokens: 120, turnTokens: 16, contextTokens: 900}";
/// How long a run may take before something hangs.
const PATIENCE: Duration = Duration::from_secs(900);

struct World {
    folder: tempfile::TempDir,
    data: PathBuf,
    examples: PathBuf,
}

impl World {
    fn new() -> Self {
        for worker in ["s3-retriever", "s3-generator-gateway", "s3-evaluator"] {
            let path = Path::new(env!("CARGO_BIN_EXE_s3")).with_file_name(worker);
            assert!(path.exists(), "{} is not built; run `cargo build --workspace --bins`", path.display());
        }
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let data = std::env::var_os("S3_DATA").map_or_else(|| repository.join(".s3/data"), PathBuf::from);
        let model = data.join("models/smollm2-135m-instruct/model.gguf");
        assert!(model.exists(), "{} is missing; run `make data`", model.display());
        let world = Self { folder: tempfile::tempdir().unwrap(), data, examples: repository.join("examples") };
        world.write();
        world
    }

    /// The recipe itself, with few questions and short turns; the index without its audit.
    fn write(&self) {
        let read = |file: &str| std::fs::read_to_string(self.examples.join(file)).unwrap();
        let mut recipe = read("recipes/all-methods.yaml").replace("size: 16", &format!("size: {QUESTIONS}"));
        for method in ["Sft", "R1", "DeepRetrieval", "IrCot", "SearchO1", "SearchR1"] {
            let line = format!("      method: {method}\n");
            assert!(recipe.contains(&line), "{method} is in the recipe");
            recipe = recipe.replace(&line, &format!("{line}      {SEARCH}\n"));
        }
        let recipe = recipe.replace("  determinism: Bitwise\n  chunk: 16\n", "  determinism: Bitwise\n  chunk: 1\n");
        assert!(recipe.contains("\n  chunk: 1\n"));
        let index = read("quickstart/retrieverindex.yaml").replace("verify: 64", "verify: 1");
        let (index, _audit) = index.split_once("  audit:").unwrap();
        std::fs::write(self.path("recipe.yaml"), recipe).unwrap();
        std::fs::write(self.path("index.yaml"), index).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start(&self) -> Child {
        let volume = |name: &str, path: &Path| format!("{name}={}", path.display());
        Command::new(env!("CARGO_BIN_EXE_s3"))
            .arg("run")
            .args([self.path("index.yaml"), self.path("recipe.yaml")])
            .args(["--volume", &volume("data", &self.data)])
            .args(["--volume", &volume("assets", &self.examples.join("quickstart"))])
            .arg("--state")
            .arg(self.path("state"))
            .env_remove("S3_BIN_DIR")
            .env_remove("RUST_LOG")
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(self.path("stderr")).unwrap())
            .spawn()
            .unwrap()
    }

    /// Runs to the end; the last line it prints.
    fn finish(&self) -> (String, String) {
        let output = self.start().wait_with_output().unwrap();
        let told = String::from_utf8(output.stdout).unwrap();
        let errors = std::fs::read_to_string(self.path("stderr")).unwrap();
        assert!(output.status.success(), "{told}\n{errors}");
        let digest = told.lines().last().unwrap_or_default().to_owned();
        assert!(digest.starts_with("digest "), "{told}\n{errors}");
        (told, digest)
    }

    /// The file of that name below the run's state.
    fn find(&self, name: &str) -> Option<PathBuf> {
        let mut folders = vec![self.path("state")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.file_name().is_some_and(|found| found == name) {
                    return Some(path);
                }
            }
        }
        None
    }
}

#[test]
fn one_file_runs_every_method_on_two_datasets() {
    let world = World::new();
    // killed once some arms are done and others are not
    let mut child = world.start();
    let began = Instant::now();
    let lines = |world: &World| {
        let journal = world.find("units.journal").and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
        journal.iter().filter(|byte| **byte == b'\n').count()
    };
    while lines(&world) < 5 * QUESTIONS {
        let ended = child.try_wait().unwrap();
        let errors = || std::fs::read_to_string(world.path("stderr")).unwrap();
        assert!(ended.is_none(), "it ended before it could be killed: {}", errors());
        assert!(began.elapsed() < PATIENCE, "{}", errors());
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let (told, digest) = world.finish();
    println!("{told}");

    let rows = std::fs::read_to_string(world.find("results.jsonl").unwrap()).unwrap();
    let rows: Vec<Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let recipe = std::fs::read_to_string(world.path("recipe.yaml")).unwrap();
    let arms: Vec<&str> = recipe
        .split_once("  arms:\n")
        .and_then(|(_, rest)| rest.split_once("\n  retriever:"))
        .unwrap()
        .0
        .lines()
        .filter_map(|line| line.strip_prefix("    - name: "))
        .collect();
    assert!(arms.len() > 20, "{arms:?}");
    for arm in &arms {
        let of_arm = rows.iter().filter(|row| row["arm"] == *arm);
        let mut places: Vec<u64> = of_arm.clone().map(|row| row["place"].as_u64().unwrap()).collect();
        places.sort_unstable();
        assert_eq!(places, (0..QUESTIONS as u64).collect::<Vec<_>>(), "{arm}: every question, the last one too");
        assert!(told.contains(arm), "{arm} is in the table");
        for row in of_arm {
            assert!(row["refused"].is_null() && row["answer"].is_string(), "{arm}: {row}");
        }
    }
    for arm in
        ["deep-retrieval", "ircot", "search-o1", "search-r1", "r1", "sft", "chain-of-thought", "s3", "s3-no-both"]
    {
        let turns = |row: &Value| row["episode"]["turns"].as_array().map_or(0, Vec::len);
        assert!(rows.iter().filter(|row| row["arm"] == arm).all(|row| turns(row) > 0), "{arm} shows its turns");
    }

    // once more from nothing but the indices and the gateway's cache
    let journal = world.find("units.journal").unwrap();
    let work = journal.parent().and_then(Path::parent).unwrap().to_owned();
    std::fs::remove_dir_all(&work).unwrap();
    assert_eq!(world.finish().1, digest);
}
