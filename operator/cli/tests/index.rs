//! `s3 index` with the real `s3-retriever`, which lies beside `s3` once the workspace is built.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct World {
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let worker = Path::new(env!("CARGO_BIN_EXE_s3")).with_file_name("s3-retriever");
        assert!(worker.exists(), "{} is not built; run `cargo build --workspace --bins`", worker.display());
        let world = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::create_dir(world.path("corpus")).unwrap();
        // Anserini's layout: several files, the title in quotes on the first line
        for (file, from) in [("a.jsonl", 0), ("b.jsonl", 40)] {
            let line = |at: usize| {
                let (place, animal) =
                    (["river", "mountain", "city"][at % 3], ["heron", "otter", "lynx", "crane"][at % 4]);
                format!(
                    "{{\"id\":\"p{at}\",\"contents\":\"\\\"The {animal} {at}\\\"\\nA {animal} lives by the {place}.\",\"kind\":\"{animal}\"}}\n"
                )
            };
            std::fs::write(world.path("corpus").join(file), (from..from + 40).map(line).collect::<String>()).unwrap();
        }
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn s3(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_s3"))
            .arg("index")
            .args(arguments)
            .current_dir(self.folder.path())
            .env_remove("S3_BIN_DIR")
            .env_remove("RUST_LOG")
            .output()
            .unwrap()
    }

    fn told(&self, arguments: &[&str]) -> String {
        let output = self.s3(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn refused(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.s3(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(lines.len(), 1, "{arguments:?}: {said}");
        (output.status.code().unwrap(), lines[0].to_owned())
    }
}

#[test]
fn an_index_is_built_inspected_verified_searched_and_compared() {
    let world = World::new();
    let told = world.told(&["build", "--corpus", "corpus", "--output", "one", "--threads", "1"]);
    let digest = told.lines().last().unwrap().strip_prefix("digest ").unwrap().to_owned();
    assert!(told.starts_with("80 passages, "), "{told}");
    // again: the same, and nothing to do
    assert_eq!(world.told(&["build", "--corpus", "corpus", "--output", "one"]), told);

    let told = world.told(&["inspect", "one"]);
    assert!(told.starts_with(&format!("{digest}  (current)")) && told.contains("BM25, k1 0.9, b 0.4"), "{told}");
    let told = world.told(&["verify", "one"]);
    assert!(told.ends_with("whole: 4 files have their sha256\n"), "{told}");

    let told = world.told(&["search", "one", "heron river", "lynx", "-k", "3", "--not", "id=p0"]);
    assert!(
        told.contains("heron river\n   1.") && told.contains("[p12] The heron 12: A heron lives by the river."),
        "{told}"
    );
    assert!(!told.contains("[p0]"), "{told}");
    let told = world.told(&["search", "one", "lives", "--where", "kind=otter", "--where", "kind=lynx", "--json"]);
    let found: serde_json::Value = serde_json::from_str(&told).unwrap();
    let hits = found["results"][0].as_array().unwrap();
    assert_eq!(hits.len(), 10);
    assert!(hits.iter().all(|hit| hit["metadata"]["kind"] == "otter" || hit["metadata"]["kind"] == "lynx"), "{told}");

    world.told(&["build", "--corpus", "corpus", "--output", "two", "--k1", "2", "--b", "0", "--limit", "60"]);
    std::fs::write(world.path("queries.txt"), "heron river\n\nlynx mountain\n{\"question\": \"otter city\"}\n")
        .unwrap();
    let told = world.told(&["compare", "one", "two", "--queries", "queries.txt", "-k", "5"]);
    assert!(
        told.contains("differs in lexical.k1: 0.9 and 2.0") && told.contains("differs in limit: null and 60"),
        "{told}"
    );
    assert!(told.contains("3 queries, 5 passages each: "), "{told}");
    let told = world.told(&["compare", "one", "one", "--queries", "queries.txt"]);
    assert!(told.contains("100.00 % of the passages are the same") && !told.contains("differs"), "{told}");
}

#[test]
fn wrong_inputs_end_in_one_line() {
    let world = World::new();
    for (arguments, code, says) in [
        (&["build", "--corpus", "nowhere", "--output", "x"][..], 64, "nowhere is not there"),
        (&["build", "--corpus", "corpus", "--output", "x", "--corpus-sha256", "00"], 64, "list of digests"),
        (&["build", "--corpus", "corpus", "--output", "x", "--audit", "nq"], 64, "write NAME=FILE"),
        (&["build", "--corpus", "corpus", "--output", "x", "--encoder", "none"], 64, "model.safetensors is not there"),
        (&["inspect", "nowhere"], 64, "no index is published there"),
        (&["search", "nowhere", "a"], 64, "no index is published there"),
        (&["search", "nowhere", "a", "--where", "kind"], 64, "write FIELD=VALUE"),
        (&["search", "http://127.0.0.1:1", "a", "--encoder", "e"], 64, "belong to a folder"),
        (&["compare", "a", "b", "--queries", "none.txt"], 74, "none.txt"),
        (&["import", "--part", "none", "--corpus", "corpus", "--encoder", "e", "--output", "x"], 74, "none"),
    ] {
        let (found, line) = world.refused(arguments);
        assert!(found == code && line.contains(says), "{arguments:?}: {found} {line}");
    }
}
