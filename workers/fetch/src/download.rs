//! One file from a store to the disk, from where an earlier try stopped.

use crate::FetchError;
use futures_util::StreamExt;
use object_store::path::Path as StorePath;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt};
use s3_artifacts::write_atomic;
use s3_telemetry::Shutdown;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use tokio::io::AsyncWriteExt;

/// What a half-fetched file is a part of.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Whole {
    /// The store's mark of the content; none means that it cannot be continued.
    etag: Option<String>,
    size: u64,
}

/// Fetches into `part`; what lies there of the same content is continued. `seen` is told how much has come.
pub async fn download(
    store: &dyn ObjectStore,
    what: &str,
    path: &str,
    part: &Path,
    shutdown: &Shutdown,
    mut seen: impl FnMut(u64, u64),
) -> Result<u64, FetchError> {
    let place = StorePath::parse(path).map_err(|error| FetchError::Config(format!("{what}: {error}")))?;
    let mark = mark_of(part);
    let mut have = match (std::fs::metadata(part), read_mark(&mark)) {
        (Ok(meta), Some(Whole { etag: Some(_), .. })) => meta.len(),
        _ => 0,
    };
    if have > 0 {
        let whole = read_mark(&mark);
        let same = store.head(&place).await.map_err(|error| FetchError::store(what, &error))?;
        let same = Whole { etag: same.e_tag, size: same.size };
        if whole.as_ref() != Some(&same) {
            have = 0;
        } else if have == same.size {
            seen(have, same.size);
            return Ok(have);
        }
    }
    let options = GetOptions { range: (have > 0).then_some(GetRange::Offset(have)), ..GetOptions::default() };
    let result = store.get_opts(&place, options).await.map_err(|error| FetchError::store(what, &error))?;
    let size = result.meta.size;
    let whole = Whole { etag: result.meta.e_tag.clone(), size };
    let text = serde_json::to_vec(&whole).map_err(s3_artifacts::ArtifactError::from)?;
    write_atomic(&mark, &text)?;

    let mut file = tokio::fs::OpenOptions::new()
        .create(true)
        .write(true)
        .append(have > 0)
        .truncate(have == 0)
        .open(part)
        .await
        .map_err(FetchError::io("open", part))?;
    let mut chunks = result.into_stream();
    while let Some(chunk) = tokio::select! {
        chunk = chunks.next() => chunk,
        () = shutdown.wait() => {
            file.flush().await.map_err(FetchError::io("write", part))?;
            return Err(FetchError::Interrupted);
        }
    } {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => {
                file.flush().await.map_err(FetchError::io("write", part))?;
                return Err(FetchError::store(what, &error));
            }
        };
        file.write_all(&chunk).await.map_err(FetchError::io("write", part))?;
        have += chunk.len() as u64;
        seen(have, size);
    }
    file.sync_all().await.map_err(FetchError::io("write", part))?;
    if have != size {
        let reason = format!("{have} of {size} bytes came");
        return Err(FetchError::Unavailable { what: what.to_owned(), reason });
    }
    Ok(size)
}

/// Clears what belongs to a part that has become whole, or is of no use.
pub fn clear(part: &Path) -> Result<(), FetchError> {
    for path in [part.to_owned(), mark_of(part)] {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(FetchError::io("remove", &path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn mark_of(part: &Path) -> PathBuf {
    part.with_extension("json")
}

fn read_mark(mark: &Path) -> Option<Whole> {
    serde_json::from_slice(&std::fs::read(mark).ok()?).ok()
}
