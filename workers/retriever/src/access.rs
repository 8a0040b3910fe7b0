//! Who may ask: whoever shows one of the tokens in a folder, a file each, as a Secret is mounted.

use crate::error::{Result, RetrieverError};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The folder is looked at again this often: tokens are renewed.
const LOOK: Duration = Duration::from_millis(500);
/// Shorter ones could be guessed.
const SHORTEST: usize = 16;

/// The callers' tokens, as digests.
pub struct Access {
    folder: Option<PathBuf>,
    known: Mutex<Known>,
}

struct Known {
    digests: Arc<HashSet<[u8; 32]>>,
    looked: Instant,
}

fn read(folder: &Path) -> Result<HashSet<[u8; 32]>> {
    let mut digests = HashSet::new();
    for entry in std::fs::read_dir(folder).map_err(RetrieverError::open("tokens folder", folder))? {
        let entry = entry.map_err(RetrieverError::io("list", folder))?;
        let path = entry.path();
        // files that begin with a dot are the mount's own
        if entry.file_name().as_encoded_bytes().starts_with(b".") || !path.is_file() {
            continue;
        }
        let token = std::fs::read_to_string(&path).map_err(RetrieverError::io("read", &path))?;
        if token.trim().len() >= SHORTEST {
            digests.insert(Sha256::digest(token.trim()).into());
        } else {
            tracing::warn!(file = %path.display(), "its token is shorter than {SHORTEST} characters and is not accepted");
        }
    }
    Ok(digests)
}

impl Access {
    /// Reads the tokens of a folder; without one everyone may ask.
    pub fn open(folder: Option<&Path>) -> Result<Self> {
        let digests = Arc::new(folder.map(read).transpose()?.unwrap_or_default());
        if let Some(folder) = folder.filter(|_| digests.is_empty()) {
            let reason = format!("holds no token of at least {SHORTEST} characters; nobody could ask anything");
            return Err(RetrieverError::content(folder, reason));
        }
        Ok(Self { folder: folder.map(Path::to_owned), known: Mutex::new(Known { digests, looked: Instant::now() }) })
    }

    /// Whether a request with this `authorization` is answered.
    pub fn allows(&self, authorization: Option<&[u8]>) -> bool {
        let Some(folder) = &self.folder else { return true };
        let allowed = authorization
            .and_then(|value| std::str::from_utf8(value).ok())
            .and_then(|value| value.trim().split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            // digests are compared, so the time of a comparison tells nothing of a token
            .is_some_and(|(_, token)| self.now(folder).contains(&<[u8; 32]>::from(Sha256::digest(token.trim()))));
        if !allowed {
            s3_telemetry::metrics().retriever_refused.with_label_values(&["identity"]).inc();
        }
        allowed
    }

    fn now(&self, folder: &Path) -> Arc<HashSet<[u8; 32]>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.looked.elapsed() >= LOOK {
            known.looked = Instant::now();
            match read(folder) {
                Ok(digests) => known.digests = Arc::new(digests),
                // a mount that is being replaced; the old tokens hold until it can be read
                Err(error) => tracing::warn!(%error, "the callers' tokens cannot be read"),
            }
        }
        known.digests.clone()
    }
}

/// What a refused caller is told.
pub const DENIED: &str = "nobody has this token; send the caller's own as `authorization: Bearer TOKEN`";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tokens_open_and_are_renewed() {
        assert!(Access::open(None).unwrap().allows(None));
        let folder = tempfile::tempdir().unwrap();
        assert!(Access::open(Some(folder.path())).is_err(), "no token at all");
        std::fs::write(folder.path().join("job-a"), "token-of-job-a-0001\n").unwrap();
        std::fs::write(folder.path().join("short"), "short").unwrap();
        let access = Access::open(Some(folder.path())).unwrap();
        let ask = |value: &str| access.allows(Some(value.as_bytes()));
        assert!(ask("Bearer token-of-job-a-0001") && ask("bearer  token-of-job-a-0001 "));
        for wrong in [
            "Bearer token-of-job-a-0002",
            "Bearer short",
            "Bearer ",
            "token-of-job-a-0001",
            "Basic token-of-job-a-0001",
            "",
        ] {
            assert!(!ask(wrong), "{wrong}");
        }
        assert!(!access.allows(None));
        std::fs::write(folder.path().join("job-a"), "token-of-job-a-9999").unwrap();
        let started = Instant::now();
        while !ask("Bearer token-of-job-a-9999") {
            assert!(started.elapsed() < Duration::from_secs(30));
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(!ask("Bearer token-of-job-a-0001"));
    }
}
