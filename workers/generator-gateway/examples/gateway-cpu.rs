//! CPU per request, added latency and memory of the gateway beside other gateways, in one run on loopback.
//!
//! One thread plays the model server (it answers at once), one the clients (closed loop, keep-alive). All peers
//! get the same requests, each with another prompt, in turns, so that a busy machine is busy for all of them.
//! Ours runs with everything armed: tokens of callers, rates, a budget, cache key and look-up, retries, breaker,
//! metrics. It ends with the ratio of vllm-router's CPU per request to ours.
//!
//! `S3_GATEWAY` names the program; without it that of the same build is taken. With `alone`, ours runs without peers: the load
//! that `tuned.sh` counts.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const ROUNDS: usize = 7;
const CLIENTS: usize = 32;
const CALLER_TOKEN: &str = "token-of-the-benchmark-job";
const MASTER_KEY: &str = "sk-92df7ad22d7f17a5ec5134f5c407b1b41aa86a3f3ba128e0";
const REPLY: &str = r#"{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"up","choices":[{"index":0,"message":{"role":"assistant","content":"Paris is the capital of France."},"finish_reason":"stop"}],"usage":{"prompt_tokens":420,"completion_tokens":8,"total_tokens":428}}"#;

const TOKENIZER: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,"pre_tokenizer":null,"post_processor":null,"decoder":null,"model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}"#;

/// Reads one request: head and body length consumed; none at the end of the connection.
async fn read_request(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let length = content_length(&head).unwrap_or(0);
            if bytes.len() >= end + 4 + length {
                let body = bytes[end + 4..end + 4 + length].to_vec();
                bytes.drain(..end + 4 + length);
                return Some((head, body));
            }
        }
        let mut part = vec![0; 16384];
        let read = stream.read(&mut part).await.ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&part[..read]);
    }
}

fn content_length(head: &str) -> Option<usize> {
    let at = head.to_ascii_lowercase().find("content-length:")?;
    head[at + 15..].lines().next()?.trim().parse().ok()
}

/// The model server: answers at once, streams where that is asked for.
async fn model(mut stream: TcpStream, folder: Arc<PathBuf>) {
    let _ = stream.set_nodelay(true);
    let mut bytes = Vec::new();
    while let Some((head, body)) = read_request(&mut stream, &mut bytes).await {
        let path = head.split(' ').nth(1).unwrap_or("");
        let described =
            format!(r#"{{"model_path":"{0}","served_model_name":"up","is_generation":true}}"#, folder.display());
        let text = if path.ends_with("/models") {
            r#"{"object":"list","data":[{"id":"up","object":"model","owned_by":"x"}]}"#
        } else if path.contains("model_info") || path.contains("server_info") {
            &described
        } else if path.contains("completions") {
            REPLY
        } else {
            "{}"
        };
        let streams = body.windows(13).any(|w| w == b"\"stream\":true");
        let reply = if streams {
            let delta = r#"data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"up","choices":[{"index":0,"delta":{"content":"word "},"finish_reason":null}]}"#;
            let end = r#"data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"up","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
            let text = format!("{}{end}\n\ndata: [DONE]\n\n", format!("{delta}\n\n").repeat(8));
            format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\n{text}",
                text.len()
            )
        } else {
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}", text.len())
        };
        if stream.write_all(reply.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Starts a thread with the model server.
fn serve_model(folder: &Path) -> Result<SocketAddr> {
    let folder = Arc::new(folder.to_owned());
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            let Ok(listener) = TcpListener::from_std(listener) else { return };
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(model(stream, folder.clone()));
            }
        });
    });
    Ok(address)
}

/// A request whose prompt has a number of ten digits at `at`.
#[derive(Clone)]
struct Template {
    bytes: Vec<u8>,
    at: usize,
}

fn template(port: u16, headers: &[(String, String)], stream: bool) -> Template {
    let passages = "[1] Paris: Paris is the capital and most populous city of France, on the river Seine. ".repeat(18);
    let stream = if stream { "\"stream\":true," } else { "" };
    let body = format!(
        r#"{{{stream}"model":"up","messages":[{{"role":"system","content":"Answer the question in a few words."}},{{"role":"user","content":"{passages} Question 0000000000: what is the capital of France?"}}],"temperature":0,"max_tokens":32}}"#
    );
    let headers = headers.iter().fold(String::new(), |lines, (name, value)| lines + name + ": " + value + "\r\n");
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    let at = head.len() + body.find("0000000000").unwrap_or(0);
    Template { bytes: (head + &body).into_bytes(), at }
}

