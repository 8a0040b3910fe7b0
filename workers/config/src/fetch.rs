//! Configuration of `s3-fetch`.

use crate::Runtime;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What is fetched, and where it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FetchConfig {
    /// Surroundings.
    pub runtime: Runtime,
    /// What is fetched.
    pub sources: Vec<FetchSource>,
    /// Folder of the fetched files: `KEY/NAME` for each, links into `blobs`, where contents lie by their sha256.
    pub output: PathBuf,
}

/// One hub repository or bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FetchSource {
    /// Folder of its files below the output.
    pub key: String,
    /// Where it is.
    pub location: FetchLocation,
    /// File with what it takes to read it: a hub's token, an AWS credentials file, a Google service account's
    /// key; none reads what is public, or what the process's environment allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Its files.
    pub files: Vec<FetchFile>,
}

/// Where files are fetched from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all_fields = "camelCase")]
pub enum FetchLocation {
    /// A Hugging Face repository; `HF_ENDPOINT` in the environment names another hub.
    HuggingFace {
        /// `OWNER/NAME`.
        repository: String,
        /// Commit, tag or branch; `main` by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        revision: Option<String>,
    },
    /// A bucket of S3's kind; `AWS_ENDPOINT_URL` and `AWS_REGION` in the environment say whose.
    S3 {
        /// The bucket.
        bucket: String,
    },
    /// A Google Cloud Storage bucket.
    Gs {
        /// The bucket.
        bucket: String,
    },
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FetchFile {
    /// Its path in the repository or bucket.
    pub path: String,
    /// Its name below the source's folder.
    pub name: String,
    /// Expected sha256, lower-case hex; another content is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}
