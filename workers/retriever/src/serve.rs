//! `s3-retriever serve`: the current index over gRPC and HTTP.

use crate::access::Access;
use crate::engine::Engine;
use crate::error::{Result, RetrieverError};
use crate::front::{AnswersGrpc, AnswersHttp, Front, router};
use crate::gate::Gate;
use crate::live::Live;
use axum::serve::{Listener, ListenerExt};
use s3_config::{RetrieverServeConfig, Runtime, ServerTls};
use s3_proto::v1::retriever_server::RetrieverServer;
use s3_proto::{Acceptor, MESSAGE_LIMIT, Secured};
use s3_telemetry::{Failure, Progress, Shutdown};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

/// How long requests under way may take after the signal to stop.
const DRAIN: Duration = Duration::from_secs(20);

/// Serves until asked to stop. Nothing is answered before the self-query has passed.
pub async fn serve(config: RetrieverServeConfig, shutdown: Shutdown) -> Result<(), Failure> {
    let sockets = Sockets::open(&config.runtime, config.grpc, config.http, config.tls.as_ref()).await?;
    sockets.progress.phase("load index", 0);
    let opened_from = config.clone();
    let opening = tokio::task::spawn_blocking(move || Engine::open(&opened_from));
    let opened = tokio::select! {
        opened = opening => opened.map_err(Failure::internal)?,
        () = shutdown.wait() => return Ok(()),
    };
    let engine = opened?;
    tracing::info!(
        index = %engine.index().digest,
        passages = engine.index().passages.len(),
        method = engine.method().label(),
        "serving"
    );

    let access = Arc::new(Access::open(config.tokens.as_deref())?);
    let deadline = Duration::from_millis(config.deadline_millis);
    let live = Arc::new(Live::new(engine, config.requests_limit));
    let gate = Gate { access, admission: live.admission(), deadline };
    tokio::spawn(live.clone().watch(config, shutdown.clone()));
    sockets.answer(Front { answers: live, gate }, shutdown).await
}

/// The ports of a server, bound before anything is loaded: a taken one is known at once.
pub(crate) struct Sockets {
    grpc: TcpListener,
    http: Option<TcpListener>,
    tls: Option<(Acceptor, Acceptor)>,
    ready: Arc<AtomicBool>,
    pub progress: Progress,
}

impl Sockets {
    pub async fn open(
        runtime: &Runtime,
        grpc: SocketAddr,
        http: Option<SocketAddr>,
        tls: Option<&ServerTls>,
    ) -> Result<Self, Failure> {
        s3_telemetry::last_words().write_to(runtime.termination_message.as_deref());
        let grpc = bind("grpc", grpc).await?;
        let http = match http {
            Some(address) => Some(bind("http", address).await?),
            None => None,
        };
        let tls = match tls {
            Some(tls) => {
                let open = |protocols| Acceptor::open(tls, protocols).map_err(RetrieverError::from);
                Some((open(&[b"h2"])?, open(&[b"http/1.1"])?))
            }
            None => None,
        };
        let ready = Arc::new(AtomicBool::new(false));
        if let Some(address) = runtime.admin {
            s3_telemetry::serve_admin(address, ready.clone()).await.map_err(Failure::input)?;
        }
        Ok(Self { grpc, http, tls, ready, progress: Progress::new(runtime.progress.clone()) })
    }

    /// Answers until asked to stop.
    pub async fn answer<A: AnswersGrpc + AnswersHttp>(
        self,
        front: Front<A>,
        shutdown: Shutdown,
    ) -> Result<(), Failure> {
        let stop = |shutdown: Shutdown| async move { shutdown.wait().await };
        let mut servers = JoinSet::new();
        let service = RetrieverServer::new(front.clone())
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT);
        let routes = router(front);
        let (health, health_service) = tonic_health::server::health_reporter();
        // what answers is open, and has passed its self-query
        health.set_serving::<RetrieverServer<Front<A>>>().await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(s3_proto::DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(Failure::internal)?;
        let grpc = Server::builder().add_service(service).add_service(health_service).add_service(reflection);
        let (grpc_ends, http_ends) = (stop(shutdown.clone()), stop(shutdown.clone()));
        let said = |what: &'static str| move |error: &dyn std::fmt::Display| format!("{what} server: {error}");
        match self.tls {
            None => {
                let incoming = TcpIncoming::from(self.grpc).with_nodelay(Some(true));
                let serving = grpc.serve_with_incoming_shutdown(incoming, grpc_ends);
                servers.spawn(async move { serving.await.map_err(|error| said("grpc")(&error)) });
                if let Some(http) = self.http {
                    let serving = axum::serve(http.tap_io(undelayed), routes).with_graceful_shutdown(http_ends);
                    servers.spawn(async move { serving.await.map_err(|error| said("http")(&error)) });
                }
            }
            Some((for_grpc, for_http)) => {
                let incoming = ReceiverStream::new(for_grpc.accept(self.grpc, turned_away));
                let incoming = incoming.map(|(stream, _)| Ok::<_, std::io::Error>(stream));
                let serving = grpc.serve_with_incoming_shutdown(incoming, grpc_ends);
                servers.spawn(async move { serving.await.map_err(|error| said("grpc")(&error)) });
                if let Some(http) = self.http {
                    let address = http.local_addr().map_err(Failure::io)?;
                    let listener = SecuredListener { taken: for_http.accept(http, turned_away), address };
                    let serving = axum::serve(listener, routes).with_graceful_shutdown(http_ends);
                    servers.spawn(async move { serving.await.map_err(|error| said("http")(&error)) });
                }
            }
        }
        let leaving = shutdown.clone();
        tokio::spawn(async move {
            leaving.wait().await;
            health.set_not_serving::<RetrieverServer<Front<A>>>().await;
        });
        self.progress.phase("serve", 0);
        self.progress.ready();
        self.ready.store(true, Ordering::SeqCst);
        until_the_end(servers, shutdown).await
    }
}

/// Either server's end ends the process; after the signal both get time to finish.
async fn until_the_end(mut servers: JoinSet<Result<(), String>>, shutdown: Shutdown) -> Result<(), Failure> {
    let draining = async {
        shutdown.wait().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::pin!(draining);
    loop {
        tokio::select! {
            ended = servers.join_next() => match ended {
                None => return Ok(()),
                Some(Ok(Ok(()))) if shutdown.requested() => {}
                Some(Ok(Ok(()))) => return Err(Failure::internal("a server ended by itself")),
                Some(Ok(Err(error))) => return Err(Failure::internal(error)),
                Some(Err(error)) => return Err(Failure::internal(error)),
            },
            () = &mut draining => {
                tracing::warn!("requests under way did not end in time; leaving");
                return Ok(());
            }
        }
    }
}

/// Says who was turned away for want of a certificate, and counts it.
fn turned_away(address: SocketAddr, why: &str) {
    s3_telemetry::metrics().retriever_refused.with_label_values(&["certificate"]).inc();
    tracing::warn!(%address, why, "a caller without a certificate of the configured authority was turned away");
}

/// Connections whose callers have shown a certificate, as axum takes them.
struct SecuredListener {
    taken: Receiver<(Secured, SocketAddr)>,
    address: SocketAddr,
}

impl Listener for SecuredListener {
    type Io = Secured;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Secured, SocketAddr) {
        match self.taken.recv().await {
            Some(taken) => taken,
            // nobody accepts any more: the server is told to stop otherwise
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(self.address)
    }
}

fn undelayed(stream: &mut TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection without TCP_NODELAY");
    }
}

async fn bind(what: &'static str, address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|source| RetrieverError::Bind { what, address, source })
}
