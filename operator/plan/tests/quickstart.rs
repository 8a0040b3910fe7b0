//! The plan of the quickstart, held by a committed snapshot, and what holds for every plan.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use s3_plan::{
    Binder, Choice, ComponentKind, Decision, Observed, Plan, PlanError, Resources, ask, decide, plan, run_digest,
};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use common::{FILES, example, finished, quickstart};

fn planned(texts: &[String]) -> Result<Plan, Vec<PlanError>> {
    let mut resources = Resources::default();
    for (number, text) in texts.iter().enumerate() {
        resources.add_manifest(&format!("{number}.yaml"), None, text)?;
    }
    plan(&resources).map_err(|error| vec![error])
}

fn changed(from: &str, to: &str) -> Plan {
    let texts: Vec<String> = quickstart();
    assert!(texts.iter().any(|text| text.contains(from)), "{from} is in no file");
    planned(&texts.iter().map(|text| text.replace(from, to)).collect::<Vec<_>>()).unwrap()
}

struct Somewhere;

impl Binder for Somewhere {
    fn volume(&self, name: &str, path: &str) -> Result<PathBuf, PlanError> {
        Ok(Path::new("/volumes").join(name).join(path))
    }
    fn work(&self, component: &str, path: &str) -> Result<PathBuf, PlanError> {
        Ok(Path::new("/work").join(component).join(path))
    }
    fn listen(&self, _: &str, _: &str) -> Result<SocketAddr, PlanError> {
        Ok(SocketAddr::from(([127, 0, 0, 1], 4000)))
    }
    fn address(&self, component: &str, port: &str) -> Result<String, PlanError> {
        Ok(format!("http://{component}:{port}"))
    }
    fn secret(&self, name: &str, key: &str) -> Result<PathBuf, PlanError> {
        Ok(Path::new("/secrets").join(name).join(key))
    }
}

#[test]
fn the_plan_is_the_committed_one() {
    let plan = planned(&quickstart()).unwrap();
    let text = serde_yaml_ng::to_string(&plan).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/quickstart.yaml");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap();
    assert!(text == expected, "the plan changed; look at it and run again with UPDATE_GOLDEN=1:\n{text}");
}

