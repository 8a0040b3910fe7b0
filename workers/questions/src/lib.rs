//! Question sets in every layout they come in: the project's own lines, `FlashRAG`, Search-R1, s3, MIRAGE, the sets'
//! own releases, and any other file by naming its columns.
//!
//! * [`file`] reads rows of JSON lines, JSON and Parquet, packed by gzip or not.
//! * [`layout`] takes question, gold answers, options and evidence out of a row.
//! * [`sets`] knows the public sets: what they are called inside files, and where `FlashRAG` keeps them.
//!
//! Every row becomes one question, in file order; equal ids and equal texts are kept.

mod error;
mod file;
mod layout;
mod parquet;
pub mod sets;

pub use self::parquet::scalar;
pub use error::QuestionError;

use s3_config::DatasetConfig;
use s3_search::Question;
use serde_json::Value;

/// One question as a file has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// The question.
    pub question: Question,
    /// Titles of the passages that the set marks as evidence.
    pub evidence: Vec<String>,
}

/// Reads a set, each row as it comes: the question, the whole row and its number from 1.
pub fn each<E: From<QuestionError>>(
    dataset: &DatasetConfig,
    mut take: impl FnMut(Asked, &Value, usize) -> Result<(), E>,
) -> Result<(), E> {
    let set = named(dataset)?;
    let mut passed_over = 0_usize;
    let mut taken = 0_usize;
    file::rows(&dataset.path, set, |row, number| {
        if !layout::belongs(&row, set, dataset.split.as_deref()) {
            passed_over += 1;
            return Ok(());
        }
        let fault = |reason: String| QuestionError::Row { path: dataset.path.clone(), number, reason };
        let mut asked = layout::question(&row, &dataset.fields).map_err(fault)?;
        asked.question.dataset.clone_from(&dataset.name);
        if asked.question.id.is_empty() {
            asked.question.id = format!("{}-{}", dataset.name, number - 1);
        }
        taken += 1;
        take(asked, &row, number)
    })?;
    if taken == 0 {
        return Err(QuestionError::Nothing { path: dataset.path.clone(), passed_over }.into());
    }
    Ok(())
}

fn named(dataset: &DatasetConfig) -> Result<Option<&'static sets::Set>, QuestionError> {
    let Some(name) = dataset.set.as_deref() else { return Ok(None) };
    sets::named(name).map(Some).ok_or_else(|| QuestionError::Set(name.to_owned()))
}

/// All questions of a set.
pub fn read(dataset: &DatasetConfig) -> Result<Vec<Asked>, QuestionError> {
    let mut all = Vec::new();
    each(dataset, |asked, _, _| {
        all.push(asked);
        Ok::<(), QuestionError>(())
    })?;
    Ok(all)
}

/// The texts of all questions of a file, whatever else its rows hold.
pub fn texts(dataset: &DatasetConfig, mut take: impl FnMut(String)) -> Result<(), QuestionError> {
    let set = named(dataset)?;
    file::rows(&dataset.path, set, |row, number| {
        if !layout::belongs(&row, set, dataset.split.as_deref()) {
            return Ok(());
        }
        let fault = |reason: String| QuestionError::Row { path: dataset.path.clone(), number, reason };
        take(layout::text(&row, &dataset.fields).map_err(fault)?);
        Ok(())
    })
}
