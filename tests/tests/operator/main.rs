//! The operator's own process against a real API server with real controllers; tests play the kubelet.
//! `make test-cluster` starts the server.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod faults;
mod kubelet;
mod kueue;
mod life;
mod progress;
mod proxy;
mod queue;
mod restart;
mod rights;
mod scale;
mod scenario;
mod schedule;
mod server;
mod setup;
mod snapshot;
mod table;
mod users;
