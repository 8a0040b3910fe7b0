//! Compiles the CUDA kernels of `kernels/` with nvcc when the `cuda` feature is on; see `docs/cuda.md`.

use std::{env, error::Error, path::PathBuf, process::Command};

/// One loadable module each.
const SOURCES: [&str; 7] = ["rows", "head", "adamw", "attention", "decode", "one", "nearest"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-env-changed=CUDA_COMPUTE_CAP");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let capability = env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| "90".to_owned());
    for source in SOURCES {
        let mut nvcc = Command::new(env::var("NVCC").unwrap_or_else(|_| "nvcc".to_owned()));
        // Machine code for the named GPU, and PTX that the driver compiles for later ones.
        nvcc.args(["-O3", "-std=c++17", "-fatbin"])
            .arg(format!("-gencode=arch=compute_{capability},code=[sm_{capability},compute_{capability}]"))
            .arg(format!("kernels/{source}.cu"))
            .arg("-o")
            .arg(out.join(format!("{source}.fatbin")));
        let result = nvcc.output().map_err(|e| {
            format!(
                "the cuda feature needs nvcc: {e}; install it as docs/cuda.md says, or build without --features cuda"
            )
        })?;
        if !result.status.success() {
            return Err(format!("nvcc failed on {source}.cu:\n{}", String::from_utf8_lossy(&result.stderr)).into());
        }
    }
    Ok(())
}
