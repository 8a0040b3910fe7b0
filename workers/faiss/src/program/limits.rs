//! What keeps the process from harm: it ends with its parent, takes no more memory than its file explains, and does not
//! begin on a processor that lacks its instructions.

use nix::sys::resource::{Resource, setrlimit};
use std::io;
use std::path::Path;
use std::time::Duration;

/// Memory beyond what the file explains: code, threads' stacks, buffers of the matrix library.
const SPARE: u64 = 4 << 30;
/// In memory an index takes at most so many times its file: graphs have slack while they load.
const TIMES: u64 = 3;

/// Ends the process when its parent has ended, however busy FAISS is.
pub fn follow_parent() -> io::Result<()> {
    let parent = std::os::unix::process::parent_id();
    let watch = move || {
        while std::os::unix::process::parent_id() == parent {
            std::thread::sleep(Duration::from_secs(1));
        }
        std::process::exit(0);
    };
    std::thread::Builder::new().spawn(watch).map(drop)
}

/// Why this processor cannot run what FAISS was compiled to.
pub fn unfit() -> Option<&'static str> {
    #[cfg(target_arch = "x86_64")]
    if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")) {
        return Some("this processor has no AVX2; use Flat, ScalarQuantized or OneBit, which need none");
    }
    None
}

/// Caps the process' memory by the size of the file it is about to read: a damaged length then fails here and does not
/// drive others out of memory.
pub fn cap_memory(file: &Path) -> Result<(), String> {
    let size = std::fs::metadata(file).map_err(|error| format!("{}: {error}", file.display()))?.len();
    // pages of the address space as it is now
    let now = std::fs::read_to_string("/proc/self/statm").ok();
    let pages: u64 = now.as_deref().and_then(|text| text.split(' ').next()?.parse().ok()).unwrap_or(0);
    let limit = pages * 4096 + TIMES * size + SPARE;
    setrlimit(Resource::RLIMIT_AS, limit, limit).map_err(|error| format!("limit memory: {error}"))
}
