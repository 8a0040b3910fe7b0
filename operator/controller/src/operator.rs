//! The running operator: caches, queue, workers, leadership and what it shows of itself.

use crate::key::Key;
use crate::lease::{Election, Fence};
use crate::options::{Options, OptionsError};
use crate::progress::{ProgressService, Reports};
use crate::queue::Queue;
use crate::reconcile::{StatusClock, reconcile};
use crate::scene;
use crate::sharing::Sharing;
use crate::teller::Teller;
use crate::world::{World, watch_all};
use crate::write::{Trouble, Writer, brief};
use futures_util::FutureExt as _;
use kube::{Client, Config};
use s3_plan::Plan;
use s3_plan::objects::{Surroundings, claims_of_plan};
use s3_proto::tonic::transport::Server;
use s3_proto::v1::progress_server::ProgressServer;
use s3_telemetry::{Shutdown, metrics, serve_admin};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Deadline of connecting to the API server.
const CONNECT: Duration = Duration::from_secs(10);
/// A watch is silent for at most this long: the server ends it sooner by itself.
const READ: Duration = Duration::from_secs(330);
/// A reconcile whose own writes the caches have not shown yet is looked at again after this, if no event comes.
const UNSEEN: Duration = Duration::from_millis(250);
/// Time that running reconciles get at the end.
const LAST_WORK: Duration = Duration::from_secs(10);

/// Values of no labels.
const NONE: &[&str] = &[];

/// What all reconciles share.
pub struct Shared {
    /// The caches.
    pub world: Arc<World>,
    /// All writes.
    pub writer: Writer,
    /// What workers reported.
    pub reports: Arc<Reports>,
    /// When statuses were written.
    pub statuses: StatusClock,
    /// Publishes events.
    pub teller: Teller,
    /// What is to be looked at.
    pub queue: Arc<Queue>,
    /// Who shares which gateways.
    pub sharing: Sharing,
    /// What surrounds objects, without namespace and claims.
    surroundings: Surroundings,
}

impl Shared {
    /// What surrounds the objects of a plan in its namespace.
    pub fn surroundings_of(&self, namespace: &str, plan: Option<&Plan>) -> Surroundings {
        let claims = plan.map(|plan| claims_of_plan(plan, &self.surroundings)).unwrap_or_default();
        Surroundings {
            namespace: namespace.to_owned(),
            claims: scene::claims_of(self, namespace, claims),
            autoscaling: self.world.scaling_version().map(str::to_owned),
            ..self.surroundings.clone()
        }
    }
}

