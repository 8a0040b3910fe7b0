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
        DeviceKind::Auto | DeviceKind::Cuda if built => Ok(Device::new_cuda(0)?),
        DeviceKind::Auto | DeviceKind::Cpu => Ok(Device::Cpu),
        DeviceKind::Cuda => Err(ModelError::invalid(
            "device Cuda was asked for but this binary was built without CUDA; build with `--features cuda` or set device: Cpu",
        )),
    }
}

/// Working precision: bf16 on CUDA unless `exact`, always f32 on the CPU.
pub fn working_dtype(device: &Device, exact: bool) -> DType {
    if device.is_cuda() && !exact { DType::BF16 } else { DType::F32 }
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
