//! Tests against a real API server; `make test-cluster` starts it, once without and once with CEL.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../../crds/tests/cases/mod.rs"]
mod cases;
mod crds;
mod server;
