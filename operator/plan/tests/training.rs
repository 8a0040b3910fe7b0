//! What training jobs become: without a generator, against another baseline, with all weights.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{example, quickstart};
use s3_plan::{Choice, ComponentKind, Observed, Plan, PlanError, Resources, ask, plan, work_identity};
use serde_json::{Value, json};

fn planned(texts: &[String]) -> Result<Plan, Vec<PlanError>> {
    let mut resources = Resources::default();
    for (number, text) in texts.iter().enumerate() {
        resources.add_manifest(&format!("{number}.yaml"), None, text)?;
    }
    plan(&resources).map_err(|error| vec![error])
}

/// The quickstart with some fields of its job put in other words.
fn job_with(changes: &[(&str, &str)]) -> Result<Plan, Vec<PlanError>> {
    let mut texts = quickstart();
    for (from, to) in changes {
        let job = texts.iter_mut().find(|text| text.contains("kind: S3TrainingJob") && text.contains(from)).unwrap();
        *job = job.replacen(from, to, 1);
    }
    planned(&texts)
}

fn config<'a>(plan: &'a Plan, name: &str) -> &'a Value {
    &plan.component(name).unwrap().config.value
}

/// An evaluation of the Search-R1 recipe's job.
fn evaluation(method: &str, more: &str) -> String {
    format!(
        "apiVersion: searchagent.dev/v1alpha1\nkind: EvalRun\nmetadata: {{name: own}}\nspec:\n  arms:\n    - name: a\n      \
         method: {method}\n      searcher: {{jobRef: {{name: search-r1}}}}\n{more}  retriever: {{indexRef: {{name: search-r1}}}}\n  \
         generator: {{provider: {{builtIn: {{model: {{uri: pvc://data/m.gguf}}}}}}}}\n  \
         datasets: [{{name: nq, uri: pvc://data/nq.jsonl}}]\n"
    )
}

#[test]
fn a_searcher_that_answers_itself_needs_no_generator() {
    let recipe = example("recipes", "search-r1.yaml");
    let alone = planned(std::slice::from_ref(&recipe)).unwrap();
    let kinds: Vec<ComponentKind> = alone.components.iter().map(|component| component.kind).collect();
    assert!(!kinds.contains(&ComponentKind::Gateway) && !kinds.contains(&ComponentKind::Baseline), "{kinds:?}");
    let train = config(&alone, "search-r1-train");
    assert!(train.get("generator").is_none(), "{train}");
    assert_eq!(train["search"]["compatibility"], "SearchR1");
    assert_eq!((&train["search"]["maxSearches"], &train["search"]["topK"]), (&json!(2), &json!(3)));
    let asked = ask(&alone, &Choice { job: Some("search-r1".into()), arm: None }).unwrap();
    let arm = &asked.config.value["arms"][0];
    assert_eq!((&arm["method"], &arm["answer"]), (&json!("SearchR1"), &json!("Own")));
    assert!(asked.config.value.get("generator").is_none());
    // served it needs none either
    let served = recipe.replace("  compatibility: SearchR1\n", "  compatibility: SearchR1\n  serving: {}\n");
    let served = planned(&[served]).unwrap();
    let server = served.components.iter().find(|component| component.kind == ComponentKind::Searcher).unwrap();
    assert_eq!(server.config.value["arms"][0]["method"], "SearchR1");
    assert!(server.config.value.get("generator").is_none() && server.needs.contains("search-r1-train"));

    // an arm of its method takes the job's model and loop; one of s3's is refused
    let both = planned(&[recipe.clone(), evaluation("SearchR1", "")]).unwrap();
    let arm = &config(&both, "own-eval")["arms"][0];
    assert_eq!(arm["searcher"]["adapter"]["path"], "work://search-r1-train/export");
    assert_eq!((&arm["search"]["compatibility"], &arm["answer"]), (&json!("SearchR1"), &json!("Own")));
    assert_eq!(arm["search"]["maxSearches"], 2, "not the method's four");
    let own = planned(&[recipe.clone(), evaluation("SearchR1", "      topK: 5\n")]).unwrap();
    assert_eq!(config(&own, "own-eval")["arms"][0]["search"]["topK"], 5);
    let error = planned(&[recipe, evaluation("S3", "")]).unwrap_err();
    assert!(error[0].to_string().contains("use method SearchR1"), "{error:?}");
}

