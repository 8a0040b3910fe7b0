//! How many threads a worker computes with.

use crate::Failure;
use std::os::unix::process::CommandExt;

/// Arithmetic libraries read their thread count from the environment when they start, so a configured count
/// that differs starts this program again in place (same process, same arguments).
pub fn fix_threads(threads: Option<usize>) -> Result<(), Failure> {
    const VARIABLE: &str = "RAYON_NUM_THREADS";
    let Some(threads) = threads.filter(|threads| *threads > 0) else { return Ok(()) };
    if std::env::var(VARIABLE).is_ok_and(|value| value == threads.to_string()) {
        return Ok(());
    }
    let program = std::env::current_exe().map_err(Failure::internal)?;
    let mut again = std::process::Command::new(program);
    Err(Failure::internal(again.args(std::env::args_os().skip(1)).env(VARIABLE, threads.to_string()).exec()))
}
