//! Which files a corpus' path means.
//!
//! A file is taken as it is. A folder is taken whole, its files in the order of their names: in Hugging Face's layout
//! (`data/train-00000-of-00005.parquet`, or shards beside the README) those of the split `train`, in Anserini's
//! (`JsonCollection`) every file of JSON.

use crate::error::{Result, RetrieverError};
use std::path::{Path, PathBuf};

/// How a file's records are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// JSON: an object a line, or one array of objects.
    Lines,
    /// Tab-separated columns under a header, as DPR publishes its passages.
    Tab,
    /// Parquet.
    Parquet,
}

/// One file.
#[derive(Debug)]
pub struct Source {
    /// Where it lies.
    pub path: PathBuf,
    /// Below the corpus' folder.
    pub name: String,
    /// How it is written.
    pub format: Format,
}

/// The files of a corpus, in order.
#[derive(Debug)]
pub struct Sources {
    /// Whether the path is a folder.
    pub folder: bool,
    /// At least one.
    pub files: Vec<Source>,
}

/// Files that describe a data set and hold none of it.
const ABOUT: [&str; 4] = ["dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json"];

fn format_of(name: &str) -> Option<Format> {
    let name = name.to_ascii_lowercase();
    let plain = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name);
    match plain.rsplit_once('.')?.1 {
        "jsonl" | "json" | "ndjson" => Some(Format::Lines),
        "tsv" => Some(Format::Tab),
        "parquet" if plain == name => Some(Format::Parquet),
        _ => None,
    }
}

/// The files that `path` means.
pub fn sources(path: &Path) -> Result<Sources> {
    let found = std::fs::metadata(path).map_err(RetrieverError::open("corpus", path))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if !found.is_dir() {
        // a fetched file may have any name: unknown ones are lines, which is told by their first
        let format = format_of(&name).unwrap_or(Format::Lines);
        let source = Source { path: path.to_owned(), name, format };
        return Ok(Sources { folder: false, files: vec![source] });
    }
    let mut files = Vec::new();
    walk(path, "", 0, &mut files)?;
    files.sort_by(|a, b| a.name.cmp(&b.name));
    if files.is_empty() {
        let reason = "no .jsonl, .json, .tsv (plain, .gz or .zst) or .parquet file in the folder; Arrow files of \
                      `save_to_disk` are written again with `to_parquet`";
        return Err(RetrieverError::content(path, reason));
    }
    // data sets with several splits: passages are the train split's
    if files.iter().any(|file| is_split(&file.name, "train")) {
        files.retain(|file| !["test", "validation", "dev"].iter().any(|split| is_split(&file.name, split)));
    }
    Ok(Sources { folder: true, files })
}

/// Whether a shard's name says that it is of a split.
fn is_split(name: &str, split: &str) -> bool {
    let mut parts = name.split('/');
    let file = parts.next_back().unwrap_or_default();
    let named = file.strip_prefix(split).is_some_and(|rest| rest.starts_with(['-', '.', '_']));
    named || parts.any(|part| part == split)
}

fn walk(folder: &Path, prefix: &str, depth: usize, files: &mut Vec<Source>) -> Result<()> {
    let read = RetrieverError::io("list", folder);
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let entry = entry.map_err(RetrieverError::io("list", folder))?;
        let (path, own) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        // .git, .cache of the hub's tools
        if own.starts_with('.') {
            continue;
        }
        let name = format!("{prefix}{own}");
        // the hub's tools link from a snapshot into their cache of blobs
        let about = std::fs::metadata(&path).map_err(RetrieverError::io("read", &path))?;
        if about.is_dir() {
            if depth < 4 {
                walk(&path, &format!("{name}/"), depth + 1, files)?;
            }
        } else if let Some(format) = format_of(&own).filter(|_| !ABOUT.contains(&own.as_str())) {
            files.push(Source { path, name, format });
        }
    }
    Ok(())
}
