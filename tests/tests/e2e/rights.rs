//! What the operator asked of the API server, from its audit log, against the roles of the chart.

use crate::cluster::kubectl;
use serde_json::Value;
use std::collections::BTreeSet;

/// (verb, group, resource with its subresource)
type Call = (String, String, String);

/// Verbs that the roles grant and this test gives no occasion to use; each with the occasion.
const NO_OCCASION: [(&str, &str, &str); 13] = [
    ("get", "secrets", "the quickstart needs no Secret"),
    ("patch", "events", "an event repeats"),
    ("delete", "s3trainingjobs", "ttlSecondsAfterFinished"),
    ("delete", "evalruns", "ttlSecondsAfterFinished"),
    ("create", "evalruns", "a job with evaluation.runs"),
    ("patch", "evalruns", "a job with evaluation.runs is suspended"),
    ("update", "retrieverindices/finalizers", "a server that guards owners which block deletion"),
    ("update", "s3trainingjobs/finalizers", "a server that guards owners which block deletion"),
    ("update", "evalruns/finalizers", "a server that guards owners which block deletion"),
    ("get", "*", "a cache that shows a write late, or a name that is taken"),
    ("patch", "*", "owners of a shared object change"),
    ("delete", "*", "a service, an old configuration or a stopped attempt is taken away"),
    ("create", "*", "the object is made by server-side apply, which needs both verbs"),
];

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn calls() -> (BTreeSet<Call>, Vec<String>) {
    let folder = std::env::var("S3_NODE").expect("no S3_NODE; run this test with `make test-e2e`");
    let log = std::fs::read_to_string(std::path::Path::new(&folder).join("audit.log")).unwrap();
    let (mut made, mut refused) = (BTreeSet::new(), Vec::new());
    for line in log.lines() {
        // the last line may still be being written
        let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
        if event["user"]["username"] != "system:serviceaccount:s3-system:s3-operator" {
            continue;
        }
        let about = &event["objectRef"];
        let mut resource = text(&about["resource"]);
        if let Some(sub) = about["subresource"].as_str() {
            resource = format!("{resource}/{sub}");
        }
        let call = (text(&event["verb"]), text(&about["apiGroup"]), resource);
        // not every 403 is one: an object in a namespace that goes is refused by admission
        if event["annotations"]["authorization.k8s.io/decision"] == "forbid" {
            refused.push(format!("{call:?} {}", text(&event["requestURI"])));
        }
        made.insert(call);
    }
    (made, refused)
}

fn granted() -> BTreeSet<Call> {
    let mut all = BTreeSet::new();
    for role in [&["clusterrole/s3-operator"][..], &["role/s3-operator-leader", "-n", "s3-system"]] {
        let role: Value = serde_json::from_str(&kubectl(&[&["get", "-o", "json"], role].concat())).unwrap();
        let words = |value: &Value| value.as_array().unwrap().iter().map(text).collect::<Vec<_>>();
        for rule in role["rules"].as_array().unwrap() {
            for group in words(&rule["apiGroups"]) {
                for resource in words(&rule["resources"]) {
                    for verb in words(&rule["verbs"]) {
                        all.insert((verb, group.clone(), resource.clone()));
                    }
                }
            }
        }
    }
    all
}

/// Nothing was refused, and nothing is granted that has no use; else what is wrong.
pub fn differ_from_use() -> Option<String> {
    let (made, refused) = calls();
    if !refused.is_empty() {
        return Some(format!("the roles lack:\n{}", refused.join("\n")));
    }
    let granted = granted();
    let mut unused: Vec<_> = granted.difference(&made).collect();
    eprintln!("e2e: {} rights, {} used; not here: {unused:?}", granted.len(), granted.len() - unused.len());
    unused.retain(|(verb, _, resource)| !NO_OCCASION.iter().any(|(v, r, _)| v == verb && (*r == "*" || r == resource)));
    (!unused.is_empty()).then(|| format!("granted and never used: {unused:?}"))
}