#[derive(Default)]
struct Load {
    done: usize,
    bad: usize,
    micros: Vec<f64>,
    seconds: f64,
}

impl Load {
    fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.micros.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(((sorted.len().max(1) - 1) as f64 * q) as usize).copied().unwrap_or(f64::NAN)
    }
}

/// Whether a whole reply of status 200 lies in `bytes`; and whether its first data does.
fn complete(bytes: &[u8]) -> (bool, bool) {
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { return (false, false) };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let body = &bytes[end + 4..];
    let first = !body.is_empty();
    match content_length(&head) {
        Some(length) => (body.len() >= length, first),
        None => (body.ends_with(b"0\r\n\r\n"), first),
    }
}

/// Clients in a closed loop until `numbers` or the time run out.
fn load(port: u16, template: &Template, clients: usize, time: Duration, numbers: &Arc<AtomicU64>, last: u64) -> Load {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Load::default();
    };
    runtime.block_on(async {
        let started = Instant::now();
        let end = started + time;
        let mut set = tokio::task::JoinSet::new();
        for _ in 0..clients {
            let (mut request, numbers) = (template.clone(), numbers.clone());
            set.spawn(async move {
                let mut own = Load::default();
                let mut connection: Option<TcpStream> = None;
                let mut buffer = vec![0; 65536];
                while Instant::now() < end {
                    let number = numbers.fetch_add(1, Ordering::Relaxed);
                    if number >= last {
                        break;
                    }
                    request.bytes[request.at..request.at + 10].copy_from_slice(format!("{number:010}").as_bytes());
                    let begun = Instant::now();
                    if connection.is_none() {
                        connection = TcpStream::connect(("127.0.0.1", port)).await.ok();
                        let _ = connection.as_ref().map(|stream| stream.set_nodelay(true));
                    }
                    let Some(stream) = &mut connection else {
                        own.bad += 1;
                        continue;
                    };
                    let mut filled = 0;
                    let mut first = None;
                    let fine = stream.write_all(&request.bytes).await.is_ok()
                        && loop {
                            let Ok(read) = stream.read(&mut buffer[filled..]).await else { break false };
                            filled += read;
                            let (whole, begins) = complete(&buffer[..filled]);
                            if begins {
                                first.get_or_insert_with(Instant::now);
                            }
                            if whole {
                                break buffer.starts_with(b"HTTP/1.1 200");
                            }
                            if read == 0 || filled == buffer.len() {
                                break false;
                            }
                        };
                    if fine {
                        own.done += 1;
                        own.micros.push((first.unwrap_or(begun) - begun).as_secs_f64() * 1e6);
                    } else {
                        own.bad += 1;
                        connection = None;
                    }
                }
                own
            });
        }
        let mut all = Load::default();
        while let Some(Ok(own)) = set.join_next().await {
            all.done += own.done;
            all.bad += own.bad;
            all.micros.extend(own.micros);
        }
        all.seconds = started.elapsed().as_secs_f64();
        all
    })
}

/// A process and its descendants: CPU seconds so far and resident MB.
fn consumption(root: u32) -> (f64, f64) {
    let mut parents: BTreeMap<u32, (u32, f64, f64)> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((_, rest)) = stat.rsplit_once(')') else { continue };
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
        // clock ticks are hundredths of a second, pages 4 KiB, on every Linux this runs on
        parents.insert(id, (number(1) as u32, (number(11) + number(12)) / 100.0, number(21) * 4096.0 / 1e6));
    }
    let belongs = |mut id: u32| {
        while id > 1 {
            if id == root {
                return true;
            }
            id = parents.get(&id).map_or(0, |(parent, ..)| *parent);
        }
        false
    };
    let own = parents.iter().filter(|(id, _)| belongs(**id));
    own.fold((0.0, 0.0), |sum, (_, (_, cpu, memory))| (sum.0 + cpu, sum.1 + memory))
}

