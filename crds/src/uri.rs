//! The five forms of an address of models and data.

use std::fmt;

/// Where a file or folder lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A path on this machine; one that is relative starts at the manifest's folder.
    File {
        /// The path as written after `file://`.
        path: String,
    },
    /// A path inside a volume claim; `--volume CLAIM=DIR` binds it on one machine.
    Pvc {
        /// The claim.
        claim: String,
        /// The path inside, without a leading slash; empty is the volume itself.
        path: String,
    },
    /// A Hugging Face repository.
    HuggingFace {
        /// `OWNER/NAME`.
        repository: String,
        /// Path inside, empty for all.
        path: String,
    },
    /// A bucket of S3's kind.
    S3 {
        /// The bucket.
        bucket: String,
        /// Key or prefix.
        key: String,
    },
    /// A Google Cloud Storage bucket.
    Gs {
        /// The bucket.
        bucket: String,
        /// Key or prefix.
        key: String,
    },
}

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// No known scheme.
    #[error(
        "`{0}` has no known scheme; write file://PATH, pvc://CLAIM/PATH, hf://OWNER/NAME, s3://BUCKET/KEY or gs://BUCKET/KEY"
    )]
    Scheme(String),
    /// A part is missing.
    #[error("`{uri}` lacks {part}; write {form}")]
    Missing {
        /// The address.
        uri: String,
        /// What is missing.
        part: &'static str,
        /// How it is written.
        form: &'static str,
    },
    /// The path leaves its volume.
    #[error("`{0}` leaves its volume by `..`; write the path below the volume's root")]
    Escapes(String),
}

impl Location {
    /// Reads an address.
    pub fn parse(uri: &str) -> Result<Self, UriError> {
        let (scheme, rest) = uri.split_once("://").ok_or_else(|| UriError::Scheme(uri.to_owned()))?;
        let missing = |part, form| UriError::Missing { uri: uri.to_owned(), part, form };
        let split = |form| match rest.split_once('/').unwrap_or((rest, "")) {
            ("", _) => Err(missing("its first part", form)),
            (first, path) => Ok((first.to_owned(), path.trim_matches('/').to_owned())),
        };
        match scheme {
            "file" if rest.is_empty() => Err(missing("a path", "file:///abs/path or file://./beside/the/manifest")),
            "file" => Ok(Self::File { path: rest.to_owned() }),
            "pvc" => {
                let (claim, path) = split("pvc://CLAIM/PATH")?;
                if path.split('/').any(|part| part == "..") {
                    return Err(UriError::Escapes(uri.to_owned()));
                }
                Ok(Self::Pvc { claim, path })
            }
            "hf" => {
                let form = "hf://OWNER/NAME or hf://datasets/OWNER/NAME";
                let (mut owner, mut rest) = split(form)?;
                // data sets have addresses of their own on the hub
                if owner == "datasets"
                    && let Some((first, below)) = rest.split_once('/')
                {
                    (owner, rest) = (format!("{owner}/{first}"), below.to_owned());
                }
                let (name, path) = rest.split_once('/').unwrap_or((&rest, ""));
                if name.is_empty() {
                    return Err(missing("the repository's name", form));
                }
                Ok(Self::HuggingFace { repository: format!("{owner}/{name}"), path: path.to_owned() })
            }
            "s3" => split("s3://BUCKET/KEY").map(|(bucket, key)| Self::S3 { bucket, key }),
            "gs" => split("gs://BUCKET/KEY").map(|(bucket, key)| Self::Gs { bucket, key }),
            _ => Err(UriError::Scheme(uri.to_owned())),
        }
    }

    /// The scheme, without `://`.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::File { .. } => "file",
            Self::Pvc { .. } => "pvc",
            Self::HuggingFace { .. } => "hf",
            Self::S3 { .. } => "s3",
            Self::Gs { .. } => "gs",
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |first: &str, path: &str| if path.is_empty() { first.to_owned() } else { format!("{first}/{path}") };
        let rest = match self {
            Self::File { path } => path.clone(),
            Self::Pvc { claim, path } => join(claim, path),
            Self::HuggingFace { repository, path } => join(repository, path),
            Self::S3 { bucket, key } | Self::Gs { bucket, key } => join(bucket, key),
        };
        write!(f, "{}://{rest}", self.scheme())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn every_form_is_read_and_written_again() {
        for uri in [
            "file:///models/a.gguf",
            "file://./data/q.jsonl",
            "pvc://data",
            "pvc://data/models/a.gguf",
            "hf://owner/name",
            "hf://owner/name/a/b.json",
            "hf://datasets/owner/name/nq/test.jsonl",
            "s3://bucket/a/b",
            "gs://bucket/a",
        ] {
            assert_eq!(Location::parse(uri).unwrap().to_string(), uri);
        }
    }

    #[test]
    fn wrong_addresses_say_what_to_write() {
        for (uri, part) in [
            ("/models/a.gguf", "file://PATH"),
            ("http://x/y", "no known scheme"),
            ("file://", "a path"),
            ("pvc:///x", "pvc://CLAIM/PATH"),
            ("hf://owner", "repository's name"),
            ("pvc://data/../../etc", "leaves its volume"),
        ] {
            let error = Location::parse(uri).unwrap_err().to_string();
            assert!(error.contains(part), "{uri}: {error}");
        }
    }
}
