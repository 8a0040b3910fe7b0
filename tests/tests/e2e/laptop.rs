//! The same files by `s3 run` on the same machine.

use crate::cluster::say;
use std::path::Path;
use std::process::Command;

/// In Bitwise mode the digest of the job, of two replicas in the cluster, is that of one process on the laptop.
pub fn makes_the_same(digest: &str) {
    say("the same files by s3 run");
    let program = std::env::var_os("S3_CLI").expect("no S3_CLI; run this test with `make test-e2e`");
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let data = std::env::var("S3_DATA").unwrap_or_else(|_| repository.join(".s3/data").display().to_string());
    let state = tempfile::tempdir().unwrap();
    let output = Command::new(program)
        .current_dir(&repository)
        .arg("run")
        .args(["examples/quickstart/retrieverindex.yaml", "examples/quickstart/s3trainingjob.yaml"])
        .args(["--volume", &format!("data={data}"), "--volume", "assets=examples/quickstart"])
        .arg("--state")
        .arg(state.path())
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    let status = std::fs::read_to_string(state.path().join("status/S3TrainingJob-quickstart.yaml")).unwrap();
    assert!(
        status.contains(&format!("digest: {digest}")),
        "the cluster's digest is {digest}; the laptop says:\n{status}"
    );
    say(&format!("cluster and laptop: digest {digest}"));
}