/// Why the operator ends by itself.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// A flag or file.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// No way to the API server.
    #[error("the API server cannot be reached: {0}; run in a cluster, or with a kubeconfig")]
    Config(#[from] kube::config::InferConfigError),
    /// The API server.
    #[error("the API server: {0}")]
    Api(#[from] kube::Error),
    /// An address.
    #[error(transparent)]
    Admin(#[from] s3_telemetry::AdminError),
    /// An address.
    #[error("progress address: {0}; choose a free port")]
    Progress(#[source] std::io::Error),
    /// Somebody else leads now; what is in memory here is not trusted any more.
    #[error("the lease went to another process; starting again as a follower")]
    Deposed,
    /// A watch or server ended that never ends.
    #[error("{0} ended")]
    Ended(&'static str),
}

/// Runs until it is asked to stop.
pub async fn run(options: Options, shutdown: Shutdown) -> Result<(), OperatorError> {
    let surroundings = options.surroundings()?;
    let mut config = Config::infer().await?;
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(READ);
    let client = Client::try_from(config)?;

    let scopes = options.namespaces.len().max(1);
    let (world, queue) = (Arc::new(World::new(scopes, options.kueue, options.autoscaling)), Arc::new(Queue::default()));
    let (reports, fence) = (Arc::new(Reports::default()), Fence::default());
    let holder = options.holder();
    let ready = Arc::new(AtomicBool::new(false));
    serve_admin(options.admin_address, ready.clone()).await?;

    let mut watches = watch_all(&client, &options.namespaces, &world, &queue);
    let progress = ProgressService::new(client.clone(), world.clone(), queue.clone(), reports.clone(), fence.clone());
    let mut server = serve_progress(&options, progress, shutdown.clone()).await?;
    while !world.warm() {
        tokio::select! {
            () = shutdown.wait() => return Ok(()),
            _ = watches.join_next() => return Err(OperatorError::Ended("a watch")),
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
    }
    ready.store(true, Ordering::SeqCst);
    tracing::info!(holder, "caches are warm");

    let shared = Arc::new(Shared {
        world: world.clone(),
        writer: Writer::new(client.clone(), fence.clone(), world.clone()),
        reports,
        statuses: StatusClock::default(),
        queue: queue.clone(),
        sharing: Sharing::default(),
        teller: Teller::start(client.clone(), holder.clone(), fence.clone()),
        surroundings,
    });
    let duration = Duration::from_secs(options.lease_seconds.into());
    let election = Election::new(client, &options.lease_namespace, &options.lease_name, holder, duration, fence);
    let lead = lead(&options, &shared, &queue, election, &shutdown);
    tokio::select! {
        result = lead => result,
        _ = watches.join_next() => Err(OperatorError::Ended("a watch")),
        () = broken(&mut server, &shutdown) => Err(OperatorError::Ended("the progress server")),
    }
}

/// Resolves when a server ends that nobody asked to end.
async fn broken(server: &mut JoinSet<()>, shutdown: &Shutdown) {
    server.join_next().await;
    if shutdown.requested() {
        std::future::pending::<()>().await;
    }
}

async fn serve_progress(
    options: &Options,
    service: ProgressService,
    shutdown: Shutdown,
) -> Result<JoinSet<()>, OperatorError> {
    let listener = tokio::net::TcpListener::bind(options.progress_address).await.map_err(OperatorError::Progress)?;
    let incoming = s3_proto::tonic::transport::server::TcpIncoming::from(listener);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let server = Server::builder()
            .timeout(Duration::from_secs(30))
            .http2_keepalive_interval(Some(Duration::from_secs(60)))
            .add_service(ProgressServer::new(service))
            .serve_with_incoming_shutdown(incoming, async move { shutdown.wait().await });
        if let Err(error) = server.await {
            tracing::error!(%error, "the progress server ended");
        }
    });
    Ok(tasks)
}

/// Waits for the lease, works while it is held, and lets go at the end.
async fn lead(
    options: &Options,
    shared: &Arc<Shared>,
    queue: &Arc<Queue>,
    mut election: Election,
    shutdown: &Shutdown,
) -> Result<(), OperatorError> {
    let mut workers = JoinSet::new();
    let mut led = false;
    let mut resynced = Instant::now();
    let resync = Duration::from_secs(options.resync_seconds.into());
    loop {
        match election.look().await {
            Ok(true) if !led => {
                led = true;
                metrics().operator_leader.with_label_values(NONE).set(1.0);
                tracing::info!("leading");
                shared.world.all_keys().into_iter().for_each(|key| queue.add(key));
                for _ in 0..options.workers {
                    workers.spawn(work(shared.clone(), queue.clone()));
                }
            }
            Ok(held) => {
                if led && !held {
                    return Err(OperatorError::Deposed);
                }
            }
            Err(error) => tracing::warn!(error = brief(&error), "the lease cannot be read or renewed"),
        }
        if led && !shared.writer.leads() {
            return Err(OperatorError::Deposed);
        }
        if led && resynced.elapsed() >= resync {
            resynced = Instant::now();
            // Spread, so that a resync is no wave.
            let keys = shared.world.all_keys();
            let count = u32::try_from(keys.len().max(1)).unwrap_or(u32::MAX);
            for (place, key) in keys.into_iter().enumerate() {
                queue.add_after(key, (resync / 4 / count) * u32::try_from(place).unwrap_or(u32::MAX));
            }
        }
        metrics().operator_queue_depth.with_label_values(NONE).set(queue.depth() as f64);
        tokio::select! {
            () = shutdown.wait() => break,
            () = tokio::time::sleep(election.period()) => {}
        }
    }
    queue.close();
    let end = tokio::time::timeout(LAST_WORK, async { while workers.join_next().await.is_some() {} }).await;
    if end.is_err() {
        tracing::warn!("some reconciles did not end in time; the lease is left to run out");
        return Ok(());
    }
    metrics().operator_leader.with_label_values(NONE).set(0.0);
    election.resign().await?;
    Ok(())
}

/// Reconciles keys until the queue is closed.
async fn work(shared: Arc<Shared>, queue: Arc<Queue>) {
    while let Some(key) = queue.next().await {
        let result = match shared.writer.seen(&key).await {
            Ok(true) => once(&shared, &key).await,
            // The caches are behind this key's own writes.
            Ok(false) => {
                queue.done(&key);
                queue.add_after(key, UNSEEN);
                continue;
            }
            Err(trouble) => Err(trouble),
        };
        queue.done(&key);
        settle(&queue, key, result);
    }
}

async fn once(shared: &Shared, key: &Key) -> Result<Option<Duration>, Trouble> {
    let timer = metrics().operator_reconcile_seconds.with_label_values(&[key.word()]).start_timer();
    // One malformed object never stops a worker.
    let result = AssertUnwindSafe(reconcile(shared, key)).catch_unwind().await;
    timer.observe_duration();
    result.unwrap_or_else(|_| Err(Trouble::Panicked))
}

/// Counts the end of a reconcile and asks for the next.
fn settle(queue: &Queue, key: Key, result: Result<Option<Duration>, Trouble>) {
    let count = |result: &str| metrics().operator_reconciles.with_label_values(&[key.word(), result]).inc();
    match result {
        Ok(again) => {
            count(if again.is_some() { "waiting" } else { "done" });
            queue.succeeded(&key);
            if let Some(pause) = again {
                queue.add_after(key, pause);
            }
        }
        Err(Trouble::Changed(what)) => {
            count("changed");
            tracing::debug!(%key, what, "decided from something old");
            queue.add_failed(key);
        }
        // Its objects go, and it with them.
        Err(Trouble::Terminating(what)) => {
            count("done");
            tracing::debug!(%key, what, "too late");
            queue.add_failed(key);
        }
        Err(Trouble::Deposed) => {
            count("deposed");
            queue.add_failed(key);
        }
        Err(trouble) => {
            count("error");
            tracing::warn!(%key, error = %trouble, "reconcile failed; tried again");
            queue.add_failed(key);
        }
    }
}
