//! Debian's Prometheus beside the node, scraping every pod that asks to be scraped.
//!
//! It comes without Kubernetes discovery, so a thread writes what the annotations of the pods say into a file.

use crate::cluster::{kubectl, wait};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const ADDRESS: &str = "127.0.0.1:9090";
/// Seconds after which a pod must have been found and scraped: discovery and two scrapes, twice.
const SCRAPED_AFTER: i64 = 10;

/// A running server.
pub struct Prometheus {
    child: Child,
    folder: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    finder: Option<std::thread::JoinHandle<()>>,
    started: u64,
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// The pods of some namespaces that have an address and the annotations.
fn pods(namespaces: &[String]) -> Vec<Value> {
    let list: Value = serde_json::from_str(&kubectl(&["get", "pods", "--all-namespaces", "-o", "json"])).unwrap();
    let of =
        |pod: &Value| pod["metadata"]["namespace"].as_str().is_some_and(|name| namespaces.iter().any(|n| n == name));
    let asks = |pod: &Value| pod["metadata"]["annotations"]["prometheus.io/scrape"] == "true";
    list["items"].as_array().unwrap().iter().filter(|pod| of(pod) && asks(pod)).cloned().collect()
}

fn targets(namespaces: &[String]) -> Value {
    let running = pods(namespaces).into_iter().filter(|pod| pod["status"]["phase"] == "Running");
    let target = |pod: Value| {
        let notes = &pod["metadata"]["annotations"];
        let address = format!("{}:{}", pod["status"]["podIP"].as_str()?, notes["prometheus.io/port"].as_str()?);
        let (namespace, name) = (&pod["metadata"]["namespace"], &pod["metadata"]["name"]);
        Some(json!({"targets": [address], "labels": {"namespace": namespace, "pod": name}}))
    };
    running.filter_map(target).collect()
}

impl Prometheus {
    /// Starts it; it scrapes every two seconds.
    pub fn start(namespaces: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("targets.json");
        std::fs::write(&file, "[]").unwrap();
        let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/s3-operator/files/alerts.yaml");
        let config = json!({
            "global": {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "5s"},
            "rule_files": [rules],
            "scrape_configs": [{"job_name": "pods", "file_sd_configs": [{"files": [file], "refresh_interval": "1s"}]}],
        });
        // JSON is YAML
        std::fs::write(folder.path().join("prometheus.yml"), config.to_string()).unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", folder.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={ADDRESS}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("prometheus; tests/cluster/prepare.sh --node unpacks it");
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, owned) = (stop.clone(), namespaces.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        let finder = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                let temporary = file.with_extension("new");
                std::fs::write(&temporary, targets(&owned).to_string()).unwrap();
                std::fs::rename(&temporary, &file).unwrap();
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        let server = Self { child, folder, stop, finder: Some(finder), started: now() };
        wait("Prometheus", 60, || server.get("query", &[("query", "1")]).is_ok());
        server
    }

    fn get(&self, what: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "20", "--get"]).arg(format!("http://{ADDRESS}/api/v1/{what}"));
        for (name, value) in parameters {
            command.arg("--data-urlencode").arg(format!("{name}={value}"));
        }
        let output = command.output().map_err(|error| format!("curl: {error}"))?;
        let answer: Value = serde_json::from_slice(&output.stdout).map_err(|error| {
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            format!("{error}: {}{}", String::from_utf8_lossy(&output.stderr), log.lines().last().unwrap_or_default())
        })?;
        if answer["status"] == "success" { Ok(answer["data"].clone()) } else { Err(answer["error"].to_string()) }
    }

    /// A query over all the time since the start.
    fn range(&self, query: &str) -> Result<Vec<Value>, String> {
        let (start, end) = (self.started.to_string(), now().to_string());
        let data = self.get("query_range", &[("query", query), ("start", &start), ("end", &end), ("step", "5")])?;
        Ok(data["result"].as_array().cloned().unwrap_or_default())
    }

    /// Did the query return anything at any time?
    pub fn answers(&self, query: &str) -> Result<bool, String> {
        Ok(!self.range(query)?.is_empty())
    }

    /// Pods that ask to be scraped and never were, though they ran for several periods.
    pub fn unscraped(&self, namespaces: &[&str]) -> Vec<String> {
        // over a little more than a step of the range, or what came and went between two would be missed
        let scraped: BTreeSet<String> = self
            .range("max_over_time(up[6s]) == 1")
            .unwrap()
            .iter()
            .map(|series| series["metric"]["pod"].as_str().unwrap_or_default().to_owned())
            .collect();
        let owned: Vec<_> = namespaces.iter().map(|name| (*name).to_owned()).collect();
        let long = pods(&owned).into_iter().filter(|pod| lived(pod).is_none_or(|seconds| seconds >= SCRAPED_AFTER));
        let names = long.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned());
        names.filter(|name| !scraped.contains(name)).collect()
    }

    /// Has a counter stood still for so many seconds?
    pub fn steady(&self, query: &str, seconds: u64) -> bool {
        let (start, end) = ((now() - seconds).to_string(), now().to_string());
        let data =
            self.get("query_range", &[("query", query), ("start", &start), ("end", &end), ("step", "2")]).unwrap();
        let all = data["result"].as_array().cloned().unwrap_or_default();
        !all.is_empty()
            && all.iter().all(|series| {
                let values: BTreeSet<_> =
                    series["values"].as_array().unwrap().iter().map(|pair| pair[1].to_string()).collect();
                values.len() == 1
            })
    }
}

/// Seconds that the container of a pod ran, once it has ended.
fn lived(pod: &Value) -> Option<i64> {
    let ended = pod.pointer("/status/containerStatuses/0/state/terminated")?;
    let time = |field: &str| -> Option<i64> {
        Some(ended[field].as_str()?.parse::<k8s_openapi::jiff::Timestamp>().ok()?.as_second())
    };
    Some(time("finishedAt")? - time("startedAt")?)
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(finder) = self.finder.take() {
            // a panic of the thread has been told already
            drop(finder.join());
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
