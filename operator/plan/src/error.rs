//! Why resources cannot be planned. Each text is one line that says what to change.

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A document is not one of the known resources or has a wrong field.
    #[error("{place}: {reason}")]
    Document {
        /// File and document, or kind and name.
        place: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A field has a value that cannot be honoured.
    #[error("{resource}: {field}: {reason}")]
    Field {
        /// `Kind/name`.
        resource: String,
        /// Path of the field from `spec`.
        field: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A resource names another that is not there.
    #[error("{resource}: {field} names {kind}/{name}, which is in none of the files; add it or correct the name")]
    Missing {
        /// `Kind/name` that refers.
        resource: String,
        /// Its field.
        field: String,
        /// The kind referred to.
        kind: &'static str,
        /// The name referred to.
        name: String,
    },
    /// A volume cannot serve the pods that are wanted; the reason `VolumeShape` of conditions.
    #[error("{resource}: {field}: {reason}")]
    VolumeShape {
        /// `Kind/name`, or the component whose volume it is.
        resource: String,
        /// The field that helps.
        field: String,
        /// What does not fit and what to do.
        reason: String,
    },
    /// A runtime cannot give a value that the plan needs.
    #[error("{0}")]
    Binding(String),
    /// A contradiction inside the plan: an error here, not in the resources.
    #[error("defect in the plan: {0}")]
    Defect(String),
}

impl PlanError {
    pub(crate) fn defect(error: impl std::fmt::Display) -> Self {
        Self::Defect(error.to_string())
    }

    pub(crate) fn field(resource: &str, field: &str, reason: impl Into<String>) -> Self {
        Self::Field { resource: resource.to_owned(), field: field.to_owned(), reason: reason.into() }
    }
}
