//! A full disk for the tests of the workers, which include this file by its path.

use std::process::Command;

/// The same program, arguments and environment under a limit of the size of files, without the limit's signal:
/// writing past it fails as on a full disk.
pub fn full_disk(whole: &Command, kib: u64) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", &format!("trap '' XFSZ; ulimit -f {kib}; exec \"$@\""), "full-disk"]);
    command.arg(whole.get_program()).args(whole.get_args());
    command.envs(whole.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}