#[test]
fn the_order_of_files_changes_nothing() {
    let files = quickstart();
    let expected = planned(&files).unwrap();
    for order in [[1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        assert_eq!(planned(&order.map(|at| files[at].clone())).unwrap(), expected);
    }
    assert_eq!(planned(&[files.join("\n---\n")]).unwrap(), expected, "one file with three documents");
}

#[test]
fn every_example_plans_and_every_configuration_binds() {
    let recipe = |name: &str| vec![example("quickstart-gpu", "retrieverindex.yaml"), example("recipes", name)];
    let gpu = FILES.iter().map(|file| example("quickstart-gpu", file)).collect();
    let methods = vec![example("quickstart", "retrieverindex.yaml"), example("recipes", "all-methods.yaml")];
    let alone = vec![example("recipes", "search-r1.yaml")];
    for texts in [quickstart(), gpu, recipe("sft-searcher.yaml"), recipe("sft-generator.yaml"), methods, alone] {
        let plan = planned(&texts).unwrap();
        assert_eq!(plan.notices, [], "examples name nothing that a single machine ignores");
        let mut before = std::collections::BTreeSet::new();
        for component in &plan.components {
            assert!(component.needs.is_subset(&before), "{} stands before what it needs", component.name);
            before.insert(component.name.clone());
            component.config.bind(&component.name, &Somewhere).unwrap();
        }
    }
}

#[test]
fn equal_gateways_are_one_and_a_searcher_comes_from_its_job() {
    let plan = planned(&quickstart()).unwrap();
    let gateways: Vec<_> = plan.components.iter().filter(|c| c.kind == ComponentKind::Gateway).collect();
    assert_eq!(gateways.len(), 1);
    assert_eq!(gateways[0].owners.len(), 2);
    assert_eq!(gateways[0].config.value["providers"].as_array().unwrap().len(), 1);
    let evaluation = plan.component("quickstart-eval").unwrap();
    assert!(evaluation.needs.contains("quickstart-train"));
    assert_eq!(evaluation.config.value["arms"][3]["searcher"]["adapter"]["path"], "work://quickstart-train/export");
}

#[test]
fn arms_have_retrievers_models_and_limits_of_their_own() {
    let texts = vec![example("quickstart", "retrieverindex.yaml"), example("recipes", "all-methods.yaml")];
    let plan = planned(&texts).unwrap();
    let evaluation = plan.component("all-methods-eval").unwrap();
    for need in ["quickstart-retriever", "words-retriever", "gateway-built-in"] {
        assert!(evaluation.needs.contains(need), "{need}: {:?}", evaluation.needs);
        assert!(plan.component(need).unwrap().owners.contains("EvalRun/all-methods"), "{need}");
    }
    let arms = evaluation.config.value["arms"].as_array().unwrap();
    let arm = |name: &str| arms.iter().find(|arm| arm["name"] == name).unwrap_or_else(|| panic!("no arm {name}"));
    assert_eq!(arm("rag-bm25")["ranking"], "Lexical");
    assert_eq!(arm("rag-bm25")["retriever"], serde_json::Value::Null, "the run's index");
    assert!(arm("rag-other-index")["retriever"]["endpoint"]["address"].as_str().unwrap().contains("words-retriever"));
    assert_eq!(arm("rag-same-tokens")["budgetBy"], "Tokens");
    assert_eq!(arm("rag-empty")["retriever"], serde_json::json!({"control": "Empty"}));
    let oracle = &arm("rag-oracle")["retriever"];
    assert_eq!(
        (&oracle["control"], &oracle["corpus"]),
        (&"Oracle".into(), &"volume://data/corpus/wiki-vital.jsonl".into())
    );
    let limits = |name: &str| {
        let search = &arm(name)["search"];
        ["maxSearches", "topK", "turnTokens", "contextTokens", "maxPassages"].map(|key| search[key].as_u64().unwrap())
    };
    assert_eq!(limits("search-r1"), [4, 3, 500, 4096, 12]);
    assert_eq!(limits("ircot"), [4, 3, 128, 2048, 15], "no longer than the generator takes");
    assert_eq!(limits("search-o1"), [4, 3, 1000, 2048, 12]);
    assert_eq!(
        (&arm("search-r1")["answer"], &arm("search-r1-retrieved")["answer"]),
        (&"Own".into(), &"Generator".into())
    );
    assert_eq!(arm("ircot")["answer"], "Generator");
    assert_eq!(arm("search-r1")["search"]["compatibility"], "SearchR1");
    assert_eq!(arm("s3-no-both")["search"]["ablation"], "NoBoth");
    assert!(arm("s3")["search"].get("ablation").is_none());
    // what the run says reaches every arm that says nothing
    let lexical = texts[1]
        .replace("      name: quickstart\n    topK: 3", "      name: quickstart\n    topK: 3\n    method: Lexical");
    let plan = planned(&[texts[0].clone(), lexical]).unwrap();
    let arms = plan.component("all-methods-eval").unwrap().config.value["arms"].as_array().unwrap();
    for arm in arms {
        let method = arm.get("ranking").or_else(|| arm.pointer("/search/method"));
        let wanted = match arm["name"].as_str().unwrap() {
            "direct" => None,
            "rag-dense" => Some("Dense"),
            "rag-hybrid" => Some("Hybrid"),
            _ => Some("Lexical"),
        };
        assert_eq!(method.and_then(|method| method.as_str()), wanted, "{arm}");
    }
    // what is missing is named
    let missing = format!("{:?}", planned(&texts[1..]).unwrap_err());
    assert!(missing.contains("quickstart"), "{missing}");
    let other = texts[1].replace("{indexRef: {name: words}}", "{indexRef: {name: nowhere}}");
    let missing = format!("{:?}", planned(&[texts[0].clone(), other]).unwrap_err());
    assert!(missing.contains("arms[rag-other-index].retriever.indexRef.name"), "{missing}");
}

#[test]
fn a_run_without_search_needs_no_index() {
    let recipe = example("recipes", "all-methods.yaml");
    let (_, run) = recipe.split_once("---\n").unwrap();
    let (head, rest) = run.split_once("  arms:\n").unwrap();
    let (_, tail) = rest.split_once("  generator:\n").unwrap();
    let tail = tail
        .replace("    eligible: true\n", "")
        .replace("    baseline: rag-3\n    pairedAgainst: [rag-3, rag-same-passages]\n", "    confidence: 0.9\n");
    let arms = "    - {name: direct, method: Direct}\n    - {name: cot, method: ChainOfThought}\n    - {name: none, method: Rag, topK: 3, retriever: {control: Empty}}\n";
    let only = format!("{head}  arms:\n{arms}  generator:\n{tail}");
    let plan = planned(std::slice::from_ref(&only)).unwrap();
    let evaluation = plan.component("all-methods-eval").unwrap();
    assert_eq!(evaluation.config.value.get("retriever"), None);
    assert_eq!(evaluation.needs.iter().collect::<Vec<_>>(), ["gateway-built-in"]);
    let oracle = only.replace("control: Empty", "control: Oracle");
    let said = format!("{:?}", planned(&[oracle]).unwrap_err());
    assert!(said.contains("arms[none].retriever.control"), "{said}");
}

#[test]
fn a_reranker_is_the_servers_and_its_files_are_looked_for() {
    let reranker = "  reranker:\n    model:\n      uri: pvc://data/models/cross\n    depth: 20\n  fusion:\n";
    let plan = changed("  fusion:\n", reranker);
    let server = plan.component("quickstart-retriever").unwrap();
    let config = &server.config.value["reranker"];
    assert_eq!((&config["depth"], &config["maxTokens"]), (&20.into(), &512.into()));
    assert!(config["model"].as_str().unwrap().ends_with("models/cross"), "{config}");
    let files: Vec<_> = server.inputs.iter().map(|input| input.path.rsplit('/').next().unwrap()).collect();
    assert_eq!(files, ["model.safetensors", "config.json", "tokenizer.json"]);
    assert!(server.inputs[0].field.contains("reranker.model"), "{}", server.inputs[0].field);
    // the index is the same, and is not built again
    let build = |plan: &Plan| plan.component("quickstart-index").unwrap().config.value.clone();
    assert_eq!(build(&plan), build(&planned(&quickstart()).unwrap()));
}

#[test]
fn only_what_depends_on_a_change_runs_again() {
    let plan = planned(&quickstart()).unwrap();
    let observed = finished(&plan);
    let again = |plan: &Plan, observed: &Observed| -> Vec<String> {
        let keep = |decision| matches!(decision, Decision::Keep { .. } | Decision::Idle);
        plan.components.iter().filter(|c| !keep(decide(plan, c, observed))).map(|c| c.name.clone()).collect()
    };
    assert_eq!(again(&plan, &observed), [""; 0]);

    let rate = changed("learningRate: 0.00002", "learningRate: 0.0001");
    assert_eq!(
        again(&rate, &observed),
        ["gateway-built-in", "quickstart-retriever", "quickstart-train", "quickstart-eval"],
        "index and baseline stand"
    );
    let size = changed("size: 48", "size: 64");
    assert_eq!(again(&size, &observed), ["gateway-built-in", "quickstart-retriever", "quickstart-eval"]);

    let mut other_data = observed.clone();
    other_data.inputs.insert("volume://data/corpus/wiki-vital.jsonl".into(), "changed".into());
    assert!(again(&plan, &other_data).contains(&"quickstart-index".to_owned()));

    let mut moved_on = observed;
    moved_on.finished.get_mut("quickstart-train").unwrap().digest = "another adapter".into();
    assert!(again(&plan, &moved_on).contains(&"quickstart-eval".to_owned()));
}

#[test]
fn the_run_digest_is_of_the_jobs_outcomes_alone() {
    let plan = planned(&quickstart()).unwrap();
    let mut observed = finished(&plan);
    let digest = run_digest(&plan, &observed).unwrap();
    observed.inputs.insert("anything".into(), "else".into());
    observed.finished.values_mut().for_each(|finished| finished.fingerprint.clear());
    assert_eq!(run_digest(&plan, &observed).unwrap(), digest);
    observed.finished.get_mut("quickstart-eval").unwrap().digest = "other answers".into();
    assert_ne!(run_digest(&plan, &observed).unwrap(), digest);
    observed.finished.remove("quickstart-eval");
    assert!(run_digest(&plan, &observed).is_err());
}

#[test]
fn more_steps_go_on_from_the_last_checkpoint_and_other_changes_do_not() {
    let of = |plan: &Plan| {
        let train = plan.component("quickstart-train").unwrap();
        s3_plan::work_identity(plan, train, &finished(plan)).unwrap()
    };
    let base = of(&planned(&quickstart()).unwrap());
    assert!(of(&changed("steps: 3", "steps: 5")).continues(&base));
    assert!(!of(&changed("steps: 3", "steps: 2")).continues(&base));
    assert!(!of(&changed("learningRate: 0.00002", "learningRate: 0.0001")).continues(&base));
}

#[test]
fn a_searcher_can_be_asked_by_job_and_by_arm() {
    let plan = planned(&quickstart()).unwrap();
    for choice in [
        Choice::default(),
        Choice { arm: Some("s3".into()), job: None },
        Choice { arm: None, job: Some("quickstart".into()) },
    ] {
        let component = ask(&plan, &choice).unwrap();
        component.config.bind("ask", &Somewhere).unwrap();
        let needs: Vec<&str> = component.needs.iter().map(String::as_str).collect();
        assert_eq!(needs, ["gateway-built-in", "quickstart-retriever", "quickstart-train"]);
    }
    let error = ask(&plan, &Choice { arm: Some("rag-3".into()), job: None }).unwrap_err().to_string();
    assert_eq!(error, "no S3 arm rag-3; there are: s3");
}

#[test]
fn what_only_a_cluster_honours_is_said_and_changes_nothing() {
    let texts: Vec<String> = quickstart()
        .iter()
        .map(|text| text.replace("  steps: 3\n", "  steps: 3\n  queue:\n    name: gpus\n"))
        .collect();
    let with = planned(&texts).unwrap();
    let said: Vec<String> = with.notices.iter().map(ToString::to_string).collect();
    assert_eq!(said, ["not applied locally: S3TrainingJob/quickstart spec.queue (there is no queue)"]);
    assert_eq!(with.components, planned(&quickstart()).unwrap().components);
}

#[test]
fn refusals_name_the_field_and_what_to_do() {
    for (from, to, expected) in [
        ("    indexRef:\n      name: quickstart", "    indexRef:\n      name: other", "RetrieverIndex/other"),
        ("uri: pvc://data/models/smollm2-135m-instruct/model.gguf", "uri: http://owner/model", "hf://"),
        ("maxSearches: 1", "maxSearchs: 1", "maxSearchs"),
    ] {
        let texts: Vec<String> = quickstart().iter().map(|text| text.replace(from, to)).collect();
        let errors = planned(&texts).unwrap_err();
        let text = errors[0].to_string();
        assert!(text.contains(expected) && !text.contains('\n'), "{text}");
    }
}

/// The quickstart with another generator; `under` stands below `provider:`, `beside` beside it.
fn with_generator(under: &str, beside: &str) -> Result<Plan, Vec<PlanError>> {
    let texts = quickstart().into_iter().map(|text| {
        let Some(start) = text.find("      builtIn:\n") else { return text };
        let end = text.find("    answer:\n").unwrap();
        format!("{}{under}{beside}{}", &text[..start], &text[end..])
    });
    planned(&texts.collect::<Vec<_>>())
}

/// A job and a run with everything that a generator and a judge can be told.
fn fully_told(job_token: &str, run_token: &str) -> Plan {
    let texts = quickstart().into_iter().map(|text| {
        let Some(start) = text.find("      builtIn:\n") else { return text };
        let end = text.find("    answer:\n").unwrap();
        let token = if text.contains("kind: S3TrainingJob") { job_token } else { run_token };
        let provider = "      openAiCompatible:\n        endpoint: https://one.example.org/v1\n        replicas: [https://two.example.org/v1]\n        model: m\n        apiKeySecretRef: {name: keys, key: token}\n";
        let beside = "    limits: {hedgeAfter: 1500ms, queue: 7, requestsPerMinute: 600}\n    budget: {calls: 900}\n    fallbacks:\n    - provider: {anthropic: {model: other, apiKeySecretRef: {name: keys, key: anthropic}}}\n      limits: {concurrency: 3}\n";
        let judge = "  judge:\n    provider: {openAiCompatible: {endpoint: 'https://judge.example.org/v1', model: j}}\n    second:\n      provider: {bedrock: {region: eu-central-1, model: k}}\n    calibration: {report: {uri: 'pvc://data/judge.json'}, minKappa: 0.7}\n    budget: {tokens: 500}\n";
        let text = format!("{}{provider}{beside}{token}{}", &text[..start], &text[end..]);
        let at = text.find("  generator:\n").unwrap();
        format!("{}{judge}  determinism: Relaxed\n{}", &text[..at], &text[at..])
    });
    let texts: Vec<String> = texts.map(|text| text.replace("  determinism: Bitwise\n", "")).collect();
    planned(&texts).unwrap()
}

#[test]
fn what_a_generator_and_a_judge_are_told_reaches_the_gateway() {
    let token = |name: &str| format!("    callerTokenSecretRef: {{name: callers, key: {name}}}\n");
    let plan = fully_told(&token("job"), &token("run"));
    let gateways: Vec<_> = plan.components.iter().filter(|c| c.kind == ComponentKind::Gateway).collect();
    assert_eq!(gateways.len(), 1);
    let (gateway, config) = (gateways[0], &gateways[0].config.value);
    let named = |stem: &str| {
        let names = config["providers"].as_array().unwrap().iter().map(|provider| provider["name"].as_str().unwrap());
        let found: Vec<&str> = names.filter(|name| name.starts_with(&format!("{stem}-"))).collect();
        assert_eq!(found.len(), 1, "{stem} of {config}");
        found[0].to_owned()
    };
    let (first, other, judge, second) = (named("m"), named("other"), named("j"), named("k"));
    assert_eq!(config["fallbacks"][&first], serde_json::json!([other]));
    assert_eq!(config["secondJudges"][&judge], serde_json::json!(second));
    assert_eq!(config["calibrations"][&judge]["minKappa"], 0.7);
    assert_eq!(config["calibrations"][&judge]["report"], "volume://data/judge.json");
    assert!(gateway.volumes.contains("data") && gateway.inputs.iter().any(|i| i.field.contains("calibration")));
    let provider = config["providers"].as_array().unwrap().iter().find(|p| p["name"] == first.as_str()).unwrap();
    assert_eq!(provider["replicas"], serde_json::json!(["https://two.example.org/v1"]));
    assert_eq!((&provider["limits"]["hedgeAfterMs"], &provider["limits"]["queue"]), (&1500.into(), &7.into()));
    let budgets = config["budgets"].as_array().unwrap();
    for (calls, providers) in [(Some(900), [&first, &other]), (None, [&judge, &second])] {
        let of = |budget: &&serde_json::Value| {
            budget["budget"]["calls"].as_u64() == calls && budget["providers"] == serde_json::json!(providers)
        };
        // one of the job and one of the run
        assert_eq!(budgets.iter().filter(of).count(), 2, "{budgets:?}");
    }
    let urls: Vec<&str> = gateway.endpoints.iter().map(|endpoint| endpoint.url.as_str()).collect();
    for host in ["one.example.org", "two.example.org", "anthropic", "judge.example.org", "bedrock-runtime.eu-central-1"]
    {
        assert!(urls.iter().any(|url| url.contains(host)), "{host} is not in {urls:?}");
    }
    // each caller with its own token, and nobody without
    let tokens = config["tokens"].as_object().unwrap();
    assert_eq!(tokens["s3trainingjob.quickstart"], "secret://callers/job");
    assert_eq!(tokens["evalrun.quickstart"], "secret://callers/run");
    assert_eq!(config["tokensOnly"], true);
    for component in &plan.components {
        let own = match component.kind {
            ComponentKind::Gateway => continue,
            ComponentKind::Evaluation => "callers/run",
            _ => "callers/job",
        };
        let uses = component.config.value.to_string().contains("tokenFile\":\"secret://");
        assert_eq!(component.secrets.contains(own), uses, "{}", component.name);
        assert!(component.secrets.iter().all(|secret| secret == own), "{}: {:?}", component.name, component.secrets);
    }
    // one user without a token is let in under its own name, the other's stays its own
    let config = &fully_told(&token("job"), "")
        .components
        .into_iter()
        .find(|c| c.kind == ComponentKind::Gateway)
        .unwrap()
        .config
        .value;
    assert_eq!(config["tokens"].as_object().unwrap().len(), 1);
    assert!(config.get("tokensOnly").is_none());
}

#[test]
fn every_provider_has_a_gateway_with_its_limits_and_budgets() {
    let key = "        apiKeySecretRef: {name: keys, key: token}\n";
    let limits = "    limits: {requestsPerMinute: 600, tokensPerMinute: 90000, concurrency: 7}\n    budget: {tokens: 5000000, cost: 12500m, pricePerMillionPromptTokens: 100m}\n";
    for (kind, under, url) in [
        (
            "OpenAi",
            format!("      openAiCompatible:\n        endpoint: http://localhost:8000/v1\n        model: m\n{key}"),
            "http://localhost:8000/v1",
        ),
        ("Anthropic", format!("      anthropic:\n        model: m\n{key}"), "https://api.anthropic.com"),
        (
            "AzureOpenAi",
            format!(
                "      azureOpenAi:\n        endpoint: https://x.openai.azure.com\n        deployment: d\n        apiVersion: 2024-10-21\n{key}"
            ),
            "https://x.openai.azure.com",
        ),
        (
            "Bedrock",
            "      bedrock:\n        region: eu-central-1\n        model: m\n        credentialsSecretRef: {name: keys, key: token}\n".to_owned(),
            "https://bedrock-runtime.eu-central-1.amazonaws.com",
        ),
    ] {
        let plan = with_generator(&under, limits).unwrap();
        let gateways: Vec<_> = plan.components.iter().filter(|c| c.kind == ComponentKind::Gateway).collect();
        assert_eq!(gateways.len(), 1, "{kind}");
        let gateway = gateways[0];
        assert_eq!(gateway.secrets.iter().map(String::as_str).collect::<Vec<_>>(), ["keys/token"], "{kind}");
        assert_eq!(gateway.endpoints.iter().map(|e| e.url.as_str()).collect::<Vec<_>>(), [url]);
        let text = serde_yaml_ng::to_string(&gateway.config).unwrap();
        for part in [
            &format!("kind: {kind}"),
            "requestsPerMinute: 600",
            "tokensPerMinute: 90000",
            "concurrency: 7",
            "caller: s3trainingjob.",
            "caller: evalrun.",
            "tokens: 5000000",
            "cost: 12.5",
            "promptPrice: 0.1",
        ] {
            assert!(text.contains(part), "{kind}: no {part} in {text}");
        }
        // only an endpoint that names this machine itself may be reached there
        assert_eq!(text.contains("127.0.0.0/8"), kind == "OpenAi", "{text}");
        let users = plan.components.iter().map(|c| serde_yaml_ng::to_string(&c.config).unwrap());
        assert!(users.filter(|text| text.contains("caller: s3trainingjob.quickstart")).count() >= 2, "{kind}");
    }
    let priceless = with_generator(
        "      anthropic:\n        model: m\n        apiKeySecretRef: {name: k, key: t}\n",
        "    budget: {cost: 3}\n",
    );
    let error = priceless.unwrap_err().iter().map(ToString::to_string).collect::<String>();
    assert!(error.contains("generator.budget.cost") && error.contains("pricePerMillion"), "{error}");
}

const SCHEDULE: &str =
    "steps: 3\n  evaluation:\n    runs:\n      every: 1\n      templateRef:\n        name: quickstart\n";

/// The manifest of that kind.
fn of_kind<'t>(texts: &'t [String], kind: &str) -> &'t str {
    texts.iter().find(|text| text.contains(&format!("\nkind: {kind}\n"))).unwrap()
}

