//! From a configuration to serving sockets.

use crate::access::Access;
use crate::built_in::BuiltIn;
use crate::cache::{AnswerCache, CacheError};
use crate::calibration;
use crate::engine::{Gateway, Rules};
use crate::grpc::GeneratorService;
use crate::http::Front;
use crate::network::Reach;
use crate::provider::Provider;
use crate::remote::{Remote, Surroundings};
use crate::templates::{TemplateError, Templates};
use s3_config::{GatewayConfig, ProviderConfig};
use s3_proto::tonic::transport::Server;
use s3_proto::tonic::transport::server::TcpIncoming;
use s3_proto::v1::generator_server::GeneratorServer;
use s3_telemetry::{Failure, Progress, Shutdown};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;

/// Requests in work have this long to end after a stop signal.
const DRAIN: Duration = Duration::from_secs(30);

/// Serves until SIGTERM or SIGINT (then drains and returns), or until the cache fails.
pub async fn serve(config: GatewayConfig) -> Result<(), Failure> {
    s3_telemetry::last_words().write_to(config.runtime.termination_message.as_deref());
    let shutdown = Shutdown::listen().map_err(Failure::internal)?;
    let progress = Progress::new(config.runtime.progress.clone());
    progress.phase("start", 0);
    let ready = Arc::new(AtomicBool::new(false));
    if let Some(admin) = config.runtime.admin {
        s3_telemetry::serve_admin(admin, ready.clone()).await.map_err(Failure::input)?;
    }
    // addresses first: a taken port is found before a model is loaded
    let grpc = listen(config.grpc, "grpc").await?;
    let http = match config.http {
        Some(address) => Some(listen(address, "http").await?),
        None => None,
    };
    let access = Access::new(config.caller_tokens.as_deref(), &config.tokens, config.tokens_only);
    let access = Arc::new(access.map_err(Failure::input)?);
    let gateway = tokio::task::spawn_blocking({
        let config = config.clone();
        move || build(&config)
    })
    .await
    .map_err(Failure::internal)??;

    let limit = config.body_limit;
    let service = GeneratorServer::new(GeneratorService::new(gateway.clone(), access.clone()))
        .max_decoding_message_size(limit.min(s3_proto::MESSAGE_LIMIT))
        .max_encoding_message_size(s3_proto::MESSAGE_LIMIT);
    let stop = shutdown.clone();
    let mut grpc = tokio::spawn(async move {
        let incoming = TcpIncoming::from(grpc).with_nodelay(Some(true));
        Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, async move { stop.wait().await })
            .await
    });
    let front = http.map(|listener| {
        let stop = shutdown.clone();
        let front = Front::new(gateway.clone(), access.clone(), limit);
        tokio::spawn(front.serve(listener, async move { stop.wait().await }))
    });
    ready.store(true, Ordering::SeqCst);
    progress.phase("serve", 0);
    progress.ready();
    tracing::info!(grpc = %config.grpc, "serving");

    tokio::select! {
        cause = gateway.broken() => return Err(cache_failure(cause.as_ref())),
        ended = &mut grpc => {
            ended.map_err(Failure::internal)?.map_err(Failure::internal)?;
        }
        () = shutdown.wait() => {
            ready.store(false, Ordering::SeqCst);
            tracing::info!("stopping: no new requests, those in work end");
            let drained = tokio::time::timeout(DRAIN, async {
                let _ = grpc.await;
                if let Some(front) = front {
                    let _ = front.await;
                }
            });
            if drained.await.is_err() {
                tracing::warn!("requests were still in work after {} s; their callers ask again", DRAIN.as_secs());
            }
        }
    }
    Ok(())
}

async fn listen(address: SocketAddr, which: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(address)
        .await
        .map_err(|e| Failure::input(format!("{which} address {address}: {e}; choose a free port")))
}

/// Providers, templates and cache of a configuration. Blocks while models are loaded.
pub fn build(config: &GatewayConfig) -> Result<Arc<Gateway>, Failure> {
    let templates = Templates::load(&config.templates).map_err(|e| match e {
        TemplateError::Read { .. } | TemplateError::Invalid { .. } | TemplateError::Unknown { .. } => Failure::input(e),
    })?;
    if config.providers.is_empty() {
        return Err(Failure::input("providers is empty; name at least one"));
    }
    let mut names = BTreeSet::new();
    for provider in &config.providers {
        if provider.name().is_empty() || !names.insert(provider.name()) {
            return Err(Failure::input(format!("provider name {:?} is empty or stands twice", provider.name())));
        }
    }
    let reach = Reach::new(&config.allow_addresses).map_err(Failure::input)?;
    // the cache before the models: it opens fast and a wrong path shows at once
    let cache = match &config.cache {
        Some(path) => AnswerCache::open_as(path, config.cache_mode).map_err(|e| cache_failure(&e))?,
        None => AnswerCache::in_memory(config.cache_mode),
    };
    let around = Surroundings::new(reach, &config.providers);
    let providers = config.providers.iter().map(|provider| make(provider, &around)).collect::<Result<Vec<_>, _>>()?;
    for (judge, required) in &config.calibrations {
        let provider = providers.iter().find(|provider| provider.name() == judge);
        let provider =
            provider.ok_or_else(|| Failure::input(format!("calibrations: no provider is called {judge:?}")))?;
        let second = config.second_judges.get(judge).map(String::as_str);
        let second = providers.iter().find(|provider| Some(provider.name()) == second).map(AsRef::as_ref);
        calibration::require(provider.as_ref(), second, required).map_err(Failure::input)?;
    }
    let rules = Rules {
        fallbacks: config.fallbacks.clone(),
        second_judges: config.second_judges.clone(),
        budgets: &config.budgets,
    };
    Gateway::with_rules(providers, templates, cache, rules).map_err(Failure::input)
}

fn make(provider: &ProviderConfig, around: &Surroundings) -> Result<Box<dyn Provider>, Failure> {
    match provider {
        ProviderConfig::BuiltIn { name, model, batch, context_tokens } => {
            tracing::info!(provider = name, model = %model.path.display(), "loading");
            Ok(Box::new(BuiltIn::load(name, model, *batch, *context_tokens).map_err(Failure::input)?))
        }
        remote => Ok(Box::new(Remote::new(remote, around).map_err(Failure::input)?)),
    }
}

/// Damage and a second gateway need a person; a failing disk may come back.
fn cache_failure(error: &CacheError) -> Failure {
    match error {
        CacheError::Damaged { .. } | CacheError::InUse { .. } => Failure::input(error),
        CacheError::Io { .. } => Failure::io(error),
    }
}
