//! What lies in hubs and buckets: one component per resource (and per gateway) fetches it into the volume.
//!
//! While components are planned, a remote file is written as `fetch://KEY/NAME`, and its input says where it comes
//! from. At the end [`split`] makes the components that fetch, and puts their paths where the stand-ins are.

use crate::component::{in_work, runtime};
use crate::names::{join, short_digest};
use crate::sources::Source;
use crate::{
    ADMIN_PORT, Component, ComponentKind, ComponentResources, PlanError, Readiness, Role, Symbol, Template,
    WorkerConfig,
};
use s3_config::{FetchConfig, FetchFile, FetchLocation, FetchSource};
use s3_crds::SecretKeyRef;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const STAND_IN: &str = "fetch://";
/// Room for a fetched model, and for a fetched file of data: their sizes are not known before.
const MODEL: u64 = 4 << 30;
const DATA: u64 = 512 << 20;

/// A hub repository or a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    location: FetchLocation,
    secret: Option<SecretKeyRef>,
    /// The path in it that the resource names.
    pub path: String,
    key: String,
}

/// One file of a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remote {
    /// Where.
    pub place: Place,
    /// Its path there.
    pub file: String,
    /// Its name in the place's folder.
    pub name: String,
}

impl Ord for Remote {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (&self.place.key, &self.name, &self.file).cmp(&(&other.place.key, &other.name, &other.file))
    }
}

impl PartialOrd for Remote {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Place {
    /// Two paths of one repository, two expected contents and two secrets have folders of their own, so that
    /// nobody's wrong digest harms another.
    pub fn new(source: Source<'_>, location: FetchLocation, path: String) -> Self {
        let revision = match &location {
            FetchLocation::HuggingFace { revision, .. } => revision.as_deref(),
            FetchLocation::S3 { .. } | FetchLocation::Gs { .. } => None,
        };
        let secret = source.token.map_or_else(String::new, |token| format!("{}/{}", token.name, token.key));
        let sha256 = source.sha256.map_or("", String::as_str);
        let key = short_digest(&format!("{}\n{}\n{secret}\n{sha256}", source.uri, revision.unwrap_or_default()));
        Self { location, secret: source.token.cloned(), path, key }
    }

    /// What stands in configurations until it is known who fetches.
    pub fn stand_in(&self) -> String {
        format!("{STAND_IN}{}", self.key)
    }
}

/// A component that fetches, while its consumers are still being found.
struct Draft {
    kind: ComponentKind,
    owners: BTreeSet<String>,
    keys: BTreeSet<String>,
}

/// Who fetches for a component: its name, and whose it is.
fn fetcher(component: &Component) -> (String, ComponentKind, BTreeSet<String>) {
    match crate::objects::belongs_to(component) {
        Some((kind, name)) => {
            let suffix = match kind {
                "RetrieverIndex" => "index-fetch",
                "S3TrainingJob" => "job-fetch",
                _ => "run-fetch",
            };
            (join(name, suffix), ComponentKind::Fetch, BTreeSet::from([format!("{kind}/{name}")]))
        }
        None => (gateway_fetch_name(&component.name), ComponentKind::GatewayFetch, component.owners.clone()),
    }
}

/// The component that fetches for a gateway.
pub(crate) fn gateway_fetch_name(gateway: &str) -> String {
    join(gateway, "fetch")
}

/// Moves everything remote out of the components into ones that fetch it.
pub(crate) fn split(components: &mut BTreeMap<String, Component>) -> Result<(), PlanError> {
    let mut files: BTreeMap<String, BTreeMap<String, (Remote, Option<String>)>> = BTreeMap::new();
    for component in components.values_mut() {
        for input in component.inputs.extract_if(.., |input| input.remote.is_some()) {
            let Some(remote) = input.remote else { continue };
            let known = files.entry(remote.place.key.clone()).or_default();
            known.insert(remote.name.clone(), (remote, input.sha256));
        }
    }
    let mut drafts: BTreeMap<String, Draft> = BTreeMap::new();
    for component in components.values_mut() {
        let (name, kind, owners) = fetcher(component);
        let mut keys = BTreeSet::new();
        replace(&mut component.config.value, &name, &mut keys);
        if keys.is_empty() {
            continue;
        }
        component.needs.insert(name.clone());
        let draft =
            drafts.entry(name).or_insert_with(|| Draft { kind, owners: BTreeSet::new(), keys: BTreeSet::new() });
        draft.owners.extend(owners);
        draft.keys.extend(keys);
    }
    for (name, draft) in drafts {
        let component = component(&name, draft, &files)?;
        if let Some(twin) = components.insert(name, component) {
            return Err(PlanError::Document {
                place: twin.owners.into_iter().collect::<Vec<_>>().join(", "),
                reason: format!("another resource makes a component of the name {}; rename one", twin.name),
            });
        }
    }
    Ok(())
}

/// Puts `work://FETCHER/files/KEY/…` where `fetch://KEY/…` stands, and notes the keys.
fn replace(value: &mut Value, fetcher: &str, keys: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => {
            if let Some(rest) = text.strip_prefix(STAND_IN) {
                keys.extend(rest.split('/').next().map(str::to_owned));
                *text = Symbol::work(fetcher, &format!("files/{rest}")).to_string();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| replace(item, fetcher, keys)),
        Value::Object(fields) => fields.values_mut().for_each(|item| replace(item, fetcher, keys)),
        _ => {}
    }
}

fn component(
    name: &str,
    draft: Draft,
    files: &BTreeMap<String, BTreeMap<String, (Remote, Option<String>)>>,
) -> Result<Component, PlanError> {
    let (mut sources, mut secrets, mut disk) = (Vec::new(), BTreeSet::new(), 0);
    for key in draft.keys {
        let Some(known) = files.get(&key) else {
            return Err(PlanError::Defect(format!("nobody says where {STAND_IN}{key} is")));
        };
        let Some((first, _)) = known.values().next() else { continue };
        let token_file = first.place.secret.as_ref().map(|secret| {
            secrets.insert(format!("{}/{}", secret.name, secret.key));
            Symbol::Secret { name: secret.name.clone(), key: secret.key.clone() }.to_string().into()
        });
        let is_model = |name: &String| {
            let extension = std::path::Path::new(name).extension();
            extension.is_some_and(|e| e.eq_ignore_ascii_case("safetensors") || e.eq_ignore_ascii_case("gguf"))
        };
        disk += known.keys().map(|name| if is_model(name) { MODEL } else { DATA }).max().unwrap_or(0);
        sources.push(FetchSource {
            key: key.clone(),
            location: first.place.location.clone(),
            token_file,
            files: known
                .values()
                .map(|(remote, sha256)| FetchFile {
                    path: remote.file.clone(),
                    name: remote.name.clone(),
                    sha256: sha256.clone(),
                })
                .collect(),
        });
    }
    let config = FetchConfig { runtime: runtime(name), sources, output: in_work(name, "files") };
    Ok(Component {
        name: name.to_owned(),
        kind: draft.kind,
        role: Role::Job,
        owners: draft.owners,
        binary: "s3-fetch".into(),
        args: vec!["run".into()],
        needs: BTreeSet::new(),
        ports: BTreeSet::from([ADMIN_PORT.to_owned()]),
        endpoints: Vec::new(),
        volumes: BTreeSet::new(),
        secrets,
        inputs: Vec::new(),
        resources: ComponentResources { disk, ..ComponentResources::default() },
        readiness: Readiness::Outcome,
        config: Template::new(&WorkerConfig::Fetch(Box::new(config)), &[("/runtime/admin", ADMIN_PORT)])?,
    })
}
