//! Services and messages between the workers, and clients with deadlines and bounded retries.

/// Generated from `proto/s3.proto` and `proto/progress.proto`.
#[allow(missing_docs, clippy::pedantic, unused_qualifications)]
pub mod v1 {
    tonic::include_proto!("s3.v1");
}

/// The definitions themselves, for reflection.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/s3.descriptor"));

mod attempt;
mod client;
mod report;
mod tls;

pub use attempt::Attempt;
pub use client::{CallError, GeneratorClient, RetrieverClient};
pub use report::{Patience, Reporter};
pub use tls::{Acceptor, Connector, Secured, TlsError};
pub use tonic;

/// Largest message accepted on either side, bytes: a round of 4,096 queries with long passages fits.
pub const MESSAGE_LIMIT: usize = 256 << 20;
