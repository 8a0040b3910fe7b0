//! The journal of a step, which the first rank keeps and all ranks know.
//!
//! While a round is played, every rank keeps what it has played itself: the first one in the step's journal, another
//! one in a file of its own beside it, its part. Once the round is brought together the journal holds all of it, and
//! the parts go. Parts that an interruption left are read by whoever begins the step again, with however many ranks.

use crate::team::{first, gather};
use s3_artifacts::{ArtifactError, Journal};
use s3_collective::Collective;
use s3_rollout::RolloutError;
use s3_rollout::record::StepEntry;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Finished units of a step.
pub struct StepNotes {
    place: Place,
    /// Parts that were found.
    left: Vec<PathBuf>,
}

enum Place {
    /// The step's journal, by the first rank.
    Journal(Journal<StepEntry>),
    /// What the first rank knows, by another one, and where it keeps what it plays until that is brought together.
    Part { known: BTreeMap<String, StepEntry>, file: PathBuf, part: Option<Journal<StepEntry>> },
}

impl StepNotes {
    /// Opens the journal at `path`; all ranks call it together. `attempt` tells parts of several attempts apart.
    pub fn open(team: &dyn Collective, path: &Path, attempt: u32) -> Result<Self, RolloutError> {
        let left = parts(path)?;
        let mut own = BTreeMap::new();
        let mut journal = None;
        if first(team) {
            let opened = Journal::open(path)?;
            if team.size() > 1 {
                own.clone_from(opened.entries());
            }
            journal = Some(opened);
        }
        for file in &left {
            for (key, entry) in Journal::read(file)? {
                own.entry(key).or_insert(entry);
            }
        }
        let mut known = BTreeMap::new();
        for theirs in gather(team, own)? {
            for (key, entry) in theirs {
                known.entry(key).or_insert(entry);
            }
        }
        let Some(mut journal) = journal else {
            let file = part(path, &format!("{attempt}-{}", team.rank()));
            return Ok(Self { place: Place::Part { known, file, part: None }, left });
        };
        known.retain(|key, _| journal.get(key).is_none());
        journal.append_all(known.into_iter().collect())?;
        let mut notes = Self { place: Place::Journal(journal), left };
        if team.size() == 1 {
            notes.brought_together()?;
        }
        Ok(notes)
    }

    /// The finished units by key.
    pub fn entries(&self) -> &BTreeMap<String, StepEntry> {
        match &self.place {
            Place::Journal(journal) => journal.entries(),
            Place::Part { known, .. } => known,
        }
    }

    /// The value of a finished unit.
    pub fn get(&self, key: &str) -> Option<&StepEntry> {
        self.entries().get(key)
    }

    /// Adds a finished unit that every rank has.
    pub fn append(&mut self, key: &str, value: StepEntry) -> Result<(), RolloutError> {
        match &mut self.place {
            Place::Journal(journal) => journal.append(key, value)?,
            Place::Part { known, .. } => {
                known.insert(key.to_owned(), value);
            }
        }
        Ok(())
    }

    /// Keeps finished units that this rank alone has.
    pub fn keep(&mut self, units: Vec<(String, StepEntry)>) -> Result<(), RolloutError> {
        match &mut self.place {
            Place::Journal(journal) => journal.append_all(units)?,
            Place::Part { .. } if units.is_empty() => {}
            Place::Part { file, part, .. } => {
                let part = match part {
                    Some(part) => part,
                    None => part.insert(Journal::open(file)?),
                };
                part.append_all(units)?;
            }
        }
        Ok(())
    }

    /// Removes the parts, once the first rank's journal holds what they do.
    pub fn brought_together(&mut self) -> Result<(), RolloutError> {
        let mut files = std::mem::take(&mut self.left);
        if let Place::Part { file, part, .. } = &mut self.place
            && part.take().is_some()
        {
            files.push(file.clone());
        }
        for file in files {
            match std::fs::remove_file(&file) {
                // another rank sees the same folder
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                removed => removed.map_err(|source| io("remove", &file, source))?,
            }
        }
        Ok(())
    }
}

/// File of a part of the journal at `path`.
fn part(path: &Path, name: &str) -> PathBuf {
    path.with_extension(format!("part-{name}"))
}

/// The parts of the journal at `path` that lie beside it.
fn parts(path: &Path) -> Result<Vec<PathBuf>, RolloutError> {
    let Some((folder, beginning)) = path.parent().zip(part(path, "").file_name().map(ToOwned::to_owned)) else {
        return Ok(Vec::new());
    };
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|source| io("list", folder, source))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(|source| io("list", folder, source))?.file_name();
        if name.to_string_lossy().starts_with(&*beginning.to_string_lossy()) {
            found.push(folder.join(name));
        }
    }
    found.sort();
    Ok(found)
}

fn io(action: &'static str, path: &Path, source: std::io::Error) -> ArtifactError {
    ArtifactError::Io { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use s3_collective::Local;
    use s3_rollout::record::step_journal;
    use std::sync::Arc;

    fn unit(value: f64) -> StepEntry {
        StepEntry::Figures { figures: BTreeMap::from([("gain".to_owned(), value)]) }
    }

    /// Opens with so many ranks and lets each do its work.
    fn with(size: usize, path: &Path, work: impl Fn(usize, &dyn Collective, StepNotes) + Sync) {
        let ranks = Local::team(size, &(Arc::new(|| false) as s3_collective::Stop));
        std::thread::scope(|scope| {
            for (rank, local) in ranks.into_iter().enumerate() {
                let work = &work;
                scope.spawn(move || work(rank, &local, StepNotes::open(&local, path, 7).unwrap()));
            }
        });
    }

    #[test]
    fn what_each_rank_kept_is_known_to_all_that_come_after() {
        let dir = tempfile::tempdir().unwrap();
        let path = step_journal(dir.path(), 3);
        with(3, &path, |rank, team, mut notes| {
            assert!(notes.entries().is_empty());
            notes.keep(vec![(format!("rollout/{rank}"), unit(1.0))]).unwrap();
            team.barrier().unwrap();
        });
        assert_eq!(parts(&path).unwrap().len(), 2, "killed here, nobody brought anything together");
        with(2, &path, |_, team, mut notes| {
            assert_eq!(notes.entries().len(), 3);
            notes.append("outcomes", unit(2.0)).unwrap();
            team.barrier().unwrap();
            notes.brought_together().unwrap();
        });
        assert!(parts(&path).unwrap().is_empty());
        let alone = StepNotes::open(&Local::alone(), &path, 0).unwrap();
        assert_eq!((alone.entries().len(), alone.get("outcomes")), (4, Some(&unit(2.0))));
    }

    #[test]
    fn one_rank_takes_in_what_several_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = step_journal(dir.path(), 1);
        with(2, &path, |rank, _, mut notes| notes.keep(vec![(format!("rollout/{rank}"), unit(0.5))]).unwrap());
        assert_eq!(StepNotes::open(&Local::alone(), &path, 0).unwrap().entries().len(), 2);
        assert!(parts(&path).unwrap().is_empty());
        assert_eq!(Journal::<StepEntry>::read(&path).unwrap().len(), 2);
    }
}