#[test]
fn a_baseline_is_played_by_the_generator_within_its_limits() {
    let baseline = |method: &str| {
        let changed = job_with(&[("method: Rag\n      topK: 3", &format!("method: {method}\n      topK: 5"))]);
        let of = |plan: &Plan, name: &str| config(plan, name)["baseline"].clone();
        changed.map(|plan| (of(&plan, "quickstart-baseline"), of(&plan, "quickstart-train")))
    };
    let plain = job_with(&[]).unwrap();
    assert!(config(&plain, "quickstart-baseline")["baseline"].get("method").is_none(), "naive RAG needs no words");
    let (direct, train) = baseline("Direct").unwrap();
    assert_eq!((&direct["method"], &direct), (&json!({"method": "Direct"}), &train));
    let (ircot, _) = baseline("IrCot").unwrap();
    let arm = &ircot["method"];
    assert_eq!(
        (&arm["method"], &arm["answer"], &arm["temperature"]),
        (&json!("IrCot"), &json!("Generator"), &json!(0.0))
    );
    assert_eq!((&arm["search"]["topK"], &arm["search"]["maxPassages"]), (&json!(5), &json!(15)));
    assert_eq!(arm["search"]["contextTokens"], 1024, "no longer than the generator takes");
    assert_eq!(baseline("ChainOfThought").unwrap().0["method"]["answer"], "Own");
    assert!(format!("{:?}", baseline("R1").unwrap_err()).contains("a baseline has no model of its own"));
}

#[test]
fn all_weights_a_template_and_a_buffer_reach_the_trainer() {
    let plan = job_with(&[
        ("  reward:\n", "  reward:\n    onInfrastructureFailure: Fail\n"),
        ("    adapter:\n      init:\n        uri: pvc://assets/adapters/searcher\n", "    adapter: {kind: Full}\n"),
        ("    device: Cpu\n", "    chatTemplate: {uri: pvc://data/chat.jinja}\n    device: Cpu\n"),
        ("    filters:\n", "    filters:\n      difficultyBuffer: {capacity: 9}\n"),
    ])
    .unwrap();
    let train = config(&plan, "quickstart-train");
    assert_eq!((&train["full"], &train["reward"]["onFailure"]), (&json!(true), &json!("Fail")));
    assert_eq!(train["data"]["difficultyBuffer"], json!({"capacity": 9, "share": 0.5}));
    for name in ["quickstart-train", "quickstart-baseline"] {
        assert_eq!(config(&plan, name)["searcher"]["chatTemplate"], "volume://data/chat.jinja");
    }
    assert!(config(&plan, "quickstart-baseline")["data"].get("difficultyBuffer").is_none());
    // wherever the job's searcher goes, its template goes
    let arms = config(&plan, "quickstart-eval")["arms"].as_array().unwrap();
    let searcher = arms.iter().find_map(|arm| arm.get("searcher")).unwrap();
    assert_eq!(searcher["chatTemplate"], "volume://data/chat.jinja");
    let disk = |plan: &Plan| plan.component("quickstart-train").unwrap().resources.disk;
    assert!(disk(&plan) > 20 * disk(&job_with(&[]).unwrap()), "masters and moments take room");
}

#[test]
fn servers_of_episodes_reach_the_trainer_and_are_no_part_of_its_work() {
    let with = |addresses: &str| {
        let engine =
            format!("    engine: {{endpoints: [{addresses}], apiKeySecretRef: {{name: v, key: k}}, timeout: 90s}}\n");
        let changes = [("  rollout:\n", format!("  rollout:\n{engine}")), ("Bitwise", "Relaxed".into())];
        let changes: Vec<(&str, &str)> = changes.iter().map(|(from, to)| (*from, to.as_str())).collect();
        job_with(&changes)
    };
    let plan = with("http://vllm:8000/v1").unwrap();
    assert_eq!(
        config(&plan, "quickstart-train")["rollout"]["engine"],
        json!({"endpoints": ["http://vllm:8000/v1"], "apiKeyFile": "secret://v/k",
            "dir": "work://quickstart-train/policies", "deadlineMs": 90_000, "attempts": 5})
    );
    // preflight and network rules know them
    let train = plan.component("quickstart-train").unwrap();
    let known: Vec<_> = train.endpoints.iter().map(|e| (e.url.as_str(), e.field.as_str())).collect();
    assert_eq!(known, [("http://vllm:8000/v1", "S3TrainingJob/quickstart rollout.engine.endpoints")]);
    // the baseline is the generator's alone
    assert!(config(&plan, "quickstart-baseline")["rollout"].get("engine").is_none());
    // other servers go on with the same work; none at all is another one
    let work = |plan: &Plan| {
        let train = plan.component("quickstart-train").unwrap();
        let mut alone = train.clone();
        alone.needs.clear();
        work_identity(plan, &alone, &Observed::default()).unwrap()
    };
    let more = with("http://vllm:8000/v1, https://other/v1").unwrap();
    assert_eq!(work(&plan), work(&more));
    assert_ne!(work(&plan), work(&job_with(&[("Bitwise", "Relaxed")]).unwrap()));
    let error = job_with(&[("  rollout:\n", "  rollout:\n    engine: {endpoints: [http://vllm/v1]}\n")]).unwrap_err();
    assert!(error[0].to_string().contains("determinism: Relaxed"), "{error:?}");
}
