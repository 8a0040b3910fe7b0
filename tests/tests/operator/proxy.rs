//! A proxy between an operator and the API server that counts, records and breaks what passes.

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// What is done to the traffic.
#[derive(Clone, Debug, Default)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// The write of that number (from now, from 1) never reaches the server, and the operator is to be killed.
    CrashBefore(u32),
    /// It reaches the server, the answer never comes back, and the operator is to be killed.
    CrashAfter(u32),
    /// It reaches the server, the answer never comes back, and from then on nothing gets through.
    AnswerLost(u32),
    /// Events of watches come so much later.
    StaleWatches(Duration),
    /// Nothing gets through.
    Outage,
    /// From the first write of that resource on nothing is seen any more: no watch, no list.
    BlindAfter(&'static str),
    /// Nothing is seen; what has been seen is too old to go on from.
    Blind,
}

/// A write as the server was asked for it: method and path.
pub type Call = (String, String);

struct Inner {
    upstream: String,
    client: Client<HttpConnector, Body>,
    fault: Mutex<Fault>,
    writes: Mutex<Vec<Call>>,
    verbs: Mutex<BTreeMap<(String, String), u32>>,
    /// Whom the operator speaks as, if not as whoever runs the tests.
    user: Mutex<Option<String>>,
    refused: Mutex<Vec<String>>,
    crash: mpsc::UnboundedSender<()>,
    /// Changes when all watches are to break.
    cut: watch::Sender<u32>,
}

/// The proxy.
pub struct Proxy {
    inner: Arc<Inner>,
    address: std::net::SocketAddr,
    crashes: tokio::sync::Mutex<mpsc::UnboundedReceiver<()>>,
}

