//! Own kernels for bf16 on NVIDIA GPUs (`kernels/*.cu`): what runs between the matrix products, and the
//! products themselves with results added in place. Every sum has a fixed order.

pub(crate) mod attention;
pub(crate) mod decode;
pub(crate) mod head;
pub(crate) mod launch;
pub(crate) mod nccl;
pub(crate) mod nearest;
mod one;
pub(crate) mod ops;
pub(crate) mod record;
#[cfg(test)]
mod tests;
