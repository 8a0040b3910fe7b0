//! Mutual TLS between workers: both sides show a certificate, and both read theirs again when it is renewed.
//!
//! A connection keeps what it began with; the next one is made with the files as they are then. Files that cannot be read
//! (a mount that is being replaced) leave what was read before in force.

use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use s3_config::{ClientTls, ServerTls};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::transport::server::Connected;

/// Files are looked at again this often.
const LOOK: Duration = Duration::from_millis(500);
/// How long the other side may take to show what it has.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long is waited for a caller that was turned away to take note of it.
const PARTING: Duration = Duration::from_secs(2);
/// Connections that are through and not taken up yet.
const WAITING: usize = 256;

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct TlsError {
    path: PathBuf,
    reason: String,
}

impl TlsError {
    fn new(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// What tells that a file was replaced.
type Stamp = (u64, u64, SystemTime);

/// The three files of one side.
#[derive(Clone, Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    ca: PathBuf,
}

impl Files {
    fn stamps(&self) -> io::Result<[Stamp; 3]> {
        use std::os::unix::fs::MetadataExt;
        let stamp = |path: &Path| -> io::Result<Stamp> {
            let data = std::fs::metadata(path)?;
            Ok((data.ino(), data.len(), data.modified()?))
        };
        Ok([stamp(&self.certificate)?, stamp(&self.key)?, stamp(&self.ca)?])
    }

    fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let wrong = |error| TlsError::new(path, format!("no PEM certificates can be read: {error}"));
        let all = CertificateDer::pem_file_iter(path).map_err(wrong)?.collect::<Result<Vec<_>, _>>().map_err(wrong)?;
        if all.is_empty() {
            return Err(TlsError::new(path, "holds no PEM certificate"));
        }
        Ok(all)
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| TlsError::new(&self.key, format!("no PEM private key can be read: {error}")))
    }

    fn authorities(&self) -> Result<Arc<RootCertStore>, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in Self::certificates(&self.ca)? {
            roots.add(certificate).map_err(|error| TlsError::new(&self.ca, error))?;
        }
        Ok(Arc::new(roots))
    }
}

type Make<T> = Box<dyn Fn(&Files) -> Result<T, TlsError> + Send + Sync>;

/// Something made of files, made again when they are renewed.
struct Renewed<T> {
    files: Files,
    make: Make<T>,
    known: Mutex<Known<T>>,
}

struct Known<T> {
    made: Arc<T>,
    stamps: [Stamp; 3],
    looked: Instant,
}

impl<T> Renewed<T> {
    fn open(
        files: Files,
        make: impl Fn(&Files) -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        let stamps = files.stamps().map_err(|error| TlsError::new(&files.certificate, error))?;
        let known = Mutex::new(Known { made: Arc::new(make(&files)?), stamps, looked: Instant::now() });
        Ok(Self { files, make: Box::new(make), known })
    }

    fn now(&self) -> Arc<T> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.looked.elapsed() >= LOOK {
            known.looked = Instant::now();
            // the stamps of before reading: what is replaced meanwhile is read again
            let read = self.files.stamps().map_err(|error| TlsError::new(&self.files.certificate, error));
            match read.map(|stamps| (stamps != known.stamps).then(|| (stamps, (self.make)(&self.files)))) {
                Ok(None) => {}
                Ok(Some((stamps, Ok(made)))) => {
                    tracing::info!(certificate = %self.files.certificate.display(), "the certificate was renewed");
                    (known.made, known.stamps) = (Arc::new(made), stamps);
                }
                Ok(Some((_, Err(error)))) | Err(error) => {
                    tracing::warn!(%error, "the renewed certificate cannot be used; the one before holds");
                }
            }
        }
        known.made.clone()
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A server's side: which certificate it shows, and whose it takes.
pub struct Acceptor(Renewed<ServerConfig>);

impl Acceptor {
    /// Reads the files once, so that wrong ones show at the start. `protocols` are what is spoken inside (`h2`).
    pub fn open(tls: &ServerTls, protocols: &'static [&'static [u8]]) -> Result<Self, TlsError> {
        let files = Files { certificate: tls.certificate.clone(), key: tls.key.clone(), ca: tls.client_ca.clone() };
        let make = move |files: &Files| {
            let verifier = WebPkiClientVerifier::builder_with_provider(files.authorities()?, provider())
                .build()
                .map_err(|error| TlsError::new(&files.ca, error))?;
            let mut config = ServerConfig::builder_with_provider(provider())
                .with_safe_default_protocol_versions()
                .map_err(|error| TlsError::new(&files.certificate, error))?
                .with_client_cert_verifier(verifier)
                .with_single_cert(Files::certificates(&files.certificate)?, files.key()?)
                .map_err(|error| TlsError::new(&files.certificate, format!("does not fit its key: {error}")))?;
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            Ok(config)
        };
        Ok(Self(Renewed::open(files, make)?))
    }

