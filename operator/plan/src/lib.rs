//! One plan, two runtimes: turns custom resources into components.
//!
//! A component is one process: a program, its typed configuration, what it needs and what it asks of
//! its machine. Nothing here reads a file or a clock; what only a runtime knows stays a [`Symbol`]
//! that the runtime binds through [`Binder`]. The operator renders components to Kubernetes objects,
//! `s3 run` to local processes.

mod arms;
mod ask;
mod component;
mod convert;
mod decide;
mod error;
mod evaluation;
mod fetch;
mod gateway;
mod index;
pub mod lifecycle;
mod names;
mod needs;
pub mod objects;
mod placement;
mod planner;
mod policy;
mod resources;
mod searcher;
mod server;
mod sources;
mod symbol;
mod template;
mod training;

pub use ask::{Choice, ask};
pub use component::{Component, ComponentKind, ComponentResources, Endpoint, Input, Notice, Plan, Readiness, Role};
pub use decide::{
    Decision, Finished, Observed, WorkIdentity, all_needs, decide, fingerprint, run_digest, work_identity,
};
pub use error::PlanError;
pub use names::{
    baseline_name, evaluation_name, index_name, retriever_name, searcher_name, training_name, warm_start_name,
};
pub use needs::shared_needs;
pub use placement::{Placement, Placements};
pub use planner::plan;
pub use policy::{Exit, ExitKind, Next, RestartPolicy};
pub use resources::{Refused, Resources, Secrets, Sourced};
pub use symbol::Symbol;
pub use template::{Binder, Schema, Template, WorkerConfig, bind_symbol};

/// Name of the port of `/metrics`, `/healthz`, `/readyz`.
pub const ADMIN_PORT: &str = "admin";
/// Name of the gRPC port.
pub const GRPC_PORT: &str = "grpc";
/// Name of the HTTP port.
pub const HTTP_PORT: &str = "http";