struct Gateway {
    name: String,
    version: String,
    port: u16,
    headers: Vec<(String, String)>,
    process: Option<Child>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // the whole group, as a launcher may have children of its own
            let group = format!("-{}", process.id());
            let _ = Command::new("kill").args(["-TERM", "--", &group]).status();
            std::thread::sleep(Duration::from_millis(300));
            let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
            let _ = process.wait();
        }
    }
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn start(
    name: &str,
    version: String,
    port: u16,
    headers: Vec<(String, String)>,
    mut command: Command,
    log: &Path,
) -> Result<Option<Gateway>> {
    use std::os::unix::process::CommandExt;
    let file = std::fs::File::create(log)?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
    let process = command.spawn()?;
    let mut gateway = Gateway { name: name.to_owned(), version, port, headers, process: Some(process) };
    let probe = template(port, &gateway.headers, false);
    let until = Instant::now() + Duration::from_secs(180);
    while Instant::now() < until {
        let numbers = Arc::new(AtomicU64::new(9_000_000_000));
        if load(port, &probe, 1, Duration::from_secs(20), &numbers, 9_000_000_001).done == 1 {
            return Ok(Some(gateway));
        }
        if gateway.process.as_mut().is_some_and(|process| matches!(process.try_wait(), Ok(Some(_)))) {
            break;
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    let tail = std::fs::read_to_string(log)?;
    eprintln!("{name} does not answer; the end of its log: {}", &tail[tail.len().saturating_sub(600)..]);
    Ok(None)
}

/// Ours: everything armed; `cache` names the file of a durable cache.
fn ours(name: &str, model: SocketAddr, folder: &Path, cache: Option<&Path>) -> Result<Option<Gateway>> {
    let (http, grpc) = (free_port()?, free_port()?);
    let tokens = folder.join(format!("{name}-tokens"));
    std::fs::create_dir_all(&tokens)?;
    std::fs::write(tokens.join("bench"), CALLER_TOKEN)?;
    std::fs::write(folder.join("key"), "sk-upstream-key")?;
    let cache = cache.map(|path| format!("cache: {}\n", path.display())).unwrap_or_default();
    let config = format!(
        "runtime:\n  name: gateway\n  stateDir: {0}\ngrpc: 127.0.0.1:{grpc}\nhttp: 127.0.0.1:{http}\n{cache}callerTokens: {1}\nallowAddresses: [127.0.0.0/8]\nproviders:\n- kind: OpenAi\n  name: up\n  baseUrl: http://{model}/v1\n  model: up\n  apiKeyFile: {0}/key\n  limits:\n    concurrency: 64\n    attempts: 6\n    requestsPerMinute: 4000000000\n    tokensPerMinute: 4000000000000\nbudgets:\n- caller: bench\n  budget: {{tokens: 9000000000000, cost: 1000000000, promptPrice: 0.1, answerPrice: 0.4}}\n",
        folder.display(),
        tokens.display()
    );
    let path = folder.join(format!("{name}.yaml"));
    std::fs::write(&path, config)?;
    let own = || std::env::current_exe().ok()?.parent()?.parent().map(|folder| folder.join("s3-generator-gateway"));
    let program = std::env::var_os("S3_GATEWAY").map(PathBuf::from).or_else(own);
    let program = program
        .filter(|program| program.exists())
        .ok_or("build the binary first: cargo build --release -p s3-generator-gateway")?;
    let mut command = Command::new(program);
    command.args(["serve", "--config"]).arg(&path);
    let headers = vec![("authorization".to_owned(), format!("Bearer {CALLER_TOKEN}"))];
    start(name, env!("CARGO_PKG_VERSION").to_owned(), http, headers, command, &folder.join(format!("{name}.log")))
}

fn module_version(python: &str, package: &str) -> String {
    let code = format!("import importlib.metadata as m; print(m.version('{package}'))");
    let output = Command::new(python).args(["-c", &code]).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

fn peers(model: SocketAddr, folder: &Path) -> Result<Vec<Gateway>> {
    // fewer when some are named, for a quick look
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let names: Vec<&str> = ["nginx", "vllm-router", "sglang-router", "litellm"]
        .into_iter()
        .filter(|name| wanted.is_empty() || wanted.iter().any(|one| one == name))
        .collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let output = Command::new("tests/tools/peers.sh").args(&names).stderr(Stdio::inherit()).output()?;
    let text = String::from_utf8(output.stdout)?;
    let paths: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let mut found = Vec::new();
    for name in names {
        let Some(path) = paths.get(name) else { continue };
        let port = free_port()?;
        let mut headers = Vec::new();
        let mut command = Command::new(path);
        let version;
        match name {
            "nginx" => {
                let at = folder.join("nginx");
                std::fs::create_dir_all(at.join("logs"))?;
                let config = format!(
                    "worker_processes 1; daemon off; pid {0}/pid; error_log {0}/error.log;\nevents {{ worker_connections 4096; }}\nhttp {{ access_log off; client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;\nupstream model {{ server {model}; keepalive 128; keepalive_requests 100000000; }}\nserver {{ listen 127.0.0.1:{port}; keepalive_requests 100000000; location / {{ proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_buffering on; }} }} }}\n",
                    at.display()
                );
                std::fs::write(at.join("nginx.conf"), config)?;
                command.args(["-p"]).arg(&at).arg("-c").arg(at.join("nginx.conf"));
                let output = Command::new(path).arg("-v").output()?;
                version = String::from_utf8_lossy(&output.stderr).trim().rsplit('/').next().unwrap_or("").to_owned();
            }
            "litellm" => {
                let config = format!(
                    "model_list:\n- model_name: up\n  litellm_params: {{model: openai/up, api_base: 'http://{model}/v1', api_key: sk-upstream-key}}\ngeneral_settings: {{master_key: {MASTER_KEY}}}\nlitellm_settings: {{telemetry: false}}\n"
                );
                std::fs::write(folder.join("litellm.yaml"), config)?;
                let program = PathBuf::from(path).with_file_name("litellm");
                command = Command::new(program);
                command.args(["--host", "127.0.0.1", "--num_workers", "1", "--port", &port.to_string(), "--config"]);
                command.arg(folder.join("litellm.yaml"));
                command.envs([
                    ("LITELLM_LOCAL_MODEL_COST_MAP", "True"),
                    ("DISABLE_ADMIN_UI", "True"),
                    ("NO_PROXY", "*"),
                ]);
                headers.push(("authorization".to_owned(), format!("Bearer {MASTER_KEY}")));
                version = module_version(path, "litellm");
            }
            router => {
                let module = router.replace('-', "_");
                command.args([
                    "-m",
                    &format!("{module}.launch_router"),
                    "--host",
                    "127.0.0.1",
                    "--policy",
                    "round_robin",
                ]);
                command.args(["--port", &port.to_string(), "--worker-urls", &format!("http://{model}")]);
                command.args(["--prometheus-port", &free_port()?.to_string()]);
                if router == "sglang-router" {
                    // it wants a tokenizer even where it only forwards, and would fetch one from a hub
                    std::fs::write(folder.join("tokenizer.json"), TOKENIZER)?;
                    command.args(["--log-level", "error", "--model-path"]).arg(folder);
                }
                version = module_version(path, router);
            }
        }
        let log = folder.join(format!("{name}.log"));
        found.extend(start(name, version, port, headers, command, &log)?);
    }
    Ok(found)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// CPU microseconds of a process a request, for `count` requests by many clients.
fn cpu_per_request(
    gateway: &Gateway,
    clients: usize,
    time: Duration,
    numbers: &Arc<AtomicU64>,
    last: u64,
    stream: bool,
) -> (f64, Load) {
    let id = gateway.process.as_ref().map_or(0, Child::id);
    let template = template(gateway.port, &gateway.headers, stream);
    let before = consumption(id).0;
    let load = load(gateway.port, &template, clients, time, numbers, last);
    let used = consumption(id).0 - before;
    (used * 1e6 / load.done.max(1) as f64, load)
}

fn main() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("gateway-cpu-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let outcome = measure(&folder);
    // the logs of a failed run are worth keeping
    if outcome.is_ok() {
        std::fs::remove_dir_all(&folder)?;
    }
    outcome
}

fn measure(folder: &Path) -> Result<()> {
    let model = serve_model(folder)?;
    let numbers = Arc::new(AtomicU64::new(0));
    let endless = u64::MAX;
    let direct =
        Gateway { name: "direct".into(), version: String::new(), port: model.port(), headers: vec![], process: None };
    let armed = ours("ours", model, folder, None)?.ok_or("our gateway does not start")?;
    let file = folder.join("answers.redb");
    let durable = ours("ours-durable", model, folder, Some(&file))?.ok_or("our gateway does not start")?;
    let mut all = vec![direct, armed, durable];
    all.extend(peers(model, folder)?);
    println!(
        "1 model thread, 1 client thread, {CLIENTS} clients, another prompt of 1.8 KB each request, {ROUNDS} rounds in turns"
    );
    // warm up
    for gateway in &all {
        cpu_per_request(gateway, CLIENTS, Duration::from_millis(700), &numbers, endless, false);
    }
    let mut rows: Vec<[Vec<f64>; 7]> = (0..all.len()).map(|_| Default::default()).collect();
    for round in 0..ROUNDS {
        for (gateway, row) in all.iter().zip(&mut rows) {
            let (cpu, many) = cpu_per_request(gateway, CLIENTS, Duration::from_secs(3), &numbers, endless, false);
            let (_, single) = cpu_per_request(gateway, 1, Duration::from_secs(1), &numbers, endless, false);
            let (stream_cpu, streamed) = cpu_per_request(gateway, 1, Duration::from_secs(1), &numbers, endless, true);
            if many.bad > 0 || single.bad > 0 {
                eprintln!("{}: {} of {} requests failed", gateway.name, many.bad + single.bad, many.done + single.done);
            }
            let figures = [
                cpu,
                many.done as f64 / many.seconds,
                many.quantile(0.5),
                many.quantile(0.99),
                single.quantile(0.5),
                streamed.quantile(0.5),
                stream_cpu,
            ];
            for (values, figure) in row.iter_mut().zip(figures) {
                values.push(figure);
            }
            print!("\rround {} of {ROUNDS}: {:<16}", round + 1, gateway.name);
            std::io::stdout().flush()?;
        }
    }
    println!(
        "\r{:<14} {:>9} {:>10} {:>9} {:>9} {:>9} {:>10} {:>10} {:>10} {:>7}",
        "", "version", "CPU us/req", "spread", "req/s", "p50 us", "p99 us", "p50 us c=1", "first ev.", "RSS MB"
    );
    let mut cpu = BTreeMap::new();
    for (gateway, row) in all.iter().zip(&mut rows) {
        let spread = row[0].iter().copied().fold(0.0, f64::max) - row[0].iter().copied().fold(f64::MAX, f64::min);
        let memory = gateway.process.as_ref().map_or(0.0, |process| consumption(process.id()).1);
        let [per, rate, half, tail, single, first, _] = row.each_mut().map(|values| median(values));
        println!(
            "{:<14} {:>9} {per:>10.1} {spread:>9.1} {rate:>9.0} {half:>9.0} {tail:>9.0} {single:>10.0} {first:>10.0} {memory:>7.0}",
            gateway.name, gateway.version
        );
        cpu.insert(gateway.name.clone(), (per, row[0].clone()));
    }
    hits(&mut all, model, folder, &file)?;
    if std::env::args().nth(1).as_deref() == Some("alone") {
        return Ok(());
    }
    let (mine, theirs) = (&cpu["ours"], cpu.get("vllm-router").ok_or("vllm-router could not be measured")?);
    for (name, (per, _)) in &cpu {
        println!("{name}: {:.2} times our CPU per request", per / mine.0);
    }
    let mut ratios: Vec<f64> = theirs.1.iter().zip(&mine.1).map(|(theirs, ours)| theirs / ours).collect();
    println!("ratio gateway-cpu {:.2}", median(&mut ratios));
    Ok(())
}

/// CPU of answers from the cache: from memory, and read from the file by a process that has just started.
fn hits(all: &mut [Gateway], model: SocketAddr, folder: &Path, file: &Path) -> Result<()> {
    const KNOWN: u64 = 40_000;
    let first = 5_000_000_000;
    let memory = {
        let ours = &all[1];
        cpu_per_request(ours, CLIENTS, Duration::from_secs(60), &Arc::new(AtomicU64::new(first)), first + KNOWN, false);
        let again = Arc::new(AtomicU64::new(first));
        cpu_per_request(ours, CLIENTS, Duration::from_secs(60), &again, first + KNOWN, false).0
    };
    let filled = Arc::new(AtomicU64::new(first));
    cpu_per_request(&all[2], CLIENTS, Duration::from_secs(120), &filled, first + KNOWN, false);
    // a fresh process has nothing in memory
    drop(all[2].process.take().map(|process| Gateway {
        name: String::new(),
        version: String::new(),
        port: 0,
        headers: vec![],
        process: Some(process),
    }));
    let fresh = ours("ours-again", model, folder, Some(file))?.ok_or("our gateway does not start again")?;
    let read = Arc::new(AtomicU64::new(first));
    let (durable, load) = cpu_per_request(&fresh, CLIENTS, Duration::from_secs(60), &read, first + KNOWN, false);
    println!(
        "cache hit: {memory:.1} us CPU from memory (bar 20), {durable:.1} us from the file (bar 60; {} answers)",
        load.done
    );
    Ok(())
}
