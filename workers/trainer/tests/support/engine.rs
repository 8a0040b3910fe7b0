//! A server of episodes over real HTTP and a real model, with vLLM's requests, replies and errors (those of 0.32.0), and
//! what befalls such servers.

use super::World;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use s3_config::{AdapterSpec, DTypeKind, DeviceKind, ModelSpec};
use s3_model::{Decoder, GenerateRequest, SampleKey, Sampling, TokenizerFile, generate};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// One server.
pub struct Server {
    /// Up to and with `/v1`.
    pub address: String,
    pub state: Arc<Inside>,
    _runtime: tokio::runtime::Runtime,
}

pub struct Inside {
    model: PathBuf,
    loaded: Mutex<BTreeMap<String, Arc<(Decoder, TokenizerFile)>>>,
    /// All names that were ever loaded, in order.
    pub names: Mutex<Vec<String>>,
    /// Most policies that were loaded at once.
    pub most: AtomicUsize,
    pub turns: AtomicUsize,
    /// One turn in so many is refused as by an overloaded server; 0 none.
    pub failing: AtomicUsize,
    /// After so many turns, once, all policies are forgotten, as by a restart; 0 never.
    pub forgets: AtomicUsize,
    /// Answers by the first policy, whatever is asked: what a trainer must notice.
    pub stale: AtomicBool,
    /// Takes no further policy, as without `--enable-lora`.
    pub closed: AtomicBool,
    pub key: Mutex<Option<String>>,
}

fn error(status: u16, kind: &str, message: &str) -> Response {
    let body = json!({"error": {"message": message, "type": kind, "param": null, "code": status}});
    (StatusCode::from_u16(status).unwrap(), axum::Json(body)).into_response()
}

impl Inside {
    fn admits(&self, headers: &HeaderMap) -> bool {
        let wanted = self.key.lock().unwrap().as_ref().map(|key| format!("Bearer {key}"));
        wanted.is_none_or(|wanted| headers.get("authorization").is_some_and(|value| value == wanted.as_str()))
    }

    fn load(&self, body: &Value) -> Response {
        let (name, path) = (body["lora_name"].as_str().unwrap(), PathBuf::from(body["lora_path"].as_str().unwrap()));
        if self.loaded.lock().unwrap().contains_key(name) {
            let how = "If you want to load the adapter in place, set 'load_inplace' to True.";
            let message = format!("The lora adapter '{name}' has already been loaded. {how}");
            return error(400, "InvalidUserInput", &message);
        }
        if !path.join("adapter_config.json").exists() {
            return error(404, "NotFoundError", &format!("Loading lora {name} failed: No adapter found for <path>"));
        }
        let mut spec = ModelSpec::at(self.model.clone(), DeviceKind::Cpu, DTypeKind::F32);
        spec.adapter = Some(AdapterSpec::at(path));
        let policy = Arc::new(Decoder::load(&spec).unwrap());
        let mut loaded = self.loaded.lock().unwrap();
        loaded.insert(name.to_owned(), policy);
        self.most.fetch_max(loaded.len(), Ordering::SeqCst);
        self.names.lock().unwrap().push(name.to_owned());
        format!("Success: LoRA adapter '{name}' added successfully.").into_response()
    }

    fn unload(&self, body: &Value) -> Response {
        let name = body["lora_name"].as_str().unwrap();
        if self.stale.load(Ordering::SeqCst) {
            return format!("Success: LoRA adapter '{name}' removed successfully.").into_response();
        }
        match self.loaded.lock().unwrap().remove(name) {
            Some(_) => format!("Success: LoRA adapter '{name}' removed successfully.").into_response(),
            None => error(404, "NotFoundError", &format!("The lora adapter '{name}' cannot be found.")),
        }
    }

