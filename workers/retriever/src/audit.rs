//! How much of a dataset a corpus can answer at all.

use crate::error::{Result, RetrieverError};
use crate::index::Answerable;
use crate::passages::PassageStore;
use s3_config::DatasetConfig;
use s3_search::Question;
use s3_search::eligible::answerable;

/// The questions of a file, with the dataset's name filled in.
pub fn read_questions(audit: &DatasetConfig) -> Result<Vec<Question>> {
    Ok(s3_questions::read(audit)?.into_iter().map(|asked| asked.question).collect())
}

/// Audits one dataset. `known` holds earlier results; one for the same file is taken over.
pub fn audit(audit: &DatasetConfig, passages: &PassageStore, known: &[Answerable]) -> Result<Answerable> {
    std::fs::metadata(&audit.path).map_err(RetrieverError::open("question file", &audit.path))?;
    let sha256 = s3_artifacts::digest_file(&audit.path)?;
    if let Some(found) = known.iter().find(|known| known.sha256 == sha256 && known.dataset == audit.name) {
        return Ok(found.clone());
    }
    let questions = read_questions(audit)?;
    let mut failed = None;
    let texts = (0..passages.len()).map_while(|at| match passages.get(at) {
        Ok(passage) => Some((passage.title, passage.text)),
        Err(error) => {
            failed = Some(error);
            None
        }
    });
    let found = answerable(&questions, texts).into_iter().filter(|yes| *yes).count() as u64;
    match failed {
        Some(error) => Err(error),
        None => {
            Ok(Answerable { dataset: audit.name.clone(), sha256, questions: questions.len() as u64, answerable: found })
        }
    }
}
