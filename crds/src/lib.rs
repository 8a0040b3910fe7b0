//! The three kinds of `searchagent.dev/v1alpha1`: types, schema defaults, constraints, conditions and reasons.
//!
//! [`RetrieverIndex`] is a searchable corpus, [`S3TrainingJob`] trains a searcher against it, [`EvalRun`]
//! compares methods on questions. The Rust types are the only source: the CRD manifests, the client-side
//! validation and the documentation are all made from them.

// doc comments here are `kubectl explain` texts, where product names stand without backticks
#![allow(clippy::doc_markdown)]

mod common;
mod conditions;
mod eval_run;
mod field;
mod parse;
mod provider;
mod quantity;
mod reasons;
mod reference;
mod retriever_index;
mod rules;
mod schema;
mod training_job;
mod unsupported;
mod uri;
mod validate;

pub mod durations;

pub use common::*;
pub use conditions::*;
pub use durations::Duration;
pub use eval_run::*;
pub use field::{FieldError, FieldPath};
pub use parse::{Document, ParseError, Resource, SecretManifest, parse_documents};
pub use provider::*;
pub use quantity::Quantity;
pub use reasons::{REASONS, Reason, reason, reasons_markdown};
pub use reference::api_markdown;
pub use retriever_index::*;
pub use rules::Rule;
pub use schema::{Kind, api_resource, crd, crd_without_cel, crd_yaml, spec_schema};
pub use training_job::*;
pub use unsupported::{CLUSTER_ONLY, Field, UNSUPPORTED, cluster_only, refuse_unsupported};
pub use uri::{Location, UriError};
pub use validate::{apply_defaults, same, validate, validate_update};

/// The API group. The derive macros need a literal, so a test holds theirs equal to this one.
pub const GROUP: &str = "searchagent.dev";
/// The version served and stored.
pub const VERSION: &str = "v1alpha1";
/// `apiVersion` of every resource of this project.
pub const API_VERSION: &str = "searchagent.dev/v1alpha1";
