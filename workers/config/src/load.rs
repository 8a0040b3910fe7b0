//! Reading and writing one configuration file.

use serde::{Serialize, de::DeserializeOwned};
use std::path::{Path, PathBuf};

/// Why a configuration file was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read or written.
    #[error("configuration {path}: {source}; check that the file exists and is readable")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is not this configuration: wrong type, missing or unknown key.
    #[error("configuration {path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The parser's message, with the key and the line.
        source: serde_yaml_ng::Error,
    },
}

/// Reads one worker configuration (YAML, of which JSON is a part).
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
    serde_yaml_ng::from_str(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source })
}

/// Writes one worker configuration as YAML, creating the folder.
pub fn save<T: Serialize>(path: &Path, config: &T) -> Result<(), ConfigError> {
    let io = |source| ConfigError::Io { path: path.to_owned(), source };
    let text =
        serde_yaml_ng::to_string(config).map_err(|source| ConfigError::Parse { path: path.to_owned(), source })?;
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(io)?;
    }
    std::fs::write(path, text).map_err(io)
}