    /// Takes connections up from a listener: those that are through, with whom they are with. `refused` hears of others.
    /// Ends when nobody takes them any more.
    pub fn accept(
        self,
        listener: TcpListener,
        refused: impl Fn(SocketAddr, &str) + Clone + Send + Sync + 'static,
    ) -> mpsc::Receiver<(Secured, SocketAddr)> {
        let (through, taken) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            loop {
                let (stream, address) = tokio::select! {
                    () = through.closed() => return,
                    accepted = listener.accept() => match accepted {
                        Ok(accepted) => accepted,
                        Err(error) => {
                            // no file descriptor is left, for instance; others may end
                            tracing::warn!(%error, "a connection cannot be accepted");
                            tokio::time::sleep(Duration::from_millis(100)).await;
                            continue;
                        }
                    },
                };
                let (acceptor, through, refused) = (TlsAcceptor::from(self.0.now()), through.clone(), refused.clone());
                // nobody waits for the handshake of another
                tokio::spawn(async move {
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "a connection without TCP_NODELAY");
                    }
                    match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream).into_fallible()).await {
                        // a server that is ending takes no more
                        Ok(Ok(stream)) => drop(through.send((Secured(stream), address)).await),
                        Ok(Err((error, stream))) => {
                            refused(address, &error.to_string());
                            part(stream).await;
                        }
                        Err(_) => refused(address, "it showed nothing in time"),
                    }
                });
            }
        });
        taken
    }
}

/// Ends a connection so that the other side reads why: closed with something unread in it, it would be reset.
async fn part(mut stream: TcpStream) {
    let mut unread = [0; 4096];
    let reading = async {
        // whatever goes wrong here, the connection is over
        if stream.shutdown().await.is_ok() {
            while stream.read(&mut unread).await.is_ok_and(|read| read > 0) {}
        }
    };
    let _ = tokio::time::timeout(PARTING, reading).await;
}

/// A connection whose caller has shown a certificate.
pub struct Secured(tokio_rustls::server::TlsStream<TcpStream>);

impl Connected for Secured {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for Secured {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, to)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// A caller's side: makes connections on which both have shown a certificate.
#[derive(Clone)]
pub struct Connector {
    config: Arc<Renewed<ClientConfig>>,
    name: Option<ServerName<'static>>,
    complaint: Complaint,
}

/// What the newest connection broke with. A server that turns a certificate away says so when the connection is made
/// already, and what is sent over it fails for another reason.
#[derive(Clone, Default)]
struct Complaint(Arc<Mutex<Option<String>>>);

impl Complaint {
    fn set(&self, text: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }
}

impl Connector {
    /// Reads the files once, so that wrong ones show at the start.
    pub fn open(tls: &ClientTls) -> Result<Self, TlsError> {
        let files = Files { certificate: tls.certificate.clone(), key: tls.key.clone(), ca: tls.ca.clone() };
        let name = tls.server_name.clone().map(ServerName::try_from).transpose();
        let name = name.map_err(|error| TlsError::new(&files.certificate, format!("serverName: {error}")))?;
        let make = |files: &Files| {
            let mut config = ClientConfig::builder_with_provider(provider())
                .with_safe_default_protocol_versions()
                .map_err(|error| TlsError::new(&files.certificate, error))?
                .with_root_certificates(files.authorities()?)
                .with_client_auth_cert(Files::certificates(&files.certificate)?, files.key()?)
                .map_err(|error| TlsError::new(&files.certificate, format!("does not fit its key: {error}")))?;
            config.alpn_protocols = vec![b"h2".to_vec()];
            Ok(config)
        };
        Ok(Self { config: Arc::new(Renewed::open(files, make)?), name, complaint: Complaint::default() })
    }

    /// What the newest connection broke with, if it did.
    pub fn complaint(&self) -> Option<String> {
        self.complaint.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A connection to a server that has shown a certificate; it notes what it breaks with.
pub struct Outgoing {
    stream: tokio_rustls::client::TlsStream<TcpStream>,
    complaint: Complaint,
}

impl AsyncRead for Outgoing {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, to);
        match &read {
            Poll::Ready(Err(error)) => self.complaint.set(Some(error.to_string())),
            Poll::Ready(Ok(())) if !to.filled().is_empty() => self.complaint.set(None),
            _ => {}
        }
        read
    }
}

impl AsyncWrite for Outgoing {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

type Connecting = Pin<Box<dyn Future<Output = io::Result<TokioIo<Outgoing>>> + Send>>;

impl Service<Uri> for Connector {
    type Response = TokioIo<Outgoing>;
    type Error = io::Error;
    type Future = Connecting;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Connecting {
        let (config, name, complaint) = (self.config.now(), self.name.clone(), self.complaint.clone());
        Box::pin(async move {
            let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
            let host = to.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let port = to.port_u16().unwrap_or(443);
            let name = match name {
                Some(name) => name,
                None => ServerName::try_from(host.clone()).map_err(|error| wrong(format!("{host}: {error}")))?,
            };
            let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no TLS connection in time");
            tokio::time::timeout(HANDSHAKE, async {
                let stream = TcpStream::connect((host.as_str(), port)).await?;
                stream.set_nodelay(true)?;
                let stream = TlsConnector::from(config).connect(name, stream).await?;
                Ok(TokioIo::new(Outgoing { stream, complaint }))
            })
            .await
            .map_err(late)?
        })
    }
}
