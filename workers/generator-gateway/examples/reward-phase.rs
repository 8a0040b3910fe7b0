//! 120 rewards against a model that takes 50 ms a call: answered and judged through the gateway as a job does it,
//! beside the same one call after the other. Both must give the same rewards. The ratio is of their times.

use s3_config::{Endpoint, GeneratorConfig};
use s3_rollout::{Ask, GeneratorPeer, Link, Scored, score_answers};
use s3_search::{Passage, Question};
use s3_telemetry::Shutdown;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const REWARDS: usize = 120;
const MODEL: Duration = Duration::from_millis(50);

/// Answers with one of the question's words, judges by the prompt's digest: the same prompt, the same reply.
async fn model(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = Vec::new();
    loop {
        let (end, length) = loop {
            if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
                let at = head.find("content-length:").map_or(head.len(), |at| at + 15);
                let length = head[at..].lines().next().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
                if bytes.len() >= end + 4 + length {
                    break (end + 4, length);
                }
            }
            let mut part = [0; 8192];
            let read = stream.read(&mut part).await?;
            if read == 0 {
                return Ok(());
            }
            bytes.extend_from_slice(&part[..read]);
        };
        let body = String::from_utf8_lossy(&bytes[end..end + length]).into_owned();
        bytes.drain(..end + length);
        let number = u8::from_str_radix(&s3_artifacts::digest_bytes(body.as_bytes())[..2], 16).unwrap_or(0);
        let said = match body.contains("yes or no?") {
            true if number.is_multiple_of(2) => "yes".to_owned(),
            true => "no".to_owned(),
            false => format!("town {}", number % 8),
        };
        tokio::time::sleep(MODEL).await;
        let reply = format!(
            r#"{{"choices":[{{"index":0,"message":{{"role":"assistant","content":"{said}"}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":9,"completion_tokens":2}}}}"#
        );
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", reply.len());
        stream.write_all((head + &reply).as_bytes()).await?;
    }
}

struct Gateway(Child);

impl Drop for Gateway {
    fn drop(&mut self) {
        // it may have ended by itself
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The gateway with a durable cache of its own.
async fn gateway(folder: &Path, name: &str, model: SocketAddr) -> Result<(Gateway, SocketAddr)> {
    let grpc = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let progress = folder.join(format!("{name}-progress.json"));
    let config = format!(
        "runtime:\n  name: gateway\n  stateDir: {0}\n  progress: {1}\ngrpc: {grpc}\ncache: {0}/{name}.redb\nallowAddresses: [127.0.0.0/8]\nproviders:\n- kind: OpenAi\n  name: up\n  baseUrl: http://{model}/v1\n  model: m\n",
        folder.display(),
        progress.display()
    );
    let file = folder.join(format!("{name}.yaml"));
    std::fs::write(&file, config)?;
    let program = std::env::current_exe()?.parent().and_then(Path::parent).map(|at| at.join("s3-generator-gateway"));
    let program: PathBuf = program.ok_or("no folder of binaries")?;
    let log = std::fs::File::create(folder.join(format!("{name}.log")))?;
    let child =
        Command::new(program).args(["serve", "--config"]).arg(&file).stdin(Stdio::null()).stderr(log).spawn()?;
    let mut child = Gateway(child);
    while !s3_telemetry::read_progress(&progress).is_some_and(|report| report.ready) {
        if let Some(status) = child.0.try_wait()? {
            return Err(format!("the gateway ended with {status}").into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok((child, grpc))
}

/// Scores all questions in parts of `chunk`; the rewards and the time they took.
async fn rewards(link: &Link, grpc: SocketAddr, chunk: usize) -> Result<(Vec<Scored>, Duration)> {
    let config = GeneratorConfig {
        endpoint: Endpoint { address: format!("http://{grpc}"), deadline_ms: 60_000, attempts: 1, tls: None },
        model: String::new(),
        template: String::new(),
        max_tokens: 8,
        max_answer_tokens: 16,
        passage_words: 0,
        judge: Some("up".into()),
        chunk,
        caller: "reward-phase".into(),
        token_file: None,
    };
    let link = link.clone();
    let work = move || -> Result<(Vec<Scored>, Duration)> {
        let peer = GeneratorPeer::connect(&link, &config, "")?;
        let questions: Vec<(Question, Vec<Passage>)> = (0..REWARDS)
            .map(|i| {
                let text = format!("Which town lies at mile {i}?");
                let answers = vec![format!("town {}", i % 8)];
                let question = Question { id: i.to_string(), dataset: "bench".into(), question: text, answers };
                let passage = Passage { id: "1".into(), title: "Road".into(), text: format!("Mile {i} of the road.") };
                (question, vec![passage])
            })
            .collect();
        let asks: Vec<Ask<'_>> = questions.iter().map(|(question, passages)| Ask { question, passages }).collect();
        let started = Instant::now();
        let scored = score_answers(&peer, &asks)?;
        Ok((scored, started.elapsed()))
    };
    tokio::task::spawn_blocking(work).await?
}

#[tokio::main]
async fn main() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("reward-phase-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(model(stream));
        }
    });
    let link = Link { handle: tokio::runtime::Handle::current(), shutdown: Shutdown::listen()? };
    let (_one, grpc) = gateway(&folder, "sequential", address).await?;
    let (expected, sequential) = rewards(&link, grpc, 1).await?;
    println!("one after the other: {REWARDS} rewards, {:.2} s", sequential.as_secs_f64());
    let mut times = Vec::new();
    for round in 0..5 {
        // a cache of its own each time, so that every answer is asked for
        let (_process, grpc) = gateway(&folder, &format!("round-{round}"), address).await?;
        let (scored, time) = rewards(&link, grpc, 64).await?;
        if scored != expected {
            return Err("the rewards differ from the sequential ones".into());
        }
        println!("in parts of 64: {:.3} s, the same rewards (bar 0.5 s)", time.as_secs_f64());
        times.push(time.as_secs_f64());
    }
    let right = expected.iter().filter(|scored| scored.verdict == s3_search::score::Verdict::Correct).count();
    println!("{right} of {REWARDS} rewards are 1; a call takes {} ms", MODEL.as_millis());
    times.sort_by(f64::total_cmp);
    std::fs::remove_dir_all(&folder)?;
    println!("ratio reward-phase {:.1}", sequential.as_secs_f64() / times[times.len() / 2]);
    Ok(())
}
