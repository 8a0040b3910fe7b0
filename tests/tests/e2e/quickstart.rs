//! The quickstart's files as they are, with volumes that hold its data.

use crate::cluster::{apply, kubectl, say};
use std::path::{Path, PathBuf};

/// Where the quickstart runs.
pub const NAMESPACE: &str = "quickstart";

/// The files and the folders behind their claims.
pub struct Quickstart {
    folder: PathBuf,
    data: PathBuf,
}

impl Quickstart {
    /// From the repository and `S3_DATA`.
    pub fn new() -> Self {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap();
        let data = std::env::var_os("S3_DATA").map_or_else(|| repository.join(".s3/data"), PathBuf::from);
        assert!(data.join("models").is_dir(), "{} holds no models; run `make data`", data.display());
        Self { folder: repository.join("examples/quickstart"), data }
    }

    /// Makes namespace, claims and resources.
    pub fn apply(&self) {
        say("the quickstart as custom resources");
        self.apply_to(NAMESPACE);
    }

    /// The same in another namespace.
    pub fn apply_to(&self, namespace: &str) {
        kubectl(&["create", "namespace", namespace]);
        for (name, folder) in [("data", &self.data), ("assets", &self.folder)] {
            apply(namespace, &volume(namespace, name, folder));
        }
        for file in ["retrieverindex.yaml", "s3trainingjob.yaml", "evalrun.yaml"] {
            let text = std::fs::read_to_string(self.folder.join(file)).unwrap();
            // two replicas, each with a GPU that the node only claims to have: they are scheduled by it and compute on the CPU
            let team = "\nspec:\n  parallelism:\n    replicas: 2\n    gpusPerReplica: 1\n  searcher:\n";
            let text = text.replace("\nspec:\n  searcher:\n", team);
            // the replicas of a team share their volume, wherever they run
            let shared = "\n  checkpoint:\n    storage:\n      accessMode: ReadWriteMany\n";
            let text = text.replace("\n  checkpoint:\n", shared);
            apply(namespace, &text);
        }
    }
}

/// A folder of the node as a claim that is only read.
fn volume(namespace: &str, name: &str, folder: &Path) -> String {
    let (volume, path) = (format!("{namespace}-{name}"), folder.display());
    let shape = "storageClassName: given, accessModes: [ReadOnlyMany]";
    format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: {volume}}}\nspec: {{{shape}, capacity: {{storage: 1Gi}}, \
         hostPath: {{path: {path}}}, claimRef: {{namespace: {namespace}, name: {name}}}}}\n---\n\
         apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{{shape}, resources: {{requests: {{storage: 1Gi}}}}}}\n"
    )
}