/// What a cluster has: the objects alone.
fn in_cluster(texts: &[String], more: Option<(s3_crds::Kind, serde_json::Value)>) -> Plan {
    let objects = texts.iter().map(|text| {
        let object: serde_json::Value = serde_yaml_ng::from_str(text).unwrap();
        let kind = s3_crds::Kind::ALL.into_iter().find(|kind| object["kind"] == kind.name()).unwrap();
        (kind, object)
    });
    let (resources, refused) = Resources::from_cluster(objects.chain(more));
    assert!(refused.is_empty(), "{refused:?}");
    plan(&resources).unwrap()
}

#[test]
fn a_schedule_is_planned_with_the_job_on_one_machine_and_made_by_the_operator_in_a_cluster() {
    let texts: Vec<String> = quickstart().iter().map(|text| text.replace("steps: 3\n", SCHEDULE)).collect();
    let planned_here = planned(&texts).unwrap();
    let train = planned_here.component("quickstart-train").unwrap();
    assert_eq!(
        train.config.value["milestones"],
        serde_json::json!({"every": 1, "dir": "work://quickstart-train/milestones"})
    );
    for step in 1..=3 {
        let name = format!("quickstart-quickstart-step-{step}");
        let evaluation = planned_here.component(&format!("{name}-eval")).unwrap();
        assert_eq!(evaluation.owners, [format!("EvalRun/{name}")].into());
        assert!(evaluation.needs.contains("quickstart-train"));
        let path = &evaluation.config.value["arms"][3]["searcher"]["adapter"]["path"];
        assert_eq!(path, &format!("work://quickstart-train/milestones/step-00000{step}"));
    }
    // the template is an evaluation itself
    let template = planned_here.component("quickstart-eval").unwrap();
    assert_eq!(template.config.value["arms"][3]["searcher"]["adapter"]["path"], "work://quickstart-train/export");

    // in a cluster the run is an object of its own, and need not wait for the training once it is pinned
    let there = in_cluster(&texts, None);
    assert!(there.component("quickstart-quickstart-step-1-eval").is_none());
    let template: s3_crds::EvalRun = serde_yaml_ng::from_str(of_kind(&texts, "EvalRun")).unwrap();
    for (sha256, waits) in [(Some("a".repeat(64)), false), (None, true)] {
        let spec = s3_plan::lifecycle::scheduled_run(&template.spec, "quickstart", 2, sha256.as_deref()).unwrap();
        let run = serde_json::json!({"apiVersion": s3_crds::API_VERSION, "kind": "EvalRun",
            "metadata": {"name": "quickstart-quickstart-step-2"}, "spec": spec});
        let there = in_cluster(&texts, Some((s3_crds::Kind::EvalRun, run)));
        let evaluation = there.component("quickstart-quickstart-step-2-eval").unwrap();
        assert_eq!(evaluation.needs.contains("quickstart-train"), waits);
        assert_eq!(evaluation.config.value["arms"][3]["searcher"]["adapter"]["sha256"].as_str(), sha256.as_deref());
    }

    let refused = |from: &str, to: &str| {
        planned(&texts.iter().map(|text| text.replace(from, to)).collect::<Vec<_>>()).unwrap_err()[0].to_string()
    };
    let missing = refused("      templateRef:\n        name: quickstart", "      templateRef:\n        name: other");
    assert!(missing.contains("other"), "{missing}");
    let unfit = refused("        jobRef:\n          name: quickstart", "        model:\n          uri: pvc://data/m");
    assert!(unfit.contains("no arm of the template"), "{unfit}");
}

