//! Data inside the page: JSON, packed by deflate, written in base64. Nothing of it can be read as markup.

use super::data::{BLOCK, Data};
use crate::error::EvalError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::DeflateEncoder;
use s3_artifacts::ArtifactError;
use serde::Serialize;
use std::io::Write;

/// All script elements of the data.
pub(super) fn elements(data: &Data) -> Result<String, EvalError> {
    let mut page = element("index", &data.index)?;
    blocks(&mut page, "questions", &data.questions)?;
    blocks(&mut page, "episodes", &data.episodes)?;
    blocks(&mut page, "passages", &data.passages)?;
    Ok(page)
}

fn blocks<T: Serialize>(page: &mut String, name: &str, all: &[T]) -> Result<(), EvalError> {
    for (number, part) in all.chunks(BLOCK).enumerate() {
        page.push_str(&element(&format!("{name}-{number}"), &part)?);
    }
    Ok(())
}

fn element<T: Serialize>(name: &str, value: &T) -> Result<String, EvalError> {
    let json = serde_json::to_vec(value).map_err(ArtifactError::from)?;
    let pack = || -> std::io::Result<Vec<u8>> {
        let mut packer = DeflateEncoder::new(Vec::new(), Compression::new(5));
        packer.write_all(&json)?;
        packer.finish()
    };
    let packed = pack().map_err(|error| EvalError::Export(error.to_string()))?;
    Ok(format!("<script type=\"text/plain\" id=\"b-{name}\">{}</script>\n", STANDARD.encode(packed)))
}
