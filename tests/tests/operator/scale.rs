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
use std::collections::HashMap;
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

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes of work; make bench NAME=operator-scale"]
async fn many_pods_are_looked_after() {
    let jobs = count("S3_SCALE_PODS", 500);
    let mut setup = Setup::new("pods").await;
    setup.own_pace = true;
    setup.start().await;
    scenario::begin(&setup, Kind::RetrieverIndex).await;
    scenario::ended(&setup, Kind::RetrieverIndex).await;
    setup.kubelet.play("", Play::Run);

    let first = Arc::<Mutex<HashMap<String, Instant>>>::default();
    let (pods, seen) = (setup.api("v1", "Pod"), first.clone());
    let watching = tokio::spawn(async move {
        let mut events = watcher(pods, watcher::Config::default()).default_backoff().touched_objects().boxed();
        while let Some(event) = events.next().await {
            let Ok(pod) = event else { continue };
            if let Some(job) = pod.labels().get("searchagent.dev/name") {
                seen.lock().unwrap().entry(job.clone()).or_insert_with(Instant::now);
            }
        }
    });
    let at = Mutex::default();
    let api = setup.resources(Kind::S3TrainingJob);
    // The gateway that all share is there before the clock starts.
    create(&api, 0..1, &at).await;
    setup.until_reason(Kind::S3TrainingJob, "job-0", "BaselineReady", "Computing").await;
    let start = Instant::now();
    create(&api, 1..jobs, &at).await;
    while first.lock().unwrap().len() <= jobs {
        setup.runs(0).await;
        assert!(start.elapsed() < LONGEST, "{} of {jobs}\n{}", first.lock().unwrap().len(), setup.tail());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let reached = start.elapsed();
    let at = at.lock().unwrap().clone();
    let mut waits: Vec<f64> = first
        .lock()
        .unwrap()
        .iter()
        .filter_map(|(job, seen)| Some(seen.duration_since(*at.get(job)?).as_secs_f64()))
        .collect();
    waits.sort_by(f64::total_cmp);
    let quantile = |share: f64| waits[((waits.len() - 1) as f64 * share) as usize];
    let (memory, cpu) = setup.usage(0).await;
    println!("| jobs with a pod each | all pods after s | job to pod p50 s | p99 s | operator CPU s | resident MiB |");
    println!("|---|---|---|---|---|---|");
    println!(
        "| {jobs} | {:.1} | {:.2} | {:.2} | {cpu:.1} | {memory:.0} |",
        reached.as_secs_f64(),
        quantile(0.5),
        quantile(0.99)
    );
    println!("ratio operator-scale {:.2}", 1.0 / quantile(0.99));
    watching.abort();
    setup.done().await;
}