#[test]
fn the_newest_checkpoint_is_an_arm_and_a_start() {
    let latest: Vec<String> = quickstart()
        .iter()
        .map(|text| text.replace("        jobRef:\n", "        checkpoint: Latest\n        jobRef:\n"))
        .collect();
    let adapter = serde_json::json!({"path": "work://quickstart-train/checkpoints", "latest": true});
    for (plan, waits) in [(planned(&latest).unwrap(), true), (in_cluster(&latest, None), false)] {
        let evaluation = plan.component("quickstart-eval").unwrap();
        assert_eq!(evaluation.config.value["arms"][3]["searcher"]["adapter"], adapter);
        assert_eq!(evaluation.needs.contains("quickstart-train"), waits);
    }
    let mut texts = quickstart();
    let second = of_kind(&texts, "S3TrainingJob")
        .replace("name: quickstart\nspec", "name: second\nspec")
        .replace("    keep: 2", "    keep: 2\n    resumeFrom:\n      jobRef:\n        name: quickstart");
    texts.push(second);
    for (plan, waits) in [(planned(&texts).unwrap(), true), (in_cluster(&texts, None), false)] {
        let train = plan.component("second-train").unwrap();
        assert_eq!(train.config.value["resumeFrom"], "work://quickstart-train/checkpoints");
        assert_eq!(train.needs.contains("quickstart-train"), waits);
    }
}

#[test]
fn what_is_watched_on_the_way_changes_nothing_of_the_work() {
    let plan = planned(&quickstart()).unwrap();
    let observed = finished(&plan);
    let identity = |plan: &Plan| {
        s3_plan::work_identity(plan, plan.component("quickstart-train").unwrap(), &observed).unwrap().settings
    };
    let print =
        |plan: &Plan| s3_plan::fingerprint(plan, plan.component("quickstart-train").unwrap(), &observed).unwrap();
    let guards =
        "steps: 3\n  guards:\n    entropy:\n      min: 0.1\n      action: Rollback\n    formatRate:\n      min: 0.5\n";
    for (change, entries) in [(SCHEDULE, 0), (guards, 2)] {
        let changed = changed("steps: 3\n", change);
        let train = changed.component("quickstart-train").unwrap();
        assert_eq!(train.config.value["guards"].as_array().map_or(0, Vec::len), entries);
        assert_eq!(identity(&changed), identity(&plan));
        assert_ne!(print(&changed), print(&plan));
    }
}
