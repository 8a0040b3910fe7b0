//! Constraints over several fields: each rule once as CEL (for the API server) and once in Rust (for clients without
//! one), with one message. A rule is attached to the schema of the type it speaks about; both evaluators find it there.

use serde_json::Value;

/// One constraint.
#[derive(Debug)]
pub struct Rule {
    /// The CEL expression; `self` is the object with its defaults.
    pub cel: &'static str,
    /// What is wrong and how to put it right.
    pub message: &'static str,
    /// The same in Rust.
    pub check: Check,
}

/// A rule's Rust form; true means that the rule holds.
#[derive(Clone, Copy, Debug)]
pub enum Check {
    /// Looks at one state.
    State(fn(&Value) -> bool),
    /// Compares with the state before an update: (new, old).
    Transition(fn(&Value, &Value) -> bool),
}

/// The `x-kubernetes-validations` value of some rules.
pub fn attach(rules: &[&Rule]) -> Value {
    rules.iter().map(|rule| serde_json::json!({"rule": rule.cel, "message": rule.message})).collect()
}

fn has(v: &Value, key: &str) -> bool {
    v.get(key).is_some_and(|v| !v.is_null())
}
fn count(v: &Value, keys: &[&str]) -> usize {
    keys.iter().filter(|key| has(v, key)).count()
}
fn int(v: &Value, pointer: &str) -> i64 {
    v.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}
fn float(v: &Value, pointer: &str) -> f64 {
    v.pointer(pointer).and_then(Value::as_f64).unwrap_or(0.0)
}
fn text<'a>(v: &'a Value, pointer: &str) -> &'a str {
    v.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}
fn items<'a>(v: &'a Value, pointer: &str) -> &'a [Value] {
    v.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}
