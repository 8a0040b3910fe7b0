//! Secrets in mounted files: read when they change, never shown.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// A file is looked at again after this time; each look is a call of the system.
const LOOK: Duration = Duration::from_millis(100);

/// What tells that a file was replaced: an atomic swap changes the inode, an edit the time or the length.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    length: u64,
    modified: SystemTime,
}

fn stamp(path: &Path) -> std::io::Result<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let data = std::fs::metadata(path)?;
    Ok(Stamp { inode: data.ino(), length: data.len(), modified: data.modified()? })
}

/// A secret in a file.
pub struct SecretFile {
    path: PathBuf,
    /// How the configuration calls it, for messages.
    field: &'static str,
    known: Mutex<Option<Known>>,
}

struct Known {
    stamp: Stamp,
    text: Arc<str>,
    looked: Instant,
}

impl SecretFile {
    /// Reads the file once, so that a wrong path shows at the start.
    pub fn open(path: &Path, field: &'static str) -> Result<Self, String> {
        let secret = Self { path: path.to_owned(), field, known: Mutex::new(None) };
        secret.text()?;
        Ok(secret)
    }

    /// The content as it was a tenth of a second ago, or later.
    pub fn text(&self) -> Result<Arc<str>, String> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let looked = Instant::now();
        if let Some(known) = known.as_ref()
            && looked.saturating_duration_since(known.looked) < LOOK
        {
            return Ok(known.text.clone());
        }
        let (field, path) = (self.field, self.path.display());
        let now = stamp(&self.path).map_err(|e| format!("cannot read {field} {path}: {e}"))?;
        if let Some(known) = known.as_mut()
            && known.stamp == now
        {
            known.looked = looked;
            return Ok(known.text.clone());
        }
        let text = std::fs::read_to_string(&self.path).map_err(|e| format!("cannot read {field} {path}: {e}"))?;
        let text: Arc<str> = text.trim().into();
        // a file that changed in the last moment may change again within the clock's step: read it again then
        let settled = now.modified.elapsed().is_ok_and(|age| age.as_millis() > 50);
        *known = settled.then(|| Known { stamp: now, text: text.clone(), looked });
        Ok(text)
    }

    /// The content as one key that may stand in a header.
    pub fn key(&self) -> Result<Arc<str>, String> {
        let key = self.text()?;
        if key.is_empty() || !key.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(format!("{} {} does not hold one key on one line", self.field, self.path.display()));
        }
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_changed_file_is_read_again_and_a_bad_one_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "first\n").unwrap();
        let secret = SecretFile::open(file.path(), "apiKeyFile").unwrap();
        let until = |what: &dyn Fn(Result<Arc<str>, String>) -> bool| {
            let end = Instant::now() + Duration::from_secs(20);
            while !what(secret.key()) {
                assert!(Instant::now() < end, "the change is not seen");
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        for text in ["second", "third!", "fourth"] {
            std::fs::write(file.path(), text).unwrap();
            until(&|key| key.is_ok_and(|key| &*key == text));
            // seen for good
            assert_eq!(&*secret.key().unwrap(), text);
        }
        std::fs::write(file.path(), "two words").unwrap();
        until(&|key| key.is_err_and(|error| error.contains("one key")));
        let path = file.path().to_owned();
        drop(file);
        until(&|key| key.is_err_and(|error| error.contains(path.to_str().unwrap())));
    }
}
