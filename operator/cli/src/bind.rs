//! Binding a plan's symbols to this machine: folders, loopback ports, files with secrets.

use crate::state::State;
use crate::text::Problem;
use s3_plan::{Binder, Plan, PlanError, Secrets};
use s3_telemetry::Failure;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};

/// Ports lie below the range from which systems lend ports to outgoing connections.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// Every value that the plan left open.
#[derive(Clone, Debug)]
pub struct LocalBinder {
    state: State,
    volumes: BTreeMap<String, PathBuf>,
    ports: BTreeMap<String, u16>,
    secrets: BTreeMap<(String, String), PathBuf>,
}

/// What the command line binds.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// `--volume NAME=DIR`.
    pub volumes: BTreeMap<String, PathBuf>,
    /// `--secret NAME/KEY=…`.
    pub secrets: BTreeMap<(String, String), SecretSource>,
    /// `--port COMPONENT/PORT=NUMBER`.
    pub ports: BTreeMap<String, u16>,
}

/// Where a secret's value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// In a variable of the environment.
    Env(String),
    /// In a file, read again at each use.
    File(PathBuf),
}

impl Given {
    /// Reads the options; every wrong one is a line of its own.
    pub fn parse(volumes: &[String], secrets: &[String], ports: &[String]) -> Result<Self, Problem> {
        let mut given = Self::default();
        let mut wrong = Vec::new();
        for text in volumes {
            match text.split_once('=') {
                Some((name, folder)) if !name.is_empty() && !folder.is_empty() => {
                    given.volumes.insert(name.to_owned(), PathBuf::from(folder));
                }
                _ => wrong.push(Failure::input(format!("--volume {text}: write it as NAME=DIR"))),
            }
        }
        for text in secrets {
            match parse_secret(text) {
                Some((key, source)) => {
                    given.secrets.insert(key, source);
                }
                // The text may hold a key by mistake, so it is not repeated.
                None => wrong.push(Failure::input("--secret: write it as NAME/KEY=env:VARIABLE or NAME/KEY=file:PATH")),
            }
        }
        for text in ports {
            match text.split_once('=').map(|(port, number)| (port, number.parse::<u16>())) {
                Some((port, Ok(number))) if number > 0 && port.contains('/') => {
                    given.ports.insert(port.to_owned(), number);
                }
                _ => wrong.push(Failure::input(format!("--port {text}: write it as COMPONENT/PORT=NUMBER"))),
            }
        }
        Problem::all(wrong)?;
        Ok(given)
    }
}

fn parse_secret(text: &str) -> Option<((String, String), SecretSource)> {
    let (place, source) = text.split_once('=')?;
    let (name, key) = place.split_once('/')?;
    let source = match source.split_once(':')? {
        ("env", variable) => SecretSource::Env(variable.to_owned()),
        ("file", path) => SecretSource::File(PathBuf::from(path)),
        _ => return None,
    };
    Some(((name.to_owned(), key.to_owned()), source))
}

impl LocalBinder {
    /// Binds everything the plan needs, or says for each thing that cannot be bound what to give.
    pub fn new(plan: &Plan, state: &State, given: &Given, manifests: &Secrets) -> Result<Self, Problem> {
        let mut wrong = Vec::new();
        let volumes = bind_volumes(plan, &given.volumes, &mut wrong);
        let secrets = bind_secrets(plan, state, &given.secrets, manifests, &mut wrong)?;
        let ports = bind_ports(plan, state, &given.ports, &mut wrong)?;
        Problem::all(wrong)?;
        Ok(Self { state: state.clone(), volumes, ports, secrets })
    }

    /// Binds to the ports of a run that is going on, without secrets: for those who only call its services.
    pub fn attached(plan: &Plan, state: &State, volumes: &BTreeMap<String, PathBuf>) -> Result<Self, Problem> {
        let mut wrong = Vec::new();
        let volumes = bind_volumes(plan, volumes, &mut wrong);
        Problem::all(wrong)?;
        let ports = state.read("ports.json")?.unwrap_or_default();
        Ok(Self { state: state.clone(), volumes, ports, secrets: BTreeMap::new() })
    }

