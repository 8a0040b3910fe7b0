//! `s3 logs`.

use crate::StateArg;
use crate::out::Out;
use crate::state::State;
use crate::text::Problem;
use clap::Args;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Arguments of `s3 logs`.
#[derive(Args)]
pub struct LogsArgs {
    /// The component; without it the names are listed.
    name: Option<String>,
    /// Goes on as the log grows, until Ctrl-C.
    #[arg(short, long)]
    follow: bool,
    /// Only so many bytes from the end.
    #[arg(long, value_name = "BYTES")]
    tail: Option<u64>,
    #[command(flatten)]
    state: StateArg,
}

/// Prints a log.
pub fn run(args: &LogsArgs) -> Result<ExitCode, Problem> {
    let state = State::existing(&args.state.state)?;
    let names = names(&state)?;
    let Some(name) = &args.name else {
        for name in &names {
            writeln!(Out, "{name}")?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    if !names.contains(name) {
        return Err(Problem::input(format!("no log of {name}; there are {}", names.join(", "))));
    }
    let path = state.log(name);
    let io = |error| Problem::io("read", &path, &error);
    let mut file = File::open(&path).map_err(io)?;
    if let Some(bytes) = args.tail {
        let length = file.metadata().map_err(io)?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(bytes))).map_err(io)?;
    }
    loop {
        let mut part = Vec::new();
        file.read_to_end(&mut part).map_err(io)?;
        Out.write_all(&part)?;
        if !args.follow {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn names(state: &State) -> Result<Vec<String>, Problem> {
    let folder = state.root().join("logs");
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Problem::io("read", &folder, &error)),
    };
    let mut names: Vec<String> =
        entries.filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_suffix(".log")?.to_owned())).collect();
    names.sort();
    Ok(names)
}

/// The last bytes of a log, as text.
pub fn tail(path: &Path, bytes: u64) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut part = Vec::new();
    file.read_to_end(&mut part)?;
    Ok(String::from_utf8_lossy(&part).into_owned())
}