    fn complete(&self, body: &Value) -> Response {
        let turn = self.turns.fetch_add(1, Ordering::SeqCst) + 1;
        let failing = self.failing.load(Ordering::SeqCst);
        if failing > 0 && turn.is_multiple_of(failing) {
            return error(503, "ServiceUnavailable", "overloaded for the test");
        }
        if turn == self.forgets.load(Ordering::SeqCst) {
            self.loaded.lock().unwrap().clear();
        }
        let asked = body["model"].as_str().unwrap();
        let first = self.names.lock().unwrap().first().cloned();
        let name = first.filter(|_| self.stale.load(Ordering::SeqCst)).unwrap_or_else(|| asked.to_owned());
        let Some(policy) = self.loaded.lock().unwrap().get(&name).cloned() else {
            let message = format!("The model `{asked}` does not exist. Valid aliases: base.");
            return error(404, "NotFoundError", &message);
        };
        let (decoder, tokenizer) = policy.as_ref();
        let numbers = |key: &str| -> Vec<u32> {
            body[key].as_array().unwrap().iter().map(|n| u32::try_from(n.as_u64().unwrap()).unwrap()).collect()
        };
        let (prompt, ends) = (numbers("prompt"), numbers("stop_token_ids"));
        let stop: Vec<&str> = body["stop"].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect();
        let max_new_tokens = usize::try_from(body["max_tokens"].as_u64().unwrap()).unwrap();
        let seed = body["seed"].as_u64().unwrap();
        let sampling = Sampling {
            temperature: body["temperature"].as_f64().unwrap() as f32,
            top_p: body["top_p"].as_f64().unwrap() as f32,
        };
        // as vLLM does, wherever in the text it stands
        let at = |tokens: &[u32]| {
            let text = tokenizer.decode(tokens).unwrap();
            stop.iter().find(|stop| text.contains(**stop)).copied()
        };
        let mut over = |_: usize, tokens: &[u32]| ends.contains(tokens.last().unwrap()) || at(tokens).is_some();
        let key = |_: usize, token: u32| SampleKey { seed, step: 0, question: "", sample: 0, turn: 0, token };
        let mut cache = decoder.cache(1).unwrap();
        let requests = [GenerateRequest { row: 0, prompt, max_new_tokens }];
        let mut said = generate(decoder, &mut cache, &requests, sampling, &key, &mut over).unwrap();
        let said = said.remove(0);
        let stopped = at(&said.tokens);
        let ended = said.tokens.last().is_some_and(|last| ends.contains(last));
        let reason = if ended || stopped.is_some() { "stop" } else { "length" };
        let choice = json!({"index": 0, "text": tokenizer.decode(&said.tokens).unwrap(), "token_ids": said.tokens,
            "logprobs": {"token_logprobs": said.logprobs}, "finish_reason": reason,
            "stop_reason": if ended { Value::Null } else { json!(stopped) }});
        axum::Json(json!({"id": "cmpl-1", "object": "text_completion", "model": asked, "choices": [choice]}))
            .into_response()
    }
}

async fn answer(
    State(inside): State<Arc<Inside>>,
    uri: axum::http::Uri,
    headers: HeaderMap,
    axum::Json(body): axum::Json<Value>,
) -> Response {
    if !inside.admits(&headers) {
        return error(401, "Unauthorized", "Unauthorized");
    }
    let work = move || match uri.path() {
        "/v1/completions" => inside.complete(&body),
        _ if inside.closed.load(Ordering::SeqCst) => {
            (StatusCode::NOT_FOUND, r#"{"detail":"Not Found"}"#).into_response()
        }
        "/v1/load_lora_adapter" => inside.load(&body),
        _ => inside.unload(&body),
    };
    tokio::task::spawn_blocking(work).await.unwrap()
}

impl Server {
    pub fn start(world: &World) -> Self {
        let state = Arc::new(Inside {
            model: world.dir.path().join("model"),
            loaded: Mutex::default(),
            names: Mutex::default(),
            most: AtomicUsize::default(),
            turns: AtomicUsize::default(),
            failing: AtomicUsize::default(),
            forgets: AtomicUsize::default(),
            stale: AtomicBool::default(),
            closed: AtomicBool::default(),
            key: Mutex::default(),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = format!("http://{}/v1", listener.local_addr().unwrap());
        let paths = ["/v1/completions", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"];
        let router = paths.into_iter().fold(Router::new(), |router, path| router.route(path, post(answer)));
        let router = router.with_state(state.clone());
        runtime.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, state, _runtime: runtime }
    }
}
