//! Who calls: by token where tokens are configured, by their own word where not.

use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
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

type Callers = HashMap<[u8; 32], Arc<str>>;

#[derive(Default)]
struct Known {
    callers: Callers,
    /// When each file changed last.
    changed: Vec<Option<SystemTime>>,
    looked: Option<Instant>,
}

/// The callers.
pub struct Access {
    /// A file a caller, its name the caller's.
    folder: Option<PathBuf>,
    /// By caller its token's file.
    files: BTreeMap<String, PathBuf>,
    /// Whether everybody needs a token.
    strict: bool,
    known: RwLock<Known>,
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// A file a caller; files that begin with a dot are the mount's own.
fn read(folder: &Path, callers: &mut Callers) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || !std::fs::metadata(entry.path())?.is_file() {
            continue;
        }
        read_one(&name, &entry.path(), callers)?;
    }
    Ok(())
}

fn read_one(name: &str, path: &Path, callers: &mut Callers) -> std::io::Result<()> {
    let token = std::fs::read_to_string(path)?;
    if token.trim().len() >= 16 {
        callers.insert(digest(token.trim()), name.into());
    } else {
        tracing::warn!(caller = name, "its token is shorter than 16 characters and is not accepted");
    }
    Ok(())
}

impl Access {
    /// Callers by their files in a folder, and by files of their own. Others are believed unless there is a folder
    /// or `strict`; none can call itself by the name of one with a file of its own.
    pub fn new(folder: Option<&Path>, files: &BTreeMap<String, PathBuf>, strict: bool) -> Result<Self, String> {
        let strict = strict || folder.is_some();
        let access =
            Self { folder: folder.map(Path::to_owned), files: files.clone(), strict, known: RwLock::default() };
        access.read()?;
        access.look();
        Ok(access)
    }

    /// The callers by what lies in the files now.
    fn read(&self) -> Result<Callers, String> {
        let mut callers = Callers::new();
        if let Some(folder) = &self.folder {
            read(folder, &mut callers).map_err(|e| format!("callerTokens {}: {e}", folder.display()))?;
        }
        for (name, path) in &self.files {
            read_one(name, path, &mut callers).map_err(|e| format!("tokens {name} {}: {e}", path.display()))?;
        }
        Ok(callers)
    }

    /// Reads the files again when they have changed.
    fn look(&self) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return;
        }
        known.looked = Some(Instant::now());
        let paths = self.folder.iter().chain(self.files.values());
        let changed: Vec<_> = paths.map(|path| std::fs::metadata(path).and_then(|data| data.modified()).ok()).collect();
        // what changed a moment ago may change again within the clock's step
        let age = |at: &Option<SystemTime>| at.and_then(|at| at.elapsed().ok());
        let settled = changed.iter().all(|at| age(at).is_some_and(|age| age > 4 * LOOK));
        if changed == known.changed && settled {
            return;
        }
        match self.read() {
            Ok(callers) => (known.callers, known.changed) = (callers, changed),
            // a mount that is being replaced; the old tokens hold until it can be read
            Err(error) => tracing::warn!(error, "the callers' tokens cannot be read"),
        }
    }

    /// The caller of a request: `authorization` is the header's value, `claimed` what the request calls its caller.
    pub fn identify(&self, authorization: Option<&str>, claimed: &str) -> Result<Arc<str>, Denied> {
        let believed = || {
            if claimed.is_empty() {
                return Ok(ANONYMOUS.into());
            }
            let plain = claimed.len() <= LONGEST_NAME && claimed.chars().all(|c| !c.is_control());
            if plain { Ok(claimed.into()) } else { Err(Denied::Name) }
        };
        if !self.strict && self.files.is_empty() {
            return believed();
        }
        let token = authorization.and_then(|value| {
            let (scheme, token) = value.trim().split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        match token.and_then(|token| self.known_by(&digest(token))) {
            Some(caller) if claimed.is_empty() || claimed == &*caller => Ok(caller),
            Some(_) => Err(Denied::Foreign),
            None if self.strict || self.files.contains_key(claimed) => Err(Denied::Unknown),
            None => believed(),
        }
    }

    /// Whose token has this digest. Digests are compared, so the time of a comparison tells nothing of a token.
    fn known_by(&self, digest: &[u8; 32]) -> Option<Arc<str>> {
        let find = || {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            let fresh = known.looked.is_some_and(|looked| looked.elapsed() < LOOK);
            (known.callers.get(digest).cloned(), fresh)
        };
        let (caller, fresh) = find();
        if fresh {
            return caller;
        }
        self.look();
        find().0
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
        let access = Access::new(Some(folder.path()), &BTreeMap::new(), false).unwrap();
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
        assert!(
            Access::new(Some(Path::new("/no/such/folder")), &BTreeMap::new(), false)
                .err()
                .unwrap()
                .contains("/no/such/folder")
        );
    }

    #[test]
    fn without_tokens_callers_are_believed() {
        let access = Access::new(None, &BTreeMap::new(), false).unwrap();
        assert_eq!(&*access.identify(None, "").unwrap(), ANONYMOUS);
        assert_eq!(&*access.identify(Some("Bearer x"), "job").unwrap(), "job");
        assert_eq!(access.identify(None, "a\nb"), Err(Denied::Name));
    }

    #[test]
    fn callers_with_tokens_of_their_own_cannot_be_played() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, token: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, token).unwrap();
            path
        };
        let files = BTreeMap::from([
            ("job-a".to_owned(), file("a", "token-of-job-a-0001")),
            ("job-b".to_owned(), file("b", "token-of-job-b-0002\n")),
        ]);
        for strict in [false, true] {
            let access = Access::new(None, &files, strict).unwrap();
            let ask = |token: &str, claimed: &str| access.identify(Some(&format!("Bearer {token}")), claimed);
            assert_eq!(&*ask("token-of-job-a-0001", "").unwrap(), "job-a");
            assert_eq!(&*ask("token-of-job-b-0002", "job-b").unwrap(), "job-b");
            assert_eq!(ask("token-of-job-a-0001", "job-b"), Err(Denied::Foreign));
            assert_eq!(ask("token-of-job-a-0001", "job-c"), Err(Denied::Foreign));
            assert_eq!(ask("something else 12345", "job-b"), Err(Denied::Unknown));
            assert_eq!(access.identify(None, "job-a"), Err(Denied::Unknown));
            // one without a token, where others have one
            let other = access.identify(None, "job-c");
            assert_eq!(other.is_ok(), !strict, "{other:?}");
        }
        std::fs::write(&files["job-b"], "token-of-job-b-9999").unwrap();
        let access = Access::new(None, &files, true).unwrap();
        std::fs::write(&files["job-b"], "token-of-job-b-3333").unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while access.identify(Some("Bearer token-of-job-b-3333"), "").is_err() {
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(20));
        }
        let missing = BTreeMap::from([("job".to_owned(), PathBuf::from("/no/such/file"))]);
        assert!(Access::new(None, &missing, false).err().unwrap().contains("/no/such/file"));
    }
}