    /// Addresses at which the replicas of a component find each other; each has as many ports in a row as it has ranks.
    pub fn team(&self, component: &str, replicas: usize, ranks: usize) -> Result<Vec<String>, Problem> {
        // Listeners stay open until all are chosen, so that none is chosen twice.
        let (mut held, mut members) = (Vec::new(), Vec::new());
        for rank in 0..replicas {
            let (first, more, port) = candidates(self.state.root(), &format!("{component}/team-{rank}"))
                .filter(|port| PORTS.contains(&(port + ranks as u16)))
                .find_map(|port| {
                    let first = listen(port).ok()?;
                    let more: Option<Vec<_>> = (1..ranks as u16).map(|next| listen(port + next).ok()).collect();
                    Some((first, more?, port))
                })
                .ok_or_else(|| Problem::unavailable("no free ports for replicas between 20000 and 30000"))?;
            held.push((first, more));
            members.push(format!("127.0.0.1:{port}"));
        }
        Ok(members)
    }

    /// The number of a component's port.
    pub fn port(&self, component: &str, port: &str) -> Option<u16> {
        self.ports.get(&format!("{component}/{port}")).copied()
    }
}

fn bind_volumes(plan: &Plan, given: &BTreeMap<String, PathBuf>, wrong: &mut Vec<Failure>) -> BTreeMap<String, PathBuf> {
    let mut users: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for component in &plan.components {
        for volume in &component.volumes {
            users.entry(volume).or_default().extend(component.owners.iter().map(String::as_str));
        }
    }
    let mut bound = BTreeMap::new();
    for (name, users) in users {
        let users = users.into_iter().collect::<Vec<_>>().join(", ");
        match given.get(name) {
            None => wrong.push(Failure::input(format!(
                "volume {name} (used by {users}) is bound to no folder; add --volume {name}=DIR"
            ))),
            Some(folder) => match folder.canonicalize() {
                Ok(folder) if folder.is_dir() => {
                    bound.insert(name.to_owned(), folder);
                }
                Ok(_) => wrong.push(Failure::input(format!("--volume {name}={}: not a folder", folder.display()))),
                Err(error) => wrong.push(Failure::input(format!("--volume {name}={}: {error}", folder.display()))),
            },
        }
    }
    bound
}

fn bind_secrets(
    plan: &Plan,
    state: &State,
    given: &BTreeMap<(String, String), SecretSource>,
    manifests: &Secrets,
    wrong: &mut Vec<Failure>,
) -> Result<BTreeMap<(String, String), PathBuf>, Problem> {
    let needed: BTreeSet<&String> = plan.components.iter().flat_map(|component| &component.secrets).collect();
    let mut bound = BTreeMap::new();
    for text in needed {
        let Some((name, key)) = text.split_once('/') else { continue };
        let place = (name.to_owned(), key.to_owned());
        let path = match (given.get(&place), manifests.get(&place)) {
            (Some(SecretSource::File(path)), _) => match path.canonicalize() {
                Ok(path) => path,
                Err(error) => {
                    wrong.push(Failure::input(format!("--secret {text}=file:{}: {error}", path.display())));
                    continue;
                }
            },
            (Some(SecretSource::Env(variable)), _) => match std::env::var(variable) {
                Ok(value) => state.write_secret(name, key, value.as_bytes())?,
                Err(error) => {
                    wrong.push(Failure::input(format!("--secret {text}=env:{variable}: {error}")));
                    continue;
                }
            },
            (None, Some(value)) => state.write_secret(name, key, value)?,
            // A run of this folder may have been given it earlier.
            (None, None) if state.secret(name, key).is_file() => state.secret(name, key),
            (None, None) => {
                wrong.push(Failure::input(format!(
                    "secret {text} is not given; add --secret {text}=env:VARIABLE or {text}=file:PATH, or a Secret manifest"
                )));
                continue;
            }
        };
        bound.insert(place, path);
    }
    Ok(bound)
}

