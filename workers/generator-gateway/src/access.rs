//! Who calls: by token where tokens are configured, by their own word where not.

use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

/// Caller of whoever says nothing, where no tokens are configured.
const ANONYMOUS: &str = "anonymous";
/// The folder is looked at again this often.
const LOOK: Duration = Duration::from_millis(500);
const LONGEST_NAME: usize = 253;

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// There is no token, or nobody's.
    #[error("no caller has this token; send the job's own as `authorization: Bearer TOKEN`")]
    Unknown,
    /// The token is another caller's.
    #[error("the token does not belong to the caller that the request names")]
    Foreign,
    /// The name cannot be one.
    #[error("a caller's name has 1 to 253 visible characters")]
    Name,
}

#[derive(Default)]
struct Known {
    callers: HashMap<[u8; 32], Arc<str>>,
    changed: Option<SystemTime>,
    looked: Option<Instant>,
}

/// The callers.
pub struct Access {
    folder: Option<PathBuf>,
    known: RwLock<Known>,
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// A file a caller; files that begin with a dot are the mount's own.
fn read(folder: &Path) -> std::io::Result<HashMap<[u8; 32], Arc<str>>> {
    let mut callers = HashMap::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || !std::fs::metadata(entry.path())?.is_file() {
            continue;
        }
        let token = std::fs::read_to_string(entry.path())?;
        if token.trim().len() >= 16 {
            callers.insert(digest(token.trim()), name.into());
        } else {
            tracing::warn!(caller = name, "its token is shorter than 16 characters and is not accepted");
        }
    }
    Ok(callers)
}

impl Access {
    /// Callers by their files in a folder; none believes everybody.
    pub fn new(folder: Option<&Path>) -> Result<Self, String> {
        let access = Self { folder: folder.map(Path::to_owned), known: RwLock::default() };
        if let Some(folder) = folder {
            read(folder).map_err(|e| format!("callerTokens {}: {e}", folder.display()))?;
            access.look(folder);
        }
        Ok(access)
    }

    /// Reads the folder again when it has changed.
    fn look(&self, folder: &Path) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return;
        }
        known.looked = Some(Instant::now());
        let changed = std::fs::metadata(folder).and_then(|data| data.modified()).ok();
        // a folder that changed a moment ago may change again within the clock's step
        let settled = changed.and_then(|at| at.elapsed().ok()).is_some_and(|age| age > 4 * LOOK);
        if changed.is_some() && changed == known.changed && settled {
            return;
        }
        match read(folder) {
            Ok(callers) => (known.callers, known.changed) = (callers, changed),
            // a mount that is being replaced; the old tokens hold until it can be read
            Err(error) => tracing::warn!(%error, folder = %folder.display(), "the callers' tokens cannot be read"),
        }
    }

    /// The caller of a request: `authorization` is the header's value, `claimed` what the request calls its caller.
    pub fn identify(&self, authorization: Option<&str>, claimed: &str) -> Result<Arc<str>, Denied> {
        let Some(folder) = &self.folder else {
            if claimed.is_empty() {
                return Ok(ANONYMOUS.into());
            }
            let plain = claimed.len() <= LONGEST_NAME && claimed.chars().all(|c| !c.is_control());
            return if plain { Ok(claimed.into()) } else { Err(Denied::Name) };
        };
        let token = authorization.and_then(|value| {
            let (scheme, token) = value.trim().split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        let digest = digest(token.ok_or(Denied::Unknown)?);
        let find = || {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            let fresh = known.looked.is_some_and(|looked| looked.elapsed() < LOOK);
            (known.callers.get(&digest).cloned(), fresh)
        };
        // digests are compared, so the time of a comparison tells nothing of a token
        let (mut caller, fresh) = find();
        if !fresh {
            self.look(folder);
            caller = find().0;
        }
        let caller = caller.ok_or(Denied::Unknown)?;
        if claimed.is_empty() || claimed == &*caller { Ok(caller) } else { Err(Denied::Foreign) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_token_speaks_for_its_caller_only() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, token: &str| std::fs::write(folder.path().join(name), token).unwrap();
        write("job-a", "token-of-job-a-0001\n");
        write("job-b", "token-of-job-b-0002");
        write("weak", "short");
        write("..data", "token-of-the-mount-3");
        let access = Access::new(Some(folder.path())).unwrap();
        let ask = |token: &str, claimed: &str| access.identify(Some(&format!("Bearer {token}")), claimed);
        assert_eq!(&*ask("token-of-job-a-0001", "").unwrap(), "job-a");
        assert_eq!(&*ask("token-of-job-b-0002", "job-b").unwrap(), "job-b");
        assert_eq!(ask("token-of-job-a-0001", "job-b"), Err(Denied::Foreign));
        for wrong in ["token-of-job-a-0002", "short", "", "token-of-the-mount-3"] {
            assert_eq!(ask(wrong, ""), Err(Denied::Unknown), "{wrong}");
        }
        assert_eq!(access.identify(None, "job-a"), Err(Denied::Unknown));
        assert_eq!(access.identify(Some("Basic token-of-job-a-0001"), ""), Err(Denied::Unknown));
        // rotated: the new one counts within a second, the old one no longer
        write("job-a", "token-of-job-a-9999");
        let until = Instant::now() + Duration::from_secs(20);
        while ask("token-of-job-a-9999", "").is_err() {
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(ask("token-of-job-a-0001", ""), Err(Denied::Unknown));
        assert!(Access::new(Some(Path::new("/no/such/folder"))).err().unwrap().contains("/no/such/folder"));
    }

    #[test]
    fn without_tokens_callers_are_believed() {
        let access = Access::new(None).unwrap();
        assert_eq!(&*access.identify(None, "").unwrap(), ANONYMOUS);
        assert_eq!(&*access.identify(Some("Bearer x"), "job").unwrap(), "job");
        assert_eq!(access.identify(None, "a\nb"), Err(Denied::Name));
    }
}
