//! Which passages a search may find: by id, title or metadata, allowed or denied.

use crate::error::Result;
use crate::passages::PassageStore;
use crate::rank::Ranked;
use std::fmt::Write as _;

/// One condition on a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// `id`, `title` or a name of the metadata.
    pub field: String,
    /// The field has one of these values.
    pub any_of: Vec<String>,
    /// Or rather none of them.
    pub deny: bool,
}

/// Conditions that all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter(pub Vec<Condition>);

impl Filter {
    /// What tells two filters apart.
    pub fn key(&self) -> String {
        let mut key = String::new();
        for Condition { field, any_of, deny } in &self.0 {
            // Writing into a String cannot fail.
            let _ = write!(key, "{deny}{field:?}{any_of:?}");
        }
        key
    }

    /// The passages that it means in a store.
    pub fn resolve(&self, store: &PassageStore) -> Result<Allowed> {
        let mut allowed: Option<Vec<u32>> = None;
        let mut denied = Vec::new();
        for condition in &self.0 {
            let mut found = Vec::new();
            for value in &condition.any_of {
                found.extend(store.find(&condition.field, value)?);
            }
            found.sort_unstable();
            found.dedup();
            if condition.deny {
                denied.extend(found);
            } else {
                allowed = Some(match allowed {
                    None => found,
                    Some(before) => before.into_iter().filter(|at| found.binary_search(at).is_ok()).collect(),
                });
            }
        }
        denied.sort_unstable();
        denied.dedup();
        Ok(match allowed {
            Some(mut allowed) => {
                allowed.retain(|at| denied.binary_search(at).is_err());
                Allowed::Only(allowed)
            }
            None if denied.is_empty() => Allowed::All,
            None if denied.len() > store.len() / 2 => {
                Allowed::Only((0..store.len() as u32).filter(|at| denied.binary_search(at).is_err()).collect())
            }
            None => Allowed::Not(denied),
        })
    }
}

/// The positions that a search may find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// Every one.
    All,
    /// These, rising.
    Only(Vec<u32>),
    /// All but these, rising.
    Not(Vec<u32>),
}

impl Allowed {
    /// How many of the best of all passages hold the best `k` of the allowed ones.
    pub fn reach(&self, k: usize) -> usize {
        match self {
            Self::Not(denied) => k + denied.len(),
            _ => k,
        }
    }

    /// The best `k` of the allowed ones among the best [`Allowed::reach`] of all.
    pub fn keep(&self, mut found: Vec<Ranked>, k: usize) -> Vec<Ranked> {
        if let Self::Not(denied) = self {
            found.retain(|one| denied.binary_search(&one.position).is_err());
        }
        found.truncate(k);
        found
    }
}
