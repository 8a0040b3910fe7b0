//! The operator's own process against a real API server with real controllers; tests play the kubelet.
//! `make test-cluster` starts the server.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod faults;
mod kubelet;
mod life;
mod progress;
mod proxy;
mod scale;
mod scenario;
mod setup;
mod snapshot;
mod table;