fn arms(v: &Value) -> &[Value] {
    items(v, "/arms")
}
fn names_arm(v: &Value, name: &str) -> bool {
    arms(v).iter().any(|arm| text(arm, "/name") == name)
}

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident: $cel:literal, $message:literal, $check:expr;)*) => {
        $($(#[$doc])* pub static $name: Rule = Rule { cel: $cel, message: $message, check: $check };)*
        /// Every rule.
        pub static ALL: &[&Rule] = &[$(&$name),*];
    };
}

rules! {
    /// Names leave room for suffixes of child objects.
    NAME_LENGTH: "self.metadata.name.size() <= 40",
        "metadata.name is longer than 40 characters; shorten it: names of Jobs and Services are made from it",
        Check::State(|v| text(v, "/metadata/name").chars().count() <= 40);

    // shared
    /// A set of one's own has an address.
    DATASET_URI: "self.set != 'Custom' || has(self.uri)",
        "a Custom dataset needs `uri`; set it, or name a public set in `set`",
        Check::State(|v| text(v, "/set") != "Custom" || has(v, "uri"));
    /// An existing claim has its own size.
    STORAGE_CLAIM: "!has(self.claimName) || (!has(self.size) && !has(self.storageClassName))",
        "`size` and `storageClassName` describe a claim that is made; leave them out beside `claimName`",
        Check::State(|v| !has(v, "claimName") || count(v, &["size", "storageClassName"]) == 0);
    /// A variable has one origin.
    ENV_VALUE: "has(self.value) != has(self.secretKeyRef)",
        "set exactly one of `value` and `secretKeyRef`",
        Check::State(|v| count(v, &["value", "secretKeyRef"]) == 1);
    /// A model has one provider.
    ONE_PROVIDER: "[has(self.openAiCompatible), has(self.builtIn), has(self.anthropic), has(self.azureOpenAi), has(self.bedrock), has(self.managed)].filter(x, x).size() == 1",
        "set exactly one provider: openAiCompatible, builtIn, anthropic, azureOpenAi, bedrock or managed",
        Check::State(|v| count(v, &["openAiCompatible", "builtIn", "anthropic", "azureOpenAi", "bedrock", "managed"]) == 1);

    // RetrieverIndex
    /// An index has one origin.
    ONE_INDEX_SOURCE: "[has(self.build), has(self.__import__), has(self.webSearch)].filter(x, x).size() == 1",
        "set exactly one of `build`, `import` and `webSearch`",
        Check::State(|v| count(v, &["build", "import", "webSearch"]) == 1);
    /// The retriever sets some parameters of a web search itself.
    WEB_PARAMETERS: "!has(self.parameters) || !['q', 'engine', 'api_key', 'output'].exists(name, name in self.parameters)",
        "`parameters` holds `q`, `engine`, `api_key` or `output`; set `engine` and `apiKeySecretRef` instead, and leave the others out",
        Check::State(|v| v.get("parameters").is_none_or(|all| count(all, &["q", "engine", "api_key", "output"]) == 0));
    /// What only an index has is not asked of a web search.
    WEB_ALONE: "!has(self.source.webSearch) || (!has(self.reranker) && !has(self.audit.datasets) && !has(self.serving.autoscaling) && self.serving.replicas <= 1 && self.serving.device != 'Cuda')",
        "`source.webSearch` has no passages of its own, and its kept results have one writer; leave out `reranker`, `audit.datasets`, `serving.autoscaling` and `serving.device`, and set `serving.replicas` to at most 1",
        Check::State(|v| {
            let set = |at: &str| v.pointer(at).is_some_and(|value| !value.is_null());
            !set("/source/webSearch")
                || !(set("/reranker")
                    || set("/audit/datasets")
                    || set("/serving/autoscaling")
                    || int(v, "/serving/replicas") > 1
                    || text(v, "/serving/device") == "Cuda")
        });
    /// An index ranks somehow.
    SOME_LEG: "has(self.lexical) || has(self.dense)",
        "set `lexical: {}` for BM25, `dense` for embeddings, or both",
        Check::State(|v| count(v, &["lexical", "dense"]) > 0);
    /// Several workers have something to share.
    BUILD_WORKERS: "self.workers == 1 || (has(self.dense) && !has(self.dense.vectors))",
        "several `workers` share the embedding of passages; set `dense` without `vectors`, or `workers: 1`",
        Check::State(|v| int(v, "/workers") == 1 || (has(v, "dense") && v.pointer("/dense/vectors").is_none_or(Value::is_null)));
    /// The served ranking exists.
    HYBRID_LEGS: "self.serving.method == 'Default' || (has(self.source.build) ? ((self.serving.method == 'Dense' || has(self.source.build.lexical)) && (self.serving.method == 'Lexical' || has(self.source.build.dense))) : (has(self.source.__import__) && (self.serving.method == 'Dense' || has(self.source.__import__.lexical))))",
        "`serving.method` names a ranking that the index lacks; add `lexical` or `dense` to the source, or leave the method `Default`",
        Check::State(|v| {
            let method = text(v, "/serving/method");
            let leg = |at: &str| v.pointer(at).is_some_and(|leg| !leg.is_null());
            let (lexical, dense) = if leg("/source/build") {
                (leg("/source/build/lexical"), leg("/source/build/dense"))
            } else {
                (leg("/source/import/lexical"), leg("/source/import"))
            };
            method == "Default" || ((method == "Dense" || lexical) && (method == "Lexical" || dense))
        });
    /// Hybrid search needs a rule of fusion.
    HYBRID_FUSION: "self.serving.method != 'Hybrid' || self.fusion.kind != 'None'",
        "`serving.method: Hybrid` needs `fusion.kind: ReciprocalRank`",
        Check::State(|v| text(v, "/serving/method") != "Hybrid" || text(v, "/fusion/kind") != "None");
    /// Some ranking has weight.
    FUSION_WEIGHT: "self.lexicalWeight + self.denseWeight > 0.0",
        "give `lexicalWeight` or `denseWeight` a value above 0",
        Check::State(|v| float(v, "/lexicalWeight") + float(v, "/denseWeight") > 0.0);
    /// A factory string belongs to its kind.
    FACTORY_STRING: "(self.kind == 'Factory') == has(self.factory)",
        "`factory` is set exactly when `kind` is `Factory`",
        Check::State(|v| (text(v, "/kind") == "Factory") == has(v, "factory"));
    /// Lists belong to inverted lists.
    IVF_FIELDS: "self.kind in ['IvfFlat', 'IvfPq'] || !has(self.lists)",
        "`lists` belongs to `kind: IvfFlat` and `IvfPq`; leave it out",
        Check::State(|v| ["IvfFlat", "IvfPq"].contains(&text(v, "/kind")) || !has(v, "lists"));
    /// Code sizes belong to product quantisation.
    PQ_FIELDS: "self.kind == 'IvfPq' || !has(self.codeBytes)",
        "`codeBytes` belongs to `kind: IvfPq`; leave it out",
        Check::State(|v| text(v, "/kind") == "IvfPq" || !has(v, "codeBytes"));
    /// Neighbours belong to graphs.
    HNSW_FIELDS: "self.kind == 'Hnsw' || (!has(self.neighbors) && !has(self.efConstruction))",
        "`neighbors` and `efConstruction` belong to `kind: Hnsw`; leave them out",
        Check::State(|v| text(v, "/kind") == "Hnsw" || count(v, &["neighbors", "efConstruction"]) == 0);
    /// Visited lists belong to inverted lists.
    PROBES_FIELD: "self.kind in ['IvfFlat', 'IvfPq', 'Factory'] || !has(self.probes)",
        "`probes` belongs to `kind: IvfFlat`, `IvfPq` and `Factory`; leave it out",
        Check::State(|v| ["IvfFlat", "IvfPq", "Factory"].contains(&text(v, "/kind")) || !has(v, "probes"));
    /// Kept candidates belong to graphs.
    EF_SEARCH_FIELD: "self.kind in ['Hnsw', 'Factory'] || !has(self.efSearch)",
        "`efSearch` belongs to `kind: Hnsw` and `Factory`; leave it out",
        Check::State(|v| ["Hnsw", "Factory"].contains(&text(v, "/kind")) || !has(v, "efSearch"));
    /// The default number is allowed.
    SERVING_TOP_K: "self.topK <= self.topKLimit",
        "`topK` is above `topKLimit`; raise the limit or lower `topK`",
        Check::State(|v| int(v, "/topK") <= int(v, "/topKLimit"));
    /// A range is in order.
    AUTOSCALING_RANGE: "self.minReplicas <= self.maxReplicas",
        "`minReplicas` is above `maxReplicas`; exchange them",
        Check::State(|v| int(v, "/minReplicas") <= int(v, "/maxReplicas"));

    // S3TrainingJob
    /// Group-relative estimators need a group.
    GROUP_SIZE: "self.algorithm.estimator in ['Ppo', 'Reinforce', 'ReinforcePlusPlus'] || self.rollout.samples >= 2",
        "`algorithm.estimator` compares samples of one question; set `rollout.samples` to 2 or more, or use Ppo, Reinforce or ReinforcePlusPlus",
        Check::State(|v| ["Ppo", "Reinforce", "ReinforcePlusPlus"].contains(&text(v, "/algorithm/estimator")) || int(v, "/rollout/samples") >= 2);
    /// A group of one never varies: everything would be filtered.
    FILTER_SIZE: "!self.algorithm.filterZeroVariance || self.rollout.samples >= 2",
        "`algorithm.filterZeroVariance` compares samples of one question; set `rollout.samples` to 2 or more",
        Check::State(|v| v.pointer("/algorithm/filterZeroVariance") != Some(&Value::Bool(true)) || int(v, "/rollout/samples") >= 2);
    /// A bound of 1 or less would cut on-policy tokens.
    DUAL_CLIP: "self.dualClip == 0.0 || self.dualClip > 1.0",
        "`dualClip` must be above 1, or 0 for no bound",
        Check::State(|v| float(v, "/dualClip") == 0.0 || float(v, "/dualClip") > 1.0);
    /// No more can be selected than was found.
    MAX_SELECTED: "has(self.search.topK) || self.search.maxSelected <= self.retriever.topK",
        "`search.maxSelected` is above `retriever.topK`; lower it or raise `topK`",
        Check::State(|v| v.pointer("/search/topK").is_some() || int(v, "/search/maxSelected") <= int(v, "/retriever/topK"));
    /// The same where the loop has its own number.
    SEARCH_MAX_SELECTED: "!has(self.topK) || self.maxSelected <= self.topK",
        "`maxSelected` is above `topK`; lower it or raise `topK`",
        Check::State(|v| !has(v, "topK") || int(v, "/maxSelected") <= int(v, "/topK"));
    /// A turn fits.
    CONTEXT_HOLDS_TURN: "self.turnTokens < self.contextTokens",
        "`turnTokens` leaves no room in `contextTokens`; raise `contextTokens`",
        Check::State(|v| int(v, "/turnTokens") < int(v, "/contextTokens"));
    /// Bitwise needs 32-bit floats.
    BITWISE_DTYPE: "self.determinism != 'Bitwise' || self.searcher.dtype == 'F32'",
        "`determinism: Bitwise` is guaranteed for `searcher.dtype: F32` only; set F32, or `determinism: Relaxed`",
        Check::State(|v| text(v, "/determinism") != "Bitwise" || text(v, "/searcher/dtype") == "F32");
    /// Which provider answers is not repeated.
    BITWISE_FALLBACKS: "self.determinism != 'Bitwise' || !has(self.generator) || !has(self.generator.fallbacks) || self.generator.fallbacks.size() == 0",
        "`generator.fallbacks` answer by what is up, so `determinism: Bitwise` cannot hold; leave them out, or set `determinism: Relaxed`",
        Check::State(|v| text(v, "/determinism") != "Bitwise" || items(v, "/generator/fallbacks").is_empty());
    /// Who answers.
    NEEDS_GENERATOR: "has(self.generator) != (self.compatibility == 'SearchR1')",
        "`generator` answers from what the searcher found, so set it; under `compatibility: SearchR1` the searcher answers itself and none is asked, so leave it out",
        Check::State(|v| has(v, "generator") != (text(v, "/compatibility") == "SearchR1"));
    /// What belongs to a generator's answers.
    SEARCH_R1_ALONE: "self.compatibility != 'SearchR1' || (!has(self.judge) && !has(self.warmStart) && !self.data.filters.dropBaselineSolved && self.reward.kind == 'GainBeyondRag' && self.reward.baseline.method == 'Rag' && self.reward.baseline.topK == 3)",
        "`compatibility: SearchR1` rewards the exact match of the searcher's own answer: leave out `judge`, `warmStart`, `data.filters.dropBaselineSolved`, `reward.kind` and `reward.baseline`",
        Check::State(|v| {
            let absent = ["judge", "warmStart"].iter().all(|key| !has(v, key));
            let solved = v.pointer("/data/filters/dropBaselineSolved").and_then(Value::as_bool).unwrap_or(false);
            let plain = text(v, "/reward/kind") == "GainBeyondRag"
                && text(v, "/reward/baseline/method") == "Rag"
                && int(v, "/reward/baseline/topK") == 3;
            text(v, "/compatibility") != "SearchR1" || (absent && !solved && plain)
        });
    /// A part of Search-R1's reward.
    FORMAT_SCORE: "self.compatibility == 'SearchR1' || self.reward.formatScore == 0.0",
        "`reward.formatScore` is what `compatibility: SearchR1` gives a wrong answer; leave it out, or use `reward.shaping`",
        Check::State(|v| text(v, "/compatibility") == "SearchR1" || float(v, "/reward/formatScore").abs() <= 0.0);
    /// A baseline is played by the generator.
    BASELINE_METHOD: "!(self.method in ['S3', 'Sft', 'R1'])",
        "a baseline has no model of its own, and `method` S3, Sft and R1 are one; use Rag, Direct, ChainOfThought, DeepRetrieval, IrCot, SearchO1 or SearchR1",
        Check::State(|v| !["S3", "Sft", "R1"].contains(&text(v, "/method")));
    /// A buffer compares samples.
    BUFFER_SIZE: "!has(self.data.filters.difficultyBuffer) || self.rollout.samples >= 2",
        "`data.filters.difficultyBuffer` compares samples of a question; set `rollout.samples` to 2 or more",
        Check::State(|v| {
            v.pointer("/data/filters/difficultyBuffer").is_none_or(Value::is_null) || int(v, "/rollout/samples") >= 2
        });
    /// Something is trained.
    STEPS_OR_WARM_START: "self.steps > 0 || has(self.warmStart)",
        "`steps` is 0 and there is no `warmStart`, so nothing would be trained; set one of them",
        Check::State(|v| int(v, "/steps") > 0 || has(v, "warmStart"));
    /// Full training has no adapter to start from.
    FULL_HAS_NO_INIT: "self.kind != 'Full' || !has(self.init)",
        "`init` is an adapter, and `kind: Full` trains all weights; use `kind: Lora`, or name the merged model in `searcher.model`",
        Check::State(|v| text(v, "/kind") != "Full" || !has(v, "init"));
    /// A round is whole optimiser steps.
    MINI_BATCH_DIVIDES: "self.miniBatch == 0 || (self.questions * self.samples) % self.miniBatch == 0",
        "`miniBatch` must divide `questions` × `samples`; change one of them, or set 0 for the whole round",
        Check::State(|v| {
            let mini = int(v, "/miniBatch");
            mini == 0 || (int(v, "/questions") * int(v, "/samples")) % mini == 0
        });
    /// An optimiser step is whole backward passes.
    MICRO_BATCH_DIVIDES: "(self.miniBatch == 0 ? self.questions * self.samples : self.miniBatch) % self.microBatch == 0",
        "`microBatch` must divide `miniBatch` (or `questions` × `samples` where `miniBatch` is 0); change one of them",
        Check::State(|v| {
            let (mini, micro) = (int(v, "/miniBatch"), int(v, "/microBatch"));
            let step = if mini == 0 { int(v, "/questions") * int(v, "/samples") } else { mini };
            micro == 0 || step % micro == 0
        });
    /// A part exists.
    PART_RANGE: "int(self.split('/')[0]) < int(self.split('/')[1])",
        "the part's number starts at 0 and is below the number of parts: `0/2` and `1/2` are the halves",
        Check::State(|v| {
            let number = |text: &str| text.parse::<u64>().ok();
            v.as_str().and_then(|part| part.split_once('/')).is_none_or(|(a, b)| number(a) < number(b))
        });
    /// A start has one origin.
    ONE_RESUME: "has(self.jobRef) != has(self.source)",
        "set exactly one of `jobRef` and `source`",
        Check::State(|v| count(v, &["jobRef", "source"]) == 1);
    /// A stop rule says when.
    SOME_STOP: "has(self.targetGbr) || has(self.patience)",
        "set `targetGbr`, `patience` or both",
        Check::State(|v| count(v, &["targetGbr", "patience"]) > 0);
    /// Rounds are played ahead by one trainer alone.
    STALENESS_ALONE: "self.rollout.staleness == 0 || (self.parallelism.replicas == 1 && self.parallelism.gpusPerReplica <= 1)",
        "`rollout.staleness` plays rounds ahead, which several replicas do not; set it to 0, or `parallelism.replicas` to 1 and `parallelism.gpusPerReplica` to at most 1",
        Check::State(|v| {
            let alone = int(v, "/parallelism/replicas") <= 1 && int(v, "/parallelism/gpusPerReplica") <= 1;
            int(v, "/rollout/staleness") == 0 || alone
        });
    /// What a server computes is not repeated to the bit.
    ENGINE_RELAXED: "!has(self.rollout.engine) || self.determinism == 'Relaxed'",
        "`rollout.engine` computes by other arithmetic, so `determinism: Bitwise` cannot hold; set `determinism: Relaxed`, or leave `rollout.engine` out",
        Check::State(|v| v.pointer("/rollout/engine").is_none_or(Value::is_null) || text(v, "/determinism") == "Relaxed");
    /// What is handed over is an adapter.
    ENGINE_LORA: "!has(self.rollout.engine) || self.searcher.adapter.kind == 'Lora'",
        "`rollout.engine` is handed adapters, and `searcher.adapter.kind: Full` makes none; use `kind: Lora`, or leave `rollout.engine` out",
        Check::State(|v| v.pointer("/rollout/engine").is_none_or(Value::is_null) || text(v, "/searcher/adapter/kind") == "Lora");
    /// Servers report the model's own distribution.
    ENGINE_TEMPERATURE: "!has(self.engine) || self.temperature == 1.0",
        "`engine` reports log-probabilities at temperature 1, and others would be learned from wrongly; set `temperature` to 1",
        Check::State(|v| !has(v, "engine") || (float(v, "/temperature") - 1.0).abs() <= 0.0);
    /// A stop rule looks at a probe.
    STOP_NEEDS_PROBE: "!has(self.stop) || has(self.evaluation.probe)",
        "`stop` looks at the gain on held-out questions; set `evaluation.probe`",
        Check::State(|v| !has(v, "stop") || v.pointer("/evaluation/probe").is_some_and(|probe| !probe.is_null()));
    /// A guard has a bound.
    GUARD_BOUND: "has(self.min) || has(self.max)",
        "set `min`, `max` or both",
        Check::State(|v| count(v, &["min", "max"]) > 0);
    /// A checkpoint belongs to its model.
    SEARCHER_IMMUTABLE: "self.searcher.model == oldSelf.searcher.model && self.searcher.adapter == oldSelf.searcher.adapter",
        "`searcher.model` and `searcher.adapter` are immutable: checkpoints belong to them; make a new job",
        Check::Transition(|v, old| same(v, old, "/searcher/model") && same(v, old, "/searcher/adapter"));
    /// Rewards belong to their index.
    RETRIEVER_IMMUTABLE: "self.retriever == oldSelf.retriever",
        "`retriever` is immutable: rewards so far belong to it; make a new job",
        Check::Transition(|v, old| same(v, old, "/retriever"));
    /// Baseline answers belong to their generator.
    GENERATOR_IMMUTABLE: "has(self.generator) == has(oldSelf.generator) && (!has(self.generator) || (has(self.generator.provider.builtIn) == has(oldSelf.generator.provider.builtIn) && (!has(self.generator.provider.builtIn) || self.generator.provider.builtIn == oldSelf.generator.provider.builtIn) && has(self.generator.provider.openAiCompatible) == has(oldSelf.generator.provider.openAiCompatible) && (!has(self.generator.provider.openAiCompatible) || self.generator.provider.openAiCompatible.model == oldSelf.generator.provider.openAiCompatible.model) && self.generator.answer == oldSelf.generator.answer))",
        "the generator's model and `answer` are immutable: baseline answers belong to them; make a new job",
        Check::Transition(|v, old| {
            let at = "/generator/provider/openAiCompatible";
            has(v, "generator") == has(old, "generator") && v.pointer(at).is_some() == old.pointer(at).is_some()
                && ["/generator/provider/builtIn", "/generator/provider/openAiCompatible/model", "/generator/answer"]
                    .iter()
                    .all(|at| same(v, old, at))
        });
    /// A run has one seed.
    SEED_IMMUTABLE: "self.seed == oldSelf.seed",
        "`seed` is immutable; make a new object for another seed",
        Check::Transition(|v, old| same(v, old, "/seed"));
    /// A schedule is short enough to be told in the status.
    RUNS_BOUND: "!has(self.evaluation.runs) || self.steps / self.evaluation.runs.every <= 100",
        "`evaluation.runs` would make more than 100 evaluations; raise `every`",
        Check::State(|v| {
            let every = int(v, "/evaluation/runs/every");
            every == 0 || int(v, "/steps") / every <= 100
        });
    /// Done steps stay done.
    STEPS_GROW: "self.steps >= oldSelf.steps",
        "`steps` may grow but not shrink; set `suspend: true` to stop, or `stop` to end early",
        Check::Transition(|v, old| int(v, "/steps") >= int(old, "/steps"));

    // EvalRun
    /// A searching arm has an index.
    ARM_RETRIEVER: "has(self.retriever) || self.arms.all(a, has(a.retriever) || a.method in ['Direct', 'ChainOfThought', 'Sft', 'R1'])",
        "an arm that searches has no index; set `retriever` of the run or of the arm",
        Check::State(|v| {
            let without = ["Direct", "ChainOfThought", "Sft", "R1"];
            has(v, "retriever") || arms(v).iter().all(|arm| has(arm, "retriever") || without.contains(&text(arm, "/method")))
        });
    /// A budget comes from an arm that counts for itself.
    BUDGET_ARM: "self.arms.all(a, !has(a.budgetFrom) || self.arms.exists(b, b.name == a.budgetFrom && !has(b.budgetFrom)))",
        "`budgetFrom` must name another arm of this run that has no `budgetFrom` itself",
        Check::State(|v| arms(v).iter().all(|arm| {
            !has(arm, "budgetFrom")
                || arms(v).iter().any(|other| text(other, "/name") == text(arm, "/budgetFrom") && !has(other, "budgetFrom"))
        }));
    /// The baseline is an arm.
    BASELINE_ARM: "!has(self.statistics.baseline) || self.arms.exists(a, a.name == self.statistics.baseline)",
        "`statistics.baseline` names no arm of this run; use an arm's `name`",
        Check::State(|v| v.pointer("/statistics/baseline").is_none() || names_arm(v, text(v, "/statistics/baseline")));
    /// Compared arms exist.
    PAIRED_ARM: "!has(self.statistics.pairedAgainst) || self.statistics.pairedAgainst.all(n, self.arms.exists(a, a.name == n))",
        "`statistics.pairedAgainst` names no arm of this run; use an arm's `name`",
        Check::State(|v| items(v, "/statistics/pairedAgainst").iter().all(|n| names_arm(v, n.as_str().unwrap_or(""))));
    /// Eligibility is a matter of the corpus.
    ELIGIBLE_NEEDS_INDEX: "!self.sample.eligible || has(self.retriever)",
        "`sample.eligible` asks what the index can answer; set the run's `retriever`",
        Check::State(|v| v.pointer("/sample/eligible") != Some(&Value::Bool(true)) || has(v, "retriever"));
    /// Questions are frozen before the first answer.
    SAMPLE_IMMUTABLE: "self.sample == oldSelf.sample",
        "`sample` is immutable: the questions are frozen before the first answer; make a new EvalRun",
        Check::Transition(|v, old| same(v, old, "/sample"));
    /// An S3 arm has a searcher, an arm without one has none.
    S3_NEEDS_SEARCHER: "self.method == 'S3' ? has(self.searcher) : (!(self.method in ['Direct', 'ChainOfThought', 'Rag']) || !has(self.searcher))",
        "`searcher` belongs to arms with a model of their own: method S3 needs it; Direct, ChainOfThought and Rag have none",
        Check::State(|v| match text(v, "/method") {
            "S3" => has(v, "searcher"),
            "Direct" | "ChainOfThought" | "Rag" => !has(v, "searcher"),
            _ => true,
        });
    /// What was trained to answer is some model.
    OWN_MODEL: "!(self.method in ['Sft', 'R1']) || has(self.searcher)",
        "methods Sft and R1 are models that were trained to answer; name theirs as `searcher`",
        Check::State(|v| !["Sft", "R1"].contains(&text(v, "/method")) || has(v, "searcher"));
    /// Only methods that search and can answer have a choice.
    OWN_ANSWER: "!has(self.answer) || self.method in ['SearchR1', 'SearchO1', 'IrCot']",
        "`answer` is a choice of methods SearchR1, SearchO1 and IrCot alone; leave it out",
        Check::State(|v| !has(v, "answer") || ["SearchR1", "SearchO1", "IrCot"].contains(&text(v, "/method")));
    /// Only a searcher that selects is ablated.
    ABLATION_IS_S3: "self.ablation == 'None' || self.method == 'S3'",
        "`ablation` belongs to method S3",
        Check::State(|v| text(v, "/ablation") == "None" || text(v, "/method") == "S3");
    /// A loop is reproduced by the method that it is of.
    LOOP_COMPATIBILITY: "!has(self.compatibility) || self.compatibility == 'None' || self.compatibility == self.method",
        "`compatibility` S3 belongs to method S3, and SearchR1 to method SearchR1",
        Check::State(|v| {
            let of = text(v, "/compatibility");
            !has(v, "compatibility") || of == "None" || of == text(v, "/method")
        });
    /// A unit is of some budget.
    BUDGET_BY_NEEDS_FROM: "!has(self.budgetBy) || has(self.budgetFrom)",
        "`budgetBy` says how `budgetFrom` is counted; set both or none",
        Check::State(|v| !has(v, "budgetBy") || has(v, "budgetFrom"));
    /// A method without a loop has no loop's settings.
    LOOP_SETTINGS: "!(self.method in ['Direct', 'ChainOfThought', 'Rag']) || (!has(self.search) && !has(self.compatibility) && self.ablation == 'None')",
        "`search`, `compatibility` and `ablation` belong to methods that search in turns; leave them out of Direct, ChainOfThought and Rag",
        Check::State(|v| {
            !["Direct", "ChainOfThought", "Rag"].contains(&text(v, "/method"))
                || (count(v, &["search", "compatibility"]) == 0 && text(v, "/ablation") == "None")
        });
    /// A number of passages is for methods that take the top ones.
    TOP_K_METHOD: "!has(self.topK) || !(self.method in ['S3', 'Direct', 'ChainOfThought', 'Sft', 'R1'])",
        "`topK` belongs to Rag and other methods of retrieval; for S3 set `search.topK`",
        Check::State(|v| !has(v, "topK") || !["S3", "Direct", "ChainOfThought", "Sft", "R1"].contains(&text(v, "/method")));
    /// A Rag arm knows how many.
    RAG_NEEDS_COUNT: "self.method != 'Rag' || has(self.topK) != has(self.budgetFrom)",
        "method Rag needs exactly one of `topK` and `budgetFrom`",
        Check::State(|v| text(v, "/method") != "Rag" || count(v, &["topK", "budgetFrom"]) == 1);
    /// Only Rag takes a budget.
    BUDGET_IS_RAG: "!has(self.budgetFrom) || self.method == 'Rag'",
        "`budgetFrom` belongs to method Rag",
        Check::State(|v| !has(v, "budgetFrom") || text(v, "/method") == "Rag");
    /// An arm searches in one place.
    ONE_ARM_RETRIEVER: "has(self.indexRef) != has(self.control)",
        "set exactly one of `indexRef` and `control`",
        Check::State(|v| count(v, &["indexRef", "control"]) == 1);
    /// A searcher has one origin.
    ONE_SEARCHER: "has(self.jobRef) != has(self.model)",
        "set exactly one of `jobRef` and `model`",
        Check::State(|v| count(v, &["jobRef", "model"]) == 1);
    /// A step belongs to the choice of one.
    STEP_CHOICE: "(self.checkpoint == 'Step') == has(self.step)",
        "`step` is set exactly when `checkpoint` is `Step`",
        Check::State(|v| (text(v, "/checkpoint") == "Step") == has(v, "step"));
    /// Only a step is pinned by its digest.
    PIN_NEEDS_STEP: "!has(self.sha256) || has(self.step)",
        "`sha256` pins the adapter of `step`; set both, or leave it out",
        Check::State(|v| !has(v, "sha256") || has(v, "step"));
    /// An adapter lies over a model.
    ADAPTER_NEEDS_MODEL: "!has(self.adapter) || has(self.model)",
        "`adapter` lies over `model`; a job's searcher brings its own",
        Check::State(|v| !has(v, "adapter") || has(v, "model"));
}

fn same(new: &Value, old: &Value, pointer: &str) -> bool {
    new.pointer(pointer) == old.pointer(pointer)
}
