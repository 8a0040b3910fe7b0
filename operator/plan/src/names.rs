//! Names of components: deterministic, unique per kind and resource, valid as Kubernetes names.

use sha2::{Digest, Sha256};

/// Longest name of a component: leaves room for the suffixes of attempts, replicas and pods.
const LONGEST: usize = 40;

/// Joins a resource's name and a suffix; a name that would be too long is cut and told apart by a digest.
pub(crate) fn join(resource: &str, suffix: &str) -> String {
    let whole = format!("{resource}-{suffix}").replace('.', "-");
    if whole.len() <= LONGEST {
        return whole;
    }
    let mark = short_digest(resource);
    let keep: String = resource.replace('.', "-").chars().take(LONGEST - suffix.len() - mark.len() - 2).collect();
    format!("{}-{mark}-{suffix}", keep.trim_end_matches('-'))
}

/// Eight hex digits of a text's sha256.
pub(crate) fn short_digest(text: &str) -> String {
    hex::encode(&Sha256::digest(text)[..4])
}

/// A name as a DNS label behind a prefix: for volumes of pods.
pub(crate) fn label(prefix: &str, name: &str) -> String {
    let whole = format!("{prefix}-{name}").replace('.', "-");
    if whole.len() <= 63 && !name.contains('.') {
        return whole;
    }
    let mark = short_digest(name);
    let keep: String = whole.chars().take(63 - mark.len() - 1).collect();
    format!("{}-{mark}", keep.trim_end_matches('-'))
}

/// The component that builds a `RetrieverIndex`.
pub fn index_name(index: &str) -> String {
    join(index, "index")
}
/// The component that serves a `RetrieverIndex`.
pub fn retriever_name(index: &str) -> String {
    join(index, "retriever")
}
/// The component that computes a job's baseline.
pub fn baseline_name(job: &str) -> String {
    join(job, "baseline")
}
/// The component that warms a job's searcher up.
pub fn warm_start_name(job: &str) -> String {
    join(job, "sft")
}
/// The component that trains a job's searcher.
pub fn training_name(job: &str) -> String {
    join(job, "train")
}
/// The component that serves a job's searcher.
pub fn searcher_name(job: &str) -> String {
    join(job, "searcher")
}
/// The component of an `EvalRun`.
pub fn evaluation_name(run: &str) -> String {
    join(run, "eval")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn short_names_stay_readable() {
        assert_eq!(training_name("quickstart"), "quickstart-train");
    }

    proptest! {
        #[test]
        fn names_are_valid_and_long_ones_stay_apart(a in "[a-z]([a-z0-9.-]{0,80}[a-z0-9])?", b in "[a-z]([a-z0-9.-]{0,80}[a-z0-9])?") {
            let (first, second) = (retriever_name(&a), retriever_name(&b));
            prop_assert!(first.len() <= LONGEST);
            prop_assert!(first.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-'));
            if a.replace('.', "-") != b.replace('.', "-") {
                prop_assert_ne!(first, second);
            }
        }
    }
}
