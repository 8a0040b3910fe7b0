//! What the operator is told when it starts.

use clap::Args;
use s3_plan::objects::{Image, Images, Network, Surroundings};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Flags of `s3-operator run`; each can be set by the environment variable that its help names.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Namespaces that are served; all without it.
    #[arg(long, env = "S3_NAMESPACES", value_delimiter = ',')]
    pub namespaces: Vec<String>,
    /// Images of the workers, PROGRAM=IMAGE (`s3-trainer=example.org/s3-trainer:1`).
    #[arg(long = "image", env = "S3_IMAGES", value_delimiter = ',', value_name = "PROGRAM=IMAGE")]
    pub images: Vec<String>,
    /// Images of workers built with CUDA, for pods that ask for GPUs.
    #[arg(long = "cuda-image", env = "S3_CUDA_IMAGES", value_delimiter = ',', value_name = "PROGRAM=IMAGE")]
    pub cuda_images: Vec<String>,
    /// `Always`, `IfNotPresent` or `Never`; without it the cluster decides.
    #[arg(long, env = "S3_IMAGE_PULL_POLICY")]
    pub image_pull_policy: Option<String>,
    /// Secrets for pulling the workers' images.
    #[arg(long = "image-pull-secret", env = "S3_IMAGE_PULL_SECRETS", value_delimiter = ',')]
    pub image_pull_secrets: Vec<String>,
    /// Service account of worker pods that name none.
    #[arg(long, env = "S3_WORKER_SERVICE_ACCOUNT")]
    pub worker_service_account: Option<String>,
    /// Address of `/metrics`, `/healthz`, `/readyz`.
    #[arg(long, env = "S3_ADMIN_ADDRESS", default_value = "0.0.0.0:9464")]
    pub admin_address: SocketAddr,
    /// Address on which workers' progress is taken.
    #[arg(long, env = "S3_PROGRESS_ADDRESS", default_value = "0.0.0.0:9000")]
    pub progress_address: SocketAddr,
    /// How workers reach that address (`http://s3-operator.s3-system.svc:9000`); without it they do not report.
    #[arg(long, env = "S3_PROGRESS_URL")]
    pub progress_url: Option<String>,
    /// Name of the lease of the leader.
    #[arg(long, env = "S3_LEASE_NAME", default_value = "s3-operator")]
    pub lease_name: String,
    /// Namespace of that lease.
    #[arg(long, env = "S3_LEASE_NAMESPACE", default_value = "default")]
    pub lease_namespace: String,
    /// Name under which this process holds it; by default made from host and process.
    #[arg(long, env = "S3_IDENTITY")]
    pub identity: Option<String>,
    /// Seconds after which a lease that is not renewed is free.
    #[arg(long, env = "S3_LEASE_SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u16).range(3..))]
    pub lease_seconds: u16,
    /// Resources that are reconciled at the same time.
    #[arg(long, env = "S3_WORKERS", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    pub workers: u16,
    /// Seconds after which everything is looked at again, whatever the watches say.
    #[arg(long, env = "S3_RESYNC_SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    pub resync_seconds: u32,
    /// Whether resources may enter queues of Kueue with a Workload of their own.
    #[arg(long, env = "S3_KUEUE", default_value_t = false, action = clap::ArgAction::Set, value_name = "true|false")]
    pub kueue: bool,
    /// Whether servers of indices may follow the load by a `HorizontalPodAutoscaler`.
    #[arg(long, env = "S3_AUTOSCALING", default_value_t = false, action = clap::ArgAction::Set, value_name = "true|false")]
    pub autoscaling: bool,
    /// File with further settings (YAML), see [`Settings`].
    #[arg(long, env = "S3_SETTINGS")]
    pub settings: Option<std::path::PathBuf>,
}

/// Settings with more structure than a flag has; all are optional.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// Labels added to every object and pod.
    pub labels: BTreeMap<String, String>,
    /// Annotations added to every pod.
    pub annotations: BTreeMap<String, String>,
    /// Network policies of the workers.
    pub network: Network,
    /// Where gateways keep their answers.
    pub gateway_storage: s3_crds::Storage,
    /// CPU and memory of gateways.
    pub gateway_resources: s3_crds::Resources,
    /// Storage class of claims that name none.
    pub storage_class: Option<String>,
}

/// A flag or file that says something impossible.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// Not of the form.
    #[error("--{flag} {value}: write PROGRAM=IMAGE, for example s3-trainer=example.org/s3-trainer:1")]
    Pair {
        /// The flag.
        flag: &'static str,
        /// Its value.
        value: String,
    },
    /// The settings cannot be read.
    #[error("settings {file}: {reason}")]
    Settings {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
}

impl Options {
    /// What surrounds objects, without namespace and claims.
    pub fn surroundings(&self) -> Result<Surroundings, OptionsError> {
        let settings = match &self.settings {
            Some(file) => {
                let wrong = |reason: String| OptionsError::Settings { file: file.display().to_string(), reason };
                let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
                serde_yaml_ng::from_str::<Settings>(&text).map_err(|error| wrong(error.to_string()))?
            }
            None => Settings::default(),
        };
        let mut by_binary: BTreeMap<String, Image> = BTreeMap::new();
        for value in &self.images {
            let (program, image) = pair("image", value)?;
            by_binary.insert(program, Image { cpu: image, cuda: None });
        }
        for value in &self.cuda_images {
            let (program, image) = pair("cuda-image", value)?;
            by_binary.entry(program).or_default().cuda = Some(image);
        }
        Ok(Surroundings {
            images: Images {
                by_binary,
                pull_policy: self.image_pull_policy.clone(),
                pull_secrets: self.image_pull_secrets.clone(),
            },
            operator_address: self.progress_url.clone(),
            labels: settings.labels,
            annotations: settings.annotations,
            service_account: self.worker_service_account.clone(),
            network: settings.network,
            gateway_storage: settings.gateway_storage,
            gateway_resources: settings.gateway_resources,
            storage_class: settings.storage_class,
            ..Surroundings::default()
        })
    }

    /// Name under which the lease is held.
    pub fn holder(&self) -> String {
        self.identity.clone().unwrap_or_else(|| {
            let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "operator".into());
            format!("{host}-{}-{:08x}", std::process::id(), crate::clock::noise(&host))
        })
    }
}

fn pair(flag: &'static str, value: &str) -> Result<(String, String), OptionsError> {
    match value.split_once('=') {
        Some((program, image)) if !program.is_empty() && !image.is_empty() => {
            Ok((program.to_owned(), image.to_owned()))
        }
        _ => Err(OptionsError::Pair { flag, value: value.to_owned() }),
    }
}
