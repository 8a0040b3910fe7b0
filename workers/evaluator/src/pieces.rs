//! The text of the tokens that searchers wrote, for pages that show them one by one.

use crate::error::EvalError;
use crate::results::ResultRow;
use s3_config::{ArmConfig, ArmMethod, ModelSpec};
use s3_model::{Gguf, TokenizerFile};
use s3_rollout::RolloutError;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// By id, of all tokens inside turns. Empty where the arms' models lie in different places, or play behind a server:
/// one id may then be two texts.
pub fn of(arms: &[ArmConfig], rows: &[ResultRow]) -> Result<BTreeMap<u32, String>, EvalError> {
    let written = |row: &&ResultRow| row.episode.as_ref().is_some_and(|episode| episode.written() > 0);
    let writers: BTreeSet<&str> = rows.iter().filter(written).map(|row| row.arm.as_str()).collect();
    let mut places: BTreeSet<Option<&PathBuf>> = BTreeSet::new();
    for arm in arms.iter().filter(|arm| writers.contains(arm.name.as_str())) {
        places.insert(searcher(&arm.method).map(|searcher| &searcher.path));
    }
    let (Some(Some(path)), 1) = (places.first(), places.len()) else { return Ok(BTreeMap::new()) };
    let used: BTreeSet<u32> = rows
        .iter()
        .filter_map(|row| row.episode.as_ref())
        .flat_map(|episode| {
            let inside = episode.turns.iter().filter_map(|turn| episode.tokens.get(turn.tokens.0..turn.tokens.1));
            inside.flatten().copied()
        })
        .collect();
    if used.is_empty() {
        return Ok(BTreeMap::new());
    }
    let tokenizer = if path.is_dir() {
        TokenizerFile::from_folder(path)
    } else {
        Gguf::open(path).and_then(|gguf| TokenizerFile::from_gguf(&gguf))
    };
    let tokenizer = tokenizer.map_err(RolloutError::from)?;
    let piece = |id: u32| Ok((id, tokenizer.decode(&[id]).map_err(RolloutError::from)?));
    used.into_iter().map(piece).collect()
}

fn searcher(method: &ArmMethod) -> Option<&ModelSpec> {
    match method {
        ArmMethod::S3 { searcher, .. } => Some(searcher),
        ArmMethod::ChainOfThought(arm)
        | ArmMethod::Sft(arm)
        | ArmMethod::R1(arm)
        | ArmMethod::SearchR1(arm)
        | ArmMethod::SearchO1(arm)
        | ArmMethod::IrCot(arm)
        | ArmMethod::DeepRetrieval(arm) => arm.searcher.as_ref(),
        ArmMethod::Direct {} | ArmMethod::Rag { .. } | ArmMethod::SameBudgetRag { .. } => None,
    }
}
