//! The report page: one file, no request to anywhere, readable without a server.
//!
//! The header, the tables and the attribution are rendered here; curves and episodes are drawn by the page's
//! script from packed JSON embedded in it, block by block as they are looked at. Text from data reaches the page in
//! two ways only: through the template's escaping, and inside base64; the script sets text, never markup.

mod blocks;
pub(crate) mod data;
mod page;
mod why;

use crate::error::EvalError;
use crate::results::Results;
use crate::summary::Summary;
use s3_artifacts::write_atomic;
use s3_config::ReportConfig;
use s3_rollout::record::{StepRecord, read_training};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// One source of data, as the attribution file lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attribution {
    /// Name.
    pub name: String,
    /// Licence.
    #[serde(default)]
    pub licence: String,
    /// Where it comes from.
    #[serde(default)]
    pub source: String,
    /// sha256 of the file.
    #[serde(default)]
    pub sha256: String,
}

/// A training run of the report.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Training {
    /// Its name.
    pub name: String,
    /// Its steps.
    pub steps: Vec<StepRecord>,
}

/// Everything a page shows.
pub struct Page<'a> {
    /// Per-question results.
    pub results: &'a Results,
    /// What the evaluation was.
    pub identity: &'a Value,
    /// Table and tests.
    pub summary: &'a Summary,
    /// Training runs.
    pub training: &'a [Training],
    /// Sources of data.
    pub attribution: &'a [Attribution],
}

/// Renders a page.
pub fn render(page: &Page<'_>) -> Result<String, EvalError> {
    page::html(page)
}

/// Writes the page of finished results.
pub fn write(config: &ReportConfig, results: &Results, identity: &Value, summary: &Summary) -> Result<(), EvalError> {
    let attribution = match &config.attribution {
        Some(path) => read_attribution(path)?,
        None => Vec::new(),
    };
    let mut training = Vec::new();
    for folder in &config.training {
        training.push(Training { name: name_of(folder), steps: read_training(folder)? });
    }
    let page = Page { results, identity, summary, training: &training, attribution: &attribution };
    Ok(write_atomic(&config.path, render(&page)?.as_bytes())?)
}

/// Makes the page again from a published folder.
pub fn again(config: &ReportConfig, folder: &Path) -> Result<(), EvalError> {
    let (results, identity, summary) = Results::load(folder)?;
    write(config, &results, &identity, &summary)
}

/// A training's folder is called `state` or the like; what names it is the folder above.
fn name_of(folder: &Path) -> String {
    let own = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let above = folder.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    if own == "state" { above.unwrap_or(own) } else { own }
}

fn read_attribution(path: &Path) -> Result<Vec<Attribution>, EvalError> {
    let bytes = std::fs::read(path).map_err(|error| EvalError::read(path, error))?;
    serde_json::from_slice(&bytes).map_err(|error| EvalError::Line {
        path: path.to_owned(),
        line: error.line(),
        reason: error.to_string(),
    })
}

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
