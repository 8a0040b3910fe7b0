//! All files of a configuration.

use crate::FetchError;
use crate::download::{clear, download};
use crate::store::{open, title};
use s3_artifacts::{digest_bytes, digest_file, digest_json, write_atomic};
use s3_config::{FetchConfig, FetchFile, FetchSource};
use s3_telemetry::{Outcome, Progress, Shutdown};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// The record of what was fetched, in a source's folder.
const RECORD: &str = ".fetched.json";
/// Contents by sha256.
const BLOBS: &str = "blobs";
/// Half-fetched files.
const PARTS: &str = "parts";

/// A file as it was fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Fetched {
    sha256: String,
    size: u64,
}

/// Fetches what is missing. The outcome's digest is over the contents by key and name.
pub async fn run(config: &FetchConfig, progress: &Progress, shutdown: &Shutdown) -> Result<Outcome, FetchError> {
    for folder in [BLOBS, PARTS] {
        let folder = config.output.join(folder);
        std::fs::create_dir_all(&folder).map_err(FetchError::io("create", &folder))?;
    }
    let (mut contents, mut bytes, mut fetched) = (BTreeMap::new(), 0, 0_u64);
    for source in &config.sources {
        let folder = config.output.join(&source.key);
        let mut record = read_record(&folder);
        for file in &source.files {
            let what = format!("{}/{}", title(&source.location), file.path);
            let known = record.get(&file.name).filter(|known| kept(&folder, file, known)).cloned();
            let entry = if let Some(known) = known {
                known
            } else {
                progress.phase(format!("fetch {what}"), 0);
                let entry = fetch(config, source, file, &what, progress, shutdown).await?;
                record.insert(file.name.clone(), entry.clone());
                let text = serde_json::to_vec_pretty(&record).map_err(s3_artifacts::ArtifactError::from)?;
                write_atomic(&folder.join(RECORD), &text)?;
                fetched += 1;
                tracing::info!(what, sha256 = entry.sha256, bytes = entry.size, "fetched");
                entry
            };
            bytes += entry.size;
            contents.insert(format!("{}/{}", source.key, file.name), entry.sha256);
        }
    }
    let digest = digest_json(&contents)?;
    Ok(Outcome { digest, summary: json!({ "files": contents.len(), "fetched": fetched, "bytes": bytes }) })
}

/// Whether a recorded file is still there and still what is expected.
fn kept(folder: &Path, file: &FetchFile, known: &Fetched) -> bool {
    file.sha256.as_ref().is_none_or(|expected| *expected == known.sha256)
        && std::fs::metadata(folder.join(&file.name)).is_ok_and(|meta| meta.len() == known.size)
}

async fn fetch(
    config: &FetchConfig,
    source: &FetchSource,
    file: &FetchFile,
    what: &str,
    progress: &Progress,
    shutdown: &Shutdown,
) -> Result<Fetched, FetchError> {
    if Path::new(&file.name).components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
        return Err(FetchError::Config(format!("{}: the name leaves the folder", file.name)));
    }
    let store = open(source)?;
    let part = config.output.join(PARTS).join(digest_bytes(format!("{}\n{}", source.key, file.name).as_bytes()));
    let size = download(store.as_ref(), what, &file.path, &part, shutdown, |have, whole| {
        if progress.report().total != whole {
            progress.phase(format!("fetch {what}"), whole);
        }
        progress.done(have);
    })
    .await?;
    let sha256 = digest_file(&part)?;
    if let Some(expected) = file.sha256.as_ref().filter(|expected| **expected != sha256) {
        clear(&part)?;
        return Err(FetchError::Digest { what: what.to_owned(), expected: expected.clone(), actual: sha256 });
    }
    let blob = config.output.join(BLOBS).join(&sha256);
    std::fs::rename(&part, &blob).map_err(FetchError::io("keep", &blob))?;
    clear(&part)?;
    link(&config.output.join(&source.key), &file.name, &sha256)?;
    Ok(Fetched { sha256, size })
}

/// Makes `NAME` in the folder lead to the content, replacing what it led to.
fn link(folder: &Path, name: &str, sha256: &str) -> Result<(), FetchError> {
    let place = folder.join(name);
    if let Some(parent) = place.parent() {
        std::fs::create_dir_all(parent).map_err(FetchError::io("create", parent))?;
    }
    // Relative, because every pod mounts the volume at a place of its own.
    let up = "../".repeat(1 + Path::new(name).components().count().saturating_sub(1));
    let temporary = folder.join(format!(".{sha256}.link"));
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(FetchError::io("remove", &temporary)(error));
        }
        _ => {}
    }
    std::os::unix::fs::symlink(format!("{up}{BLOBS}/{sha256}"), &temporary)
        .and_then(|()| std::fs::rename(&temporary, &place))
        .map_err(FetchError::io("link", &place))
}

fn read_record(folder: &Path) -> BTreeMap<String, Fetched> {
    // One that cannot be read is none: what it said is fetched again.
    std::fs::read(folder.join(RECORD)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}
