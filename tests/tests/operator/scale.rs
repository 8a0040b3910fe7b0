//! Many jobs at once: `make bench NAME=operator-scale` prints the table of docs/operator.md.

use crate::kubelet::Play;
use crate::scenario;
use crate::setup::Setup;
use futures_util::StreamExt as _;
use kube::api::{DynamicObject, ListParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt};
use s3_crds::Kind;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longest wait for all of them.
const LONGEST: Duration = Duration::from_secs(1200);

fn count(name: &str, default: usize) -> usize {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

fn job(number: usize) -> serde_json::Value {
    let mut job = scenario::job();
    job["metadata"]["name"] = json!(format!("job-{number}"));
    job
}

async fn create(api: &Api<DynamicObject>, numbers: std::ops::Range<usize>, at: &Mutex<HashMap<String, Instant>>) {
    futures_util::stream::iter(numbers)
        .for_each_concurrent(16, |number| async move {
            let object: DynamicObject = serde_json::from_value(job(number)).unwrap();
            at.lock().unwrap().insert(object.name_any(), Instant::now());
            api.create(&PostParams::default(), &object).await.unwrap();
        })
        .await;
}

/// Jobs whose conditions say something, of all.
async fn reconciled(api: &Api<DynamicObject>) -> usize {
    let mut done = 0;
    let mut params = ListParams::default().limit(1000);
    loop {
        let page = api.list(&params).await.unwrap();
        done += page.iter().filter(|job| job.data.pointer("/status/conditions").is_some()).count();
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return done,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes of work; make bench NAME=operator-scale"]
async fn many_jobs_are_reconciled() {
    let jobs = count("S3_SCALE_JOBS", 10_000);
    let mut setup = Setup::new("many").await;
    setup.own_pace = true;
    setup.start().await;
    let api = setup.resources(Kind::S3TrainingJob);
    let at = Mutex::default();
    let start = Instant::now();
    create(&api, 0..jobs, &at).await;
    let created = start.elapsed();
    while reconciled(&api).await < jobs {
        setup.runs(0).await;
        assert!(start.elapsed() < LONGEST, "{}", setup.tail());
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let reached = start.elapsed();
    let calls: u32 = setup.proxy.verbs().values().sum();
    let (memory, cpu) = setup.usage(0).await;
    println!("| jobs | created after s | reconciled after s | API calls a job | operator CPU s | resident MiB |");
    println!("|---|---|---|---|---|---|");
    println!(
        "| {jobs} | {:.1} | {:.1} | {:.2} | {cpu:.1} | {memory:.0} |",
        created.as_secs_f64(),
        reached.as_secs_f64(),
        f64::from(calls) / jobs as f64
    );
    setup.done().await;
}

/// CPU time (seconds) of the cluster's own servers so far, by name; of those that the test's own control plane runs.
fn servers() -> BTreeMap<String, f64> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../.s3/cluster/");
    let folder = format!("{folder}{}", std::env::var("S3_CLUSTER").unwrap_or_default());
    let mut all = BTreeMap::new();
    for file in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = file.file_name().into_string().unwrap_or_default();
        let (Some(name), Ok(text)) = (name.strip_suffix(".pid"), std::fs::read_to_string(file.path())) else {
            continue;
        };
        let pid = text.split_whitespace().next().unwrap_or_default();
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
        all.insert(name.to_owned(), ticks / 100.0);
    }
    all
}

/// When the first object of each job was seen.
type Seen = Arc<Mutex<HashMap<String, Instant>>>;

/// Follows all objects of a kind and notes when the first of each job came.
fn first_of(api: Api<DynamicObject>) -> (Seen, tokio::task::JoinHandle<()>) {
    let first = Seen::default();
    let seen = first.clone();
    let watching = tokio::spawn(async move {
        let mut events = watcher(api, watcher::Config::default()).default_backoff().touched_objects().boxed();
        while let Some(event) = events.next().await {
            let Ok(object) = event else { continue };
            if let Some(job) = object.labels().get("searchagent.dev/name") {
                seen.lock().unwrap().entry(job.clone()).or_insert_with(Instant::now);
            }
        }
    });
    (first, watching)
}

/// Times between two moments of all jobs that have both, ascending.
fn between(from: &HashMap<String, Instant>, to: &HashMap<String, Instant>) -> Vec<f64> {
    let waits = to.iter().filter_map(|(job, to)| Some(to.saturating_duration_since(*from.get(job)?).as_secs_f64()));
    let mut waits: Vec<f64> = waits.collect();
    waits.sort_by(f64::total_cmp);
    waits
}

fn quantile(waits: &[f64], share: f64) -> f64 {
    waits[((waits.len() - 1) as f64 * share) as usize]
}

/// Jobs that come all at once, or one after another with a pause; returns the 99th percentile of job to pod.
async fn looked_after(jobs: usize, pause: Duration) -> f64 {
    let mut setup = Setup::new("pods").await;
    setup.own_pace = true;
    setup.start().await;
    scenario::begin(&setup, Kind::RetrieverIndex).await;
    scenario::ended(&setup, Kind::RetrieverIndex).await;
    setup.kubelet.play("", Play::Run);
    let (batch, watching_jobs) = first_of(setup.api("batch/v1", "Job"));
    let (pods, watching_pods) = first_of(setup.api("v1", "Pod"));
    let at = Mutex::default();
    let api = setup.resources(Kind::S3TrainingJob);
    // The gateway that all share is there before the clock starts.
    create(&api, 0..1, &at).await;
    setup.until_reason(Kind::S3TrainingJob, "job-0", "BaselineReady", "Computing").await;
    let (_, before) = setup.usage(0).await;
    let (asked, busy) = (setup.proxy.verbs(), servers());
    let start = Instant::now();
    if pause.is_zero() {
        create(&api, 1..jobs, &at).await;
    } else {
        for number in 1..jobs {
            tokio::time::sleep((pause * u32::try_from(number).unwrap()).saturating_sub(start.elapsed())).await;
            create(&api, number..number + 1, &at).await;
        }
    }
    let created = start.elapsed();
    // The index has had a pod of its own.
    while pods.lock().unwrap().len() <= jobs {
        setup.runs(0).await;
        assert!(start.elapsed() < LONGEST, "{} of {jobs}\n{}", pods.lock().unwrap().len(), setup.tail());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let reached = start.elapsed();
    let (at, batch, pods) = (at.lock().unwrap().clone(), batch.lock().unwrap().clone(), pods.lock().unwrap().clone());
    let (ours, theirs, all) = (between(&at, &batch), between(&batch, &pods), between(&at, &pods));
    // Everything has been said, too.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (memory, cpu) = setup.usage(0).await;
    println!(
        "\n| jobs, a pod each | created after s | all pods after s | resource to Job p50, p99 s | Job to pod p50, p99 s | resource to pod p50, p99 s | operator CPU s | resident MiB |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let pair = |waits: &[f64]| format!("{:.2}, {:.2}", quantile(waits, 0.5), quantile(waits, 0.99));
    println!(
        "| {jobs} | {:.1} | {:.1} | {} | {} | {} | {:.1} | {memory:.0} |",
        created.as_secs_f64(),
        reached.as_secs_f64(),
        pair(&ours),
        pair(&theirs),
        pair(&all),
        cpu - before,
    );
    let mut calls: Vec<(f64, String)> = setup
        .proxy
        .verbs()
        .into_iter()
        .map(|(call, count)| {
            let count = count - asked.get(&call).copied().unwrap_or(0);
            (f64::from(count) / jobs as f64, format!("{} {}", call.0, call.1))
        })
        .filter(|(count, _)| *count >= 0.01)
        .collect();
    calls.sort_by(|a, b| b.0.total_cmp(&a.0));
    let calls: Vec<String> = calls.into_iter().map(|(count, call)| format!("{call} {count:.2}")).collect();
    let theirs: Vec<String> = servers()
        .into_iter()
        .map(|(name, now)| format!("{name} {:.1}", now - busy.get(&name).unwrap_or(&0.0)))
        .collect();
    println!("CPU s of the cluster's own servers: {}", theirs.join(", "));
    println!("calls a job: {}", calls.join(", "));
    watching_jobs.abort();
    watching_pods.abort();
    setup.done().await;
    quantile(&all, 0.99)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes of work; make bench NAME=operator-scale"]
async fn many_pods_are_looked_after() {
    let jobs = count("S3_SCALE_PODS", 500);
    let pause = Duration::from_millis(count("S3_SCALE_PAUSE_MS", 200) as u64);
    println!("one job each {} ms:", pause.as_millis());
    let p99 = looked_after(jobs, pause).await;
    // Here the servers of the cluster have more to do than the machine can within a second.
    println!("all at once:");
    looked_after(jobs, Duration::ZERO).await;
    println!("ratio operator-scale {:.2}", 1.0 / p99);
}
