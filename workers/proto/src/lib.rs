//! Services and messages between the workers, and clients with deadlines and bounded retries.

/// Generated from `proto/s3.proto`.
#[allow(missing_docs, clippy::pedantic, unused_qualifications)]
pub mod v1 {
    tonic::include_proto!("s3.v1");
}

mod client;

pub use client::{CallError, GeneratorClient, RetrieverClient};
pub use tonic;

/// Largest message accepted on either side, bytes: a round of 4,096 queries with long passages fits.
pub const MESSAGE_LIMIT: usize = 256 << 20;
