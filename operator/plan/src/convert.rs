//! Values of the resources as the workers' configurations write them.

use crate::sources::{IntoConfig, same_names};
use s3_config as config;
use s3_crds as crds;

same_names!(crds::Device => config::DeviceKind { Auto, Cpu, Cuda });
same_names!(crds::DType => config::DTypeKind { F32, Bf16 });
same_names!(crds::Determinism => config::Determinism { Bitwise, Relaxed });
same_names!(crds::Compatibility => config::Compatibility { None, S3, SearchR1 });
same_names!(crds::InitialPolicy => config::InitialPolicy { All, Selected, None });
same_names!(crds::UnselectedPolicy => config::UnselectedPolicy { Drop, Keep });
same_names!(crds::RetrievalMethod => config::RetrievalMethod { Default, Lexical, Dense, Hybrid });
same_names!(crds::Ablation => config::Ablation { None, NoInitial, NoSelection, NoBoth });
same_names!(crds::BudgetUnit => config::BudgetUnit { Passages, Tokens });
same_names!(crds::ControlRetriever => config::Control { Empty, Random, Oracle, Evidence });
same_names!(crds::Pooling => config::Pooling { Mean, Cls });
same_names!(crds::RewardKind => config::RewardKind { GainBeyondRag, ReferenceCode, GenerationAccuracy });
same_names!(crds::OnInfrastructureFailure => config::FailurePolicy { Mask, Fail });
same_names!(crds::Estimator => config::Estimator {
    Rloo, Ppo, Grpo, Reinforce, ReinforcePlusPlus, ReinforcePlusPlusBaseline, DrGrpo, Opo
});
same_names!(crds::Surrogate => config::Surrogate { Clip, SequenceClip, WeightClip });
same_names!(crds::Aggregation => config::Aggregation { TokenMean, SequenceMean, SequenceSum });
same_names!(crds::KlPlacement => config::KlPlacement { Loss, Reward });
same_names!(crds::ImportanceCorrection => config::ImportanceCorrection {
    None, TokenTruncated, SequenceTruncated, TokenMasked, SequenceMasked
});
same_names!(crds::KlKind => config::KlKind { K1, K2, K3 });
same_names!(crds::Correction => config::Correction { None, Holm, BenjaminiHochberg });
same_names!(crds::MetricName => config::Metric {
    GenAcc, ExactMatch, F1, Gbr, Span, JudgeAccuracy, EvidenceRecall, Searches, Passages, Tokens, Latency, Cost
});
same_names!(crds::WarmStartTask => config::SftTask { Protocol, ShortAnswer });

impl IntoConfig for &crds::Fusion {
    type Config = config::FusionConfig;
    fn into_config(self) -> config::FusionConfig {
        config::FusionConfig {
            constant: self.constant,
            lexical_weight: self.lexical_weight,
            dense_weight: self.dense_weight,
            depth: self.depth as usize,
        }
    }
}

impl IntoConfig for &crds::Optimizer {
    type Config = config::OptimizerConfig;
    fn into_config(self) -> config::OptimizerConfig {
        config::OptimizerConfig {
            learning_rate: self.learning_rate,
            beta1: self.beta1,
            beta2: self.beta2,
            epsilon: self.epsilon,
            weight_decay: self.weight_decay,
            max_grad_norm: self.max_grad_norm,
            warmup_steps: self.warmup_steps,
        }
    }
}

impl IntoConfig for &crds::Algorithm {
    type Config = config::AlgorithmConfig;
    fn into_config(self) -> config::AlgorithmConfig {
        config::AlgorithmConfig {
            estimator: self.estimator.into_config(),
            surrogate: self.surrogate.into_config(),
            clip_low: self.clip_low,
            clip_high: self.clip_high,
            dual_clip: self.dual_clip,
            kl_coefficient: self.kl.coefficient,
            kl: self.kl.kind.into_config(),
            kl_placement: self.kl.placement.into_config(),
            entropy_coefficient: self.entropy_coefficient,
            aggregation: self.aggregation.into_config(),
            horizon: self.horizon,
            filter_zero_variance: self.filter_zero_variance,
            importance: config::ImportanceConfig {
                correction: self.importance.correction.into_config(),
                cap: self.importance.cap,
                floor: self.importance.floor,
            },
            gamma: self.gae.gamma,
            lambda: self.gae.lambda,
            value_clip: self.critic.clip,
            value_coefficient: self.critic.coefficient,
            epochs: self.epochs,
        }
    }
}

impl IntoConfig for &crds::Rollout {
    type Config = config::RolloutConfig;
    fn into_config(self) -> config::RolloutConfig {
        config::RolloutConfig {
            questions: self.questions as usize,
            samples: self.samples as usize,
            temperature: self.temperature,
            top_p: self.top_p,
            batch: self.batch as usize,
            micro_batch: self.micro_batch as usize,
            mini_batch: self.mini_batch as usize,
            staleness: self.staleness,
            workers: self.workers as usize,
            engine: None,
        }
    }
}

impl IntoConfig for &crds::Reward {
    type Config = config::RewardConfig;
    fn into_config(self) -> config::RewardConfig {
        config::RewardConfig {
            kind: self.kind.into_config(),
            invalid_turn: self.shaping.invalid_turn,
            search_cost: self.shaping.search_cost,
            on_failure: self.on_infrastructure_failure.into_config(),
            format_score: self.format_score,
        }
    }
}

impl IntoConfig for &crds::WarmStart {
    type Config = config::SftConfig;
    fn into_config(self) -> config::SftConfig {
        config::SftConfig {
            task: self.task.into_config(),
            epochs: self.epochs,
            batch: self.batch as usize,
            micro_batch: self.micro_batch as usize,
            search_share: self.search_share,
            query_trials: self.query_trials as usize,
            hindsight: self.hindsight,
            evidence: self.evidence,
            limit: self.limit.map(|limit| limit as usize),
        }
    }
}

/// The loop's settings; the template file is read by whoever loads the configuration.
pub(crate) fn search(
    search: &crds::Search,
    top_k: u32,
    method: crds::RetrievalMethod,
    compatibility: crds::Compatibility,
    prompt_template: Option<std::path::PathBuf>,
) -> config::SearchConfig {
    config::SearchConfig {
        max_searches: search.max_searches,
        top_k,
        initial_top_k: search.initial_top_k,
        max_selected: search.max_selected,
        max_passages: search.max_passages,
        initial: search.initial.into_config(),
        unselected: search.unselected.into_config(),
        passage_tokens: search.passage_tokens,
        observation_tokens: search.observation_tokens,
        turn_tokens: search.turn_tokens,
        context_tokens: search.context_tokens,
        max_corrections: search.max_corrections,
        prompt_template,
        prompt_text: None,
        marker_line: search.prompt_marker.clone(),
        method: method.into_config(),
        compatibility: compatibility.into_config(),
        ablation: config::Ablation::None,
    }
}