impl Proxy {
    /// Before a server.
    pub async fn start(upstream: &str) -> Self {
        let (crash, crashes) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner {
            upstream: upstream.trim_end_matches('/').to_owned(),
            client: Client::builder(TokioExecutor::new()).build(HttpConnector::new()),
            fault: Mutex::default(),
            writes: Mutex::default(),
            verbs: Mutex::default(),
            user: Mutex::default(),
            refused: Mutex::default(),
            crash,
            cut: watch::channel(0).0,
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(pass).with_state(inner.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { inner, address, crashes: tokio::sync::Mutex::new(crashes) }
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What is done from now on.
    pub fn set(&self, fault: Fault) {
        *self.inner.fault.lock().unwrap() = fault;
    }

    /// Breaks all watches now.
    pub fn cut_watches(&self) {
        self.inner.cut.send_modify(|count| *count += 1);
    }

    /// Waits for a moment at which the operator, or the server, is to be killed.
    pub async fn crashed(&self) {
        self.crashes.lock().await.recv().await.unwrap();
    }

    /// All writes of objects so far, leases, events and reviews aside.
    pub fn writes(&self) -> Vec<Call> {
        self.inner.writes.lock().unwrap().clone()
    }

    /// From now on everything is asked in the name of that user, with that user's rights.
    pub fn impersonate(&self, user: &str) {
        *self.inner.user.lock().unwrap() = Some(user.to_owned());
    }

    /// What the server refused for lack of rights.
    pub fn refused(&self) -> Vec<String> {
        self.inner.refused.lock().unwrap().clone()
    }

    /// How often each (verb, resource) was asked for.
    pub fn verbs(&self) -> BTreeMap<(String, String), u32> {
        self.inner.verbs.lock().unwrap().clone()
    }
}

/// The verb and resource of a request, as RBAC names them.
fn verb(method: &Method, uri: &Uri) -> Option<(String, String)> {
    let parts: Vec<&str> = uri.path().trim_start_matches('/').split('/').collect();
    let (["api", _, rest @ ..] | ["apis", _, _, rest @ ..]) = parts.as_slice() else { return None };
    let rest = match rest {
        ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
        rest => rest,
    };
    let (resource, name, sub) = match rest {
        [resource] => (*resource, None, None),
        [resource, name] => (*resource, Some(*name), None),
        [resource, name, sub, ..] => (*resource, Some(*name), Some(*sub)),
        [] => return None,
    };
    let watches = uri.query().is_some_and(|query| query.contains("watch=true") || query.contains("watch=1"));
    let verb = match (method.as_str(), name) {
        ("GET", _) if watches => "watch",
        ("GET", None) => "list",
        ("GET", Some(_)) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", None) => "deletecollection",
        ("DELETE", Some(_)) => "delete",
        _ => return None,
    };
    let resource = sub.map_or_else(|| resource.to_owned(), |sub| format!("{resource}/{sub}"));
    Some((verb.to_owned(), resource))
}

/// The answer to a watch from a version that the server has forgotten.
fn expired() -> Response {
    let status = serde_json::json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired",
        "code": 410, "message": "too old resource version"});
    (StatusCode::GONE, axum::Json(status)).into_response()
}

async fn pass(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let unavailable = || (StatusCode::SERVICE_UNAVAILABLE, "broken by the test").into_response();
    let called = verb(request.method(), request.uri());
    let is_watch = called.as_ref().is_some_and(|(verb, _)| verb == "watch");
    let is_write = !matches!(*request.method(), Method::GET | Method::HEAD)
        && called
            .as_ref()
            .is_some_and(|(_, resource)| !matches!(resource.as_str(), "leases" | "events" | "tokenreviews"));
    let asked = called.clone().unwrap_or_default();
    if let Some(called) = called {
        *inner.verbs.lock().unwrap().entry(called).or_default() += 1;
    }
    let (mut before, mut after, mut lost, mut delay) = (false, false, false, Duration::ZERO);
    let mut blinds = false;
    {
        let mut fault = inner.fault.lock().unwrap();
        match &mut *fault {
            Fault::Outage => return unavailable(),
            Fault::Blind if asked.0 == "watch" => return expired(),
            Fault::Blind if asked.0 == "list" => return unavailable(),
            Fault::BlindAfter(resource) if is_write && asked.1 == *resource => blinds = true,
            Fault::StaleWatches(late) => delay = *late,
            Fault::CrashBefore(left) if is_write => {
                *left -= 1;
                before = *left == 0;
            }
            Fault::CrashAfter(left) if is_write => {
                *left -= 1;
                after = *left == 0;
            }
            Fault::AnswerLost(left) if is_write => {
                *left -= 1;
                lost = *left == 0;
            }
            _ => {}
        }
        if before || after {
            *fault = Fault::None;
        } else if lost {
            *fault = Fault::Outage;
        } else if blinds {
            *fault = Fault::Blind;
            inner.cut.send_modify(|count| *count += 1);
        }
    }
    if before {
        inner.crash.send(()).unwrap();
        std::future::pending::<()>().await;
    }
    if blinds {
        // Watches that are to break have broken before there is anything to see.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    if is_write {
        let call = (request.method().to_string(), request.uri().path().to_owned());
        inner.writes.lock().unwrap().push(call);
    }
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = format!("{}{path}", inner.upstream).parse().unwrap();
    parts.headers.remove("host");
    let user = inner.user.lock().unwrap().clone();
    if let Some(user) = &user {
        parts.headers.insert("impersonate-user", user.parse().unwrap());
        parts.headers.insert("impersonate-group", "system:authenticated".parse().unwrap());
    }
    let what = format!("{} {}", parts.method, parts.uri.path());
    let Ok(answer) = inner.client.request(Request::from_parts(parts, body)).await else { return unavailable() };
    if after {
        // Everything was done, and nobody hears of it.
        let _ = answer.into_body().collect().await;
        inner.crash.send(()).unwrap();
        return std::future::pending().await;
    }
    if blinds {
        inner.crash.send(()).unwrap();
    }
    if lost {
        let _ = answer.into_body().collect().await;
        inner.crash.send(()).unwrap();
        return unavailable();
    }
    let (parts, body) = answer.into_parts();
    if user.is_some() && parts.status == StatusCode::FORBIDDEN {
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let text = String::from_utf8_lossy(&body).into_owned();
        // An object in a namespace that goes is refused by admission.
        if !text.contains("because it is being terminated") {
            inner.refused.lock().unwrap().push(format!("{what}: {text}"));
        }
        return Response::from_parts(parts, Body::from(body));
    }
    let body = Body::new(body);
    if !is_watch {
        return Response::from_parts(parts, body);
    }
    Response::from_parts(parts, late(body, inner.cut.subscribe(), delay))
}

/// A watch whose events come later, until it is cut.
fn late(body: Body, cut: watch::Receiver<u32>, delay: Duration) -> Body {
    let frames = stream::unfold((body, cut, delay), |(mut body, mut cut, delay)| async move {
        let frame = tokio::select! { frame = body.frame() => frame?, _ = cut.changed() => return None };
        tokio::time::sleep(delay).await;
        let data = frame.map_err(axum::Error::new).map(|frame| frame.into_data().unwrap_or_default());
        Some((data, (body, cut, delay)))
    });
    Body::from_stream(frames)
}
