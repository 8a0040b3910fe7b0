//! FAISS in a process of its own: [`Child`] starts the program `s3-faiss`, which alone is linked with FAISS, and
//! speaks [`wire`] with it over a socket.
//!
//! FAISS' loaders and searches run off the end of damaged files. Here that ends the child, and the parent has a
//! [`FaissError`] to show; what the child answers is checked by whoever asks.

mod child;
mod error;
pub mod wire;

pub use child::{Child, Found, Patience};
pub use error::{FaissError, Result};
