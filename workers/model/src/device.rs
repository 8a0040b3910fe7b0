//! Where tensors live.

use std::path::Path;

use candle_core::{DType, Device};
use s3_config::DeviceKind;
use sha2::{Digest, Sha256};

use crate::error::{ModelError, Result};

/// Opens the device that the configuration names. `Auto` is the first CUDA device of a CUDA build
/// that sees one, else the CPU.
pub fn device(kind: DeviceKind) -> Result<Device> {
    let built = candle_core::utils::cuda_is_available();
    match kind {
        DeviceKind::Auto | DeviceKind::Cuda if built => gpu(0),
        DeviceKind::Auto | DeviceKind::Cpu => Ok(Device::Cpu),
        DeviceKind::Cuda => Err(ModelError::invalid(
            "device Cuda was asked for but this binary was built without CUDA; build with `--features cuda` or set device: Cpu",
        )),
    }
}

/// A GPU by its number, with a stream of its own: the work of all threads keeps its order there, and a stretch of it
/// can be recorded and replayed.
pub fn gpu(number: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(number)?;
    #[cfg(feature = "cuda")]
    crate::cuda::launch::prepare(&device)?;
    Ok(device)
}

/// Working precision: bf16 on CUDA unless `exact`, always f32 on the CPU.
pub fn working_dtype(device: &Device, exact: bool) -> DType {
    if device.is_cuda() && !exact { DType::BF16 } else { DType::F32 }
}

/// Most bytes of tensors that a GPU held at once since the last call, and holds now; zeros on the CPU.
pub fn peak_memory(device: &Device) -> Result<(u64, u64)> {
    #[cfg(feature = "cuda")]
    return crate::cuda::launch::peak_memory(device);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = device;
        Ok((0, 0))
    }
}

/// Times every GPU kernel and matrix product from now on, by events.
#[cfg(feature = "cuda")]
pub fn start_timing() {
    crate::cuda::launch::start_timing();
}

/// What [`start_timing`] found: name, milliseconds, count, the longest first.
#[cfg(feature = "cuda")]
pub fn timings() -> Result<Vec<(String, f64, usize)>> {
    crate::cuda::launch::timings()
}

/// Compares a file's sha256 with the expected one, when there is one.
pub(crate) fn check_digest(path: &Path, expected: Option<&str>) -> Result<()> {
    let Some(expected) = expected else { return Ok(()) };
    let mut file = std::fs::File::open(path).map_err(ModelError::read(path))?;
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut hasher).map_err(ModelError::read(path))?;
    let found = hex::encode(hasher.finalize());
    if found.eq_ignore_ascii_case(expected.trim().trim_start_matches("sha256:")) {
        return Ok(());
    }
    Err(ModelError::Digest { path: path.to_owned(), expected: expected.to_owned(), found })
}
