//! Secrets in mounted files: read when they change, never shown.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

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
pub(crate) struct SecretFile {
    path: PathBuf,
    /// How the configuration calls it, for messages.
    field: &'static str,
    known: Mutex<Option<(Stamp, Arc<str>)>>,
}

impl SecretFile {
    /// Reads the file once, so that a wrong path shows at the start.
    pub fn open(path: &Path, field: &'static str) -> Result<Self, String> {
        let secret = Self { path: path.to_owned(), field, known: Mutex::new(None) };
        secret.text()?;
        Ok(secret)
    }

    /// The content as it is now.
    pub fn text(&self) -> Result<Arc<str>, String> {
        let (field, path) = (self.field, self.path.display());
        let now = stamp(&self.path).map_err(|e| format!("cannot read {field} {path}: {e}"))?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((seen, text)) = known.as_ref()
            && *seen == now
        {
            return Ok(text.clone());
        }
        let text = std::fs::read_to_string(&self.path).map_err(|e| format!("cannot read {field} {path}: {e}"))?;
        let text: Arc<str> = text.trim().into();
        // a file that changed in the last moment may change again within the clock's step: read it again then
        let settled = now.modified.elapsed().is_ok_and(|age| age.as_millis() > 50);
        *known = settled.then(|| (now, text.clone()));
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
        for text in ["second", "third!", "fourth"] {
            std::fs::write(file.path(), text).unwrap();
            assert_eq!(&*secret.key().unwrap(), text);
        }
        std::fs::write(file.path(), "two words").unwrap();
        assert!(secret.key().unwrap_err().contains("one key"));
        let path = file.path().to_owned();
        drop(file);
        assert!(secret.key().unwrap_err().contains(path.to_str().unwrap()));
    }
}
