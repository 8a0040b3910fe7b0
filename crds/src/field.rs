//! Paths into a resource, and errors at them.

use std::fmt;

/// A path like `spec.arms[2].topK`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldPath(String);

impl FieldPath {
    /// A path of one name.
    pub fn root(name: &str) -> Self {
        Self(name.to_owned())
    }
    /// The member `name` of this path's object. A name with dots or slashes (a map's key) is put in brackets.
    #[must_use]
    pub fn key(&self, name: &str) -> Self {
        if name.contains(['.', '/', '[']) {
            Self(format!("{}[{name:?}]", self.0))
        } else if self.0.is_empty() {
            Self(name.to_owned())
        } else {
            Self(format!("{}.{name}", self.0))
        }
    }
    /// The element at `index` of this path's list.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is wrong at one field.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{path}: {message}")]
pub struct FieldError {
    /// The field.
    pub path: FieldPath,
    /// What is wrong and how to put it right; one line.
    pub message: String,
}

impl FieldError {
    /// An error at a path.
    pub fn new(path: FieldPath, message: impl Into<String>) -> Self {
        Self { path, message: message.into() }
    }
}
