//! tmp
use crate::{FieldError, schema::Kind};
use serde_json::Value;
/// x
pub struct Field;
/// x
pub const UNSUPPORTED: &[Field] = &[];
/// x
pub const CLUSTER_ONLY: &[Field] = &[];
/// x
pub const SCHEMES: &[&str] = &["file", "pvc"];
/// x
pub fn refuse_unsupported(_: Kind, _: &Value) -> Vec<FieldError> { Vec::new() }
/// x
pub fn cluster_only(_: Kind, _: &Value) -> Vec<FieldError> { Vec::new() }