/// Ports are the same on every run of a state folder unless somebody else took one.
fn bind_ports(
    plan: &Plan,
    state: &State,
    given: &BTreeMap<String, u16>,
    wrong: &mut Vec<Failure>,
) -> Result<BTreeMap<String, u16>, Problem> {
    let recorded: BTreeMap<String, u16> = state.read("ports.json")?.unwrap_or_default();
    let names: BTreeSet<String> = plan
        .components
        .iter()
        .flat_map(|component| component.ports.iter().map(move |port| format!("{}/{port}", component.name)))
        .collect();
    for name in given.keys().filter(|name| !names.contains(*name)) {
        let known = names.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        wrong.push(Failure::input(format!("--port {name}: no such port in this plan; there are {known}")));
    }
    // Listeners stay open until all ports are chosen, so that none is chosen twice.
    let mut open = Vec::new();
    let mut bound = BTreeMap::new();
    for name in names {
        let chosen = match given.get(&name) {
            Some(number) => listen(*number).map(|listener| (listener, *number)).map_err(|error| {
                format!("--port {name}={number}: {error}; choose a free port or leave the option out")
            }),
            None => Ok(free_port(state.root(), &name, recorded.get(&name).copied())?),
        };
        let port = match chosen {
            Ok((listener, number)) => {
                open.push(listener);
                number
            }
            Err(refused) => {
                wrong.push(Failure::input(refused));
                continue;
            }
        };
        bound.insert(name, port);
    }
    if wrong.is_empty() {
        state.write("ports.json", &bound)?;
    }
    Ok(bound)
}

fn listen(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
}

/// All ports, in an order of the name's own.
fn candidates(root: &Path, name: &str) -> impl Iterator<Item = u16> + use<> {
    let digest = Sha256::digest(format!("{}\n{name}", root.display()));
    let span = PORTS.end - PORTS.start;
    let first = u16::from_be_bytes([digest[0], digest[1]]) % span;
    (0..span).map(move |step| PORTS.start + (first + step) % span)
}

fn free_port(root: &Path, name: &str, recorded: Option<u16>) -> Result<(TcpListener, u16), Problem> {
    recorded
        .into_iter()
        .chain(candidates(root, name))
        .find_map(|port| listen(port).ok().map(|listener| (listener, port)))
        .ok_or_else(|| Problem::unavailable(format!("no free port between {} and {}", PORTS.start, PORTS.end)))
}

impl Binder for LocalBinder {
    fn volume(&self, name: &str, path: &str) -> Result<PathBuf, PlanError> {
        let folder = self.volumes.get(name).ok_or_else(|| {
            PlanError::Binding(format!("volume {name} is bound to no folder; add --volume {name}=DIR"))
        })?;
        Ok(if path.is_empty() { folder.clone() } else { folder.join(path) })
    }

    fn work(&self, component: &str, path: &str) -> Result<PathBuf, PlanError> {
        let folder = self.state.work(component);
        Ok(if path.is_empty() { folder } else { folder.join(path) })
    }

    fn listen(&self, component: &str, port: &str) -> Result<SocketAddr, PlanError> {
        let number = self
            .port(component, port)
            .ok_or_else(|| PlanError::Defect(format!("port {component}/{port} is not in the plan")))?;
        Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, number)))
    }

    fn address(&self, component: &str, port: &str) -> Result<String, PlanError> {
        Ok(format!("http://{}", self.listen(component, port)?))
    }

    fn secret(&self, name: &str, key: &str) -> Result<PathBuf, PlanError> {
        self.secrets
            .get(&(name.to_owned(), key.to_owned()))
            .cloned()
            .ok_or_else(|| PlanError::Binding(format!("secret {name}/{key} is not given; add --secret {name}/{key}=…")))
    }
}
