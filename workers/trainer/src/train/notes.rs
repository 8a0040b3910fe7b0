//! The journal of a step, which the first rank keeps and all ranks know.

use crate::team::{first, tell};
use s3_artifacts::Journal;
use s3_collective::Collective;
use s3_rollout::RolloutError;
use s3_rollout::record::StepEntry;
use std::collections::BTreeMap;
use std::path::Path;

/// Finished units of a step. All ranks append the same ones in the same order.
pub enum StepNotes {
    /// On disk, by the first rank.
    Kept(Journal<StepEntry>),
    /// What the first rank told, and what came since.
    Heard(BTreeMap<String, StepEntry>),
}

impl StepNotes {
    /// Opens the journal at `path`; all ranks call it together.
    pub fn open(team: &dyn Collective, path: &Path) -> Result<Self, RolloutError> {
        if team.size() == 1 {
            return Ok(Self::Kept(Journal::open(path)?));
        }
        let mut kept = None;
        let entries = tell(team, || {
            let journal = kept.insert(Journal::open(path)?);
            Ok::<_, RolloutError>(journal.entries().clone())
        })?;
        Ok(match kept {
            Some(journal) if first(team) => Self::Kept(journal),
            _ => Self::Heard(entries),
        })
    }

    /// The value of a finished unit.
    pub fn get(&self, key: &str) -> Option<&StepEntry> {
        match self {
            Self::Kept(journal) => journal.get(key),
            Self::Heard(entries) => entries.get(key),
        }
    }

    /// Adds a finished unit.
    pub fn append(&mut self, key: &str, value: StepEntry) -> Result<(), RolloutError> {
        match self {
            Self::Kept(journal) => journal.append(key, value)?,
            Self::Heard(entries) => {
                entries.insert(key.to_owned(), value);
            }
        }
        Ok(())
    }
}
