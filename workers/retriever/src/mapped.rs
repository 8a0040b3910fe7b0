//! Files mapped into memory for reading.
#![allow(unsafe_code)] // memory maps; the files are verified against the manifest and never changed in place

use crate::error::{Result, RetrieverError};
use memmap2::Mmap;
use std::fs::File;
use std::path::Path;

/// Maps a whole published file.
pub fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(RetrieverError::io("open", path))?;
    // SAFETY: published files are written once under their digest and only ever removed, which keeps a
    // mapped file alive; nobody writes into one.
    unsafe { Mmap::map(&file) }.map_err(RetrieverError::io("map", path))
}
