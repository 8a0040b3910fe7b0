//! Everything that can be known to be wrong before anything starts.

use crate::bind::LocalBinder;
use crate::state::State;
use crate::text::{Problem, bytes};
use s3_artifacts::digest_file;
use s3_plan::{Component, ComponentKind, Decision, Input, Observed, Plan, Symbol, bind_symbol, decide};
use s3_telemetry::Failure;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long an endpoint may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Kept free beside what the components say they may write.
const SPARE: u64 = 64 << 20;

/// The digest of a file as long as it looks the same, so that unchanged models are not read on every run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    size: u64,
    modified: i64,
    nanoseconds: i64,
    sha256: String,
}

/// Checks that every program is there.
pub fn binaries(plan: &Plan, folder: &Path) -> Result<(), Problem> {
    let managed = plan.components.iter().filter(|component| component.kind == ComponentKind::ModelServer);
    Problem::all(
        managed
            .map(|server| {
                let whose: Vec<&str> = server.owners.iter().map(String::as_str).collect();
                Failure::input(format!(
                    "{}: provider.managed is served in clusters only; start the model server yourself and name it by openAiCompatible.endpoint",
                    whose.join(", ")
                ))
            })
            .collect(),
    )?;
    let names: BTreeSet<&str> = plan.components.iter().map(|component| component.binary.as_str()).collect();
    let missing = names.into_iter().filter(|name| !folder.join(name).is_file());
    Problem::all(
        missing
            .map(|name| {
                Failure::input(format!(
                    "the program {name} is not in {}; build it (`cargo build -p {name}`) or set S3_BIN_DIR",
                    folder.display()
                ))
            })
            .collect(),
    )
}

/// Reads every input: it must be there, and be what the resources say. Returns sha256 by the plan's path.
pub fn inputs(plan: &Plan, binder: &LocalBinder, state: &State) -> Result<BTreeMap<String, String>, Problem> {
    let mut known: BTreeMap<PathBuf, Known> = state.read("inputs.json")?.unwrap_or_default();
    let mut digests = BTreeMap::new();
    let mut wrong: Vec<String> = Vec::new();
    let all: Vec<(&Component, &Input)> =
        plan.components.iter().flat_map(|c| c.inputs.iter().map(move |input| (c, input))).collect();
    for (component, input) in all {
        let path = match Symbol::parse(&input.path) {
            Some(symbol) => PathBuf::from(bind_symbol(&symbol, &component.name, binder)?),
            None => PathBuf::from(&input.path),
        };
        match digest(&path, &mut known) {
            Err(error) => wrong.push(format!("{}: {} ({error})", input.field, path.display())),
            Ok(actual) => {
                if let Some(expected) = input.sha256.as_ref().filter(|expected| !expected.eq_ignore_ascii_case(&actual))
                {
                    wrong.push(format!(
                        "{}: {} has sha256 {actual}, not {expected}; fetch the file again or correct the digest",
                        input.field,
                        path.display()
                    ));
                }
                digests.insert(input.path.clone(), actual);
            }
        }
    }
    state.write("inputs.json", &known)?;
    // The same file is often named by several resources: once is enough to say.
    let mut said = BTreeSet::new();
    let problems = wrong.into_iter().filter(|text| said.insert(text.clone())).map(Failure::input).collect();
    Problem::all(problems)?;
    Ok(digests)
}

fn digest(path: &Path, known: &mut BTreeMap<PathBuf, Known>) -> Result<String, String> {
    let meta = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "no such file; fetch it, or correct the path or the --volume".to_owned(),
        _ => error.to_string(),
    })?;
    if !meta.is_file() {
        return Err("is a folder; name a file".into());
    }
    let looks = (meta.size(), meta.mtime(), meta.mtime_nsec());
    if let Some(earlier) = known.get(path)
        && (earlier.size, earlier.modified, earlier.nanoseconds) == looks
    {
        return Ok(earlier.sha256.clone());
    }
    let sha256 = digest_file(path).map_err(|error| error.to_string())?;
    let entry = Known { size: looks.0, modified: looks.1, nanoseconds: looks.2, sha256: sha256.clone() };
    known.insert(path.to_owned(), entry);
    Ok(sha256)
}

/// Checks that endpoints outside the plan accept connections, for what still has to run.
pub fn endpoints(plan: &Plan, observed: &Observed) -> Result<(), Problem> {
    let mut problems = Vec::new();
    for component in plan.components.iter().filter(|c| decide(plan, c, observed) != Decision::Idle) {
        for endpoint in &component.endpoints {
            if let Err(reason) = connect(&endpoint.url) {
                problems.push(Failure::unavailable(format!(
                    "{}: {}: {reason}; start the endpoint or correct the address",
                    endpoint.field, endpoint.url
                )));
            }
        }
    }
    Problem::all(problems)
}

fn connect(url: &str) -> Result<(), String> {
    let (scheme, rest) = url.split_once("://").ok_or("not an address; write http://HOST:PORT/v1")?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let port = if scheme == "https" { 443 } else { 80 };
    let target = if has_port { authority.to_owned() } else { format!("{authority}:{port}") };
    let addresses = target.to_socket_addrs().map_err(|error| format!("name not found ({error})"))?;
    let mut last = "no address".to_owned();
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(_) => return Ok(()),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

/// Checks free space for what still has to run.
pub fn disk(plan: &Plan, observed: &Observed, state: &State) -> Result<(), Problem> {
    let needed: u64 = plan
        .components
        .iter()
        .filter(|component| !matches!(decide(plan, component, observed), Decision::Keep { .. } | Decision::Idle))
        .map(|component| component.resources.disk)
        .sum();
    let stat = nix::sys::statvfs::statvfs(state.root())
        .map_err(|error| Problem::io("free space of", state.root(), &error.into()))?;
    #[allow(clippy::useless_conversion)] // the fields' width differs between systems
    let free = u64::from(stat.blocks_available()) * u64::from(stat.fragment_size());
    if needed == 0 || free >= needed + SPARE {
        return Ok(());
    }
    Err(Problem(vec![Failure::io(format!(
        "{}: {} free, about {} needed; free some space or choose another folder with --state",
        state.root().display(),
        bytes(free),
        bytes(needed + SPARE)
    ))]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn endpoints_are_told_alive_from_dead() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(connect(&format!("http://{address}/v1")), Ok(()));
        assert_eq!(connect(&format!("http://key@{address}/v1")), Ok(()));
        // A socket that is bound and does not listen keeps its port and refuses. A listener that was closed would
        // not do: a process forked meanwhile may still hold it, another may get its port.
        let mute = tokio::net::TcpSocket::new_v4().unwrap();
        mute.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let dead = mute.local_addr().unwrap();
        assert!(connect(&format!("http://{dead}/v1")).unwrap_err().contains("refused"));
        assert!(connect("127.0.0.1:80").unwrap_err().contains("http://"));
    }
}
