//! The one catalogue of condition reasons. Code sets conditions from it; documentation and alerts are made from it.

use crate::schema::Kind;
use std::fmt::Write as _;

/// One reason of one condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Kind of the object.
    pub kind: Kind,
    /// Type of the condition.
    pub condition: &'static str,
    /// Its status: `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// The reason, CamelCase.
    pub name: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// What a person does about it.
    pub action: &'static str,
}

macro_rules! catalogue {
    ($($name:ident: $kind:ident $condition:literal $status:literal $reason:literal, $meaning:literal, $action:literal;)*) => {
        /// Every reason as a constant, for code that sets a condition.
        pub mod reason {
            use super::{Kind, Reason};
            $(
                #[doc = $meaning]
                pub const $name: Reason = Reason {
                    kind: Kind::$kind, condition: $condition, status: $status, name: $reason, meaning: $meaning, action: $action,
                };
            )*
        }
        /// Every reason, by kind and condition.
        pub const REASONS: &[Reason] = &[$(reason::$name),*];
    };
}

catalogue! {
    INDEX_BUILD_PENDING: RetrieverIndex "Built" "False" "Pending",
        "The build has not started.",
        "Wait; if it lasts, see the events of the build pod.";
    INDEX_BUILDING: RetrieverIndex "Built" "False" "Building",
        "The index is being built; `status.progress` says how far.",
        "Nothing; it goes on by itself.";
    INDEX_BUILD_FAILED: RetrieverIndex "Built" "False" "BuildFailed",
        "The build ended with an error that a retry does not cure.",
        "Read the message, put the corpus, encoder or resources right; the change of the spec starts a new build.";
    INDEX_BUILT: RetrieverIndex "Built" "True" "Published",
        "The index files are published under `status.digest`.",
        "Nothing; it goes on by itself.";
    INDEX_OF_THE_WEB: RetrieverIndex "Built" "True" "WebSearch",
        "Nothing is built: a web search answers.",
        "Nothing; it goes on by itself.";
    INDEX_REBUILDING: RetrieverIndex "Built" "True" "Rebuilding",
        "The last digest is served while a changed spec is being built.",
        "Nothing; it goes on by itself.";
    RECALL_NOT_MEASURED: RetrieverIndex "RecallVerified" "Unknown" "NotMeasured",
        "Recall is measured after the build.",
        "Nothing; it goes on by itself.";
    RECALL_EXACT: RetrieverIndex "RecallVerified" "True" "Exact",
        "The index searches all vectors, so recall is 1 by construction.",
        "Nothing; it goes on by itself.";
    SERVING_STARTING: RetrieverIndex "Serving" "False" "Starting",
        "No server has passed its self-query yet.",
        "Wait; if it lasts, see the events of the serving pods (memory, volume, image).";
    SERVING_UP: RetrieverIndex "Serving" "True" "Available",
        "At least one server answers.",
        "Nothing; it goes on by itself.";
    SERVING_UNAVAILABLE: RetrieverIndex "Serving" "False" "Unavailable",
        "Servers that answered before do not any more.",
        "See the serving pods; jobs that use the index wait and resume by themselves.";
    SERVING_SCALED_TO_ZERO: RetrieverIndex "Serving" "False" "ScaledToZero",
        "`serving.replicas` is 0.",
        "Raise `serving.replicas` to use the index.";
    AUTOSCALED: RetrieverIndex "Autoscaled" "True" "Following",
        "A HorizontalPodAutoscaler sets the number of servers.",
        "Nothing; it goes on by itself. Whether it finds its metric is in its own conditions.";
    AUTOSCALING_UNAVAILABLE: RetrieverIndex "Autoscaled" "False" "AutoscalingUnavailable",
        "`serving.autoscaling` asks for a HorizontalPodAutoscaler, and none can be made here: `serving.replicas` counts.",
        "Set the chart's `autoscaling.enabled`; the server has to serve autoscaling/v2 or v2beta2.";
    INDEX_READY: RetrieverIndex "Ready" "True" "Ready",
        "The index of the current spec is built and served.",
        "Nothing; it goes on by itself.";
    INDEX_NOT_READY: RetrieverIndex "Ready" "False" "Progressing",
        "The index is on its way; the other conditions say where.",
        "Nothing; it goes on by itself.";
    INDEX_INVALID: RetrieverIndex "Ready" "False" "InvalidSpec",
        "The spec asks for something that cannot be done; the message names the field.",
        "Change the field that the message names.";
    INDEX_NAME_TAKEN: RetrieverIndex "Ready" "False" "NameTaken",
        "An object that the index needs has the name of one that the operator did not make; it is left alone.",
        "Rename or delete the object that the message names, or rename the index.";
    INDEX_UNSUPPORTED: RetrieverIndex "Ready" "False" "UnsupportedField",
        "The spec sets a field that this version does not honour yet.",
        "Remove the field that the message names, or upgrade.";
    INDEX_VOLUME_SHAPE: RetrieverIndex "Ready" "False" "VolumeShape",
        "The volume cannot be mounted where the pods run (several nodes, ReadWriteOnce).",
        "Use a ReadWriteMany class, `storage.mode: LocalCopy`, or one replica.";
    INDEX_IN_USE: RetrieverIndex "Ready" "False" "InUse",
        "The object is being deleted and still used; it serves its users and refuses new ones.",
        "Wait for or delete the users that the message names.";
    BASELINE_PENDING: S3TrainingJob "BaselineReady" "False" "Pending",
        "Baseline answers are not computed yet.",
        "Nothing; it goes on by itself.";
    BASELINE_COMPUTING: S3TrainingJob "BaselineReady" "False" "Computing",
        "Naive RAG answers of the training questions are being computed.",
        "Nothing; it goes on by itself.";
    BASELINE_FAILED: S3TrainingJob "BaselineReady" "False" "BaselineFailed",
        "Baseline answers cannot be computed.",
        "See the message: most often the generator or the index does not answer.";
    BASELINE_COMPLETE: S3TrainingJob "BaselineReady" "True" "Complete",
        "Every training question has its baseline answer.",
        "Nothing; it goes on by itself.";
    CHECKPOINT_NONE: S3TrainingJob "Checkpointed" "False" "NoCheckpoint",
        "No checkpoint is published yet.",
        "Nothing; it goes on by itself.";
    CHECKPOINT_VERIFIED: S3TrainingJob "Checkpointed" "True" "Verified",
        "`status.lastCheckpoint` is published and its checksums hold.",
        "Nothing; it goes on by itself.";
    TRAINING_WAITING_INDEX: S3TrainingJob "Training" "False" "WaitingForIndex",
        "The index is not ready.",
        "See the conditions of the RetrieverIndex that `retriever.indexRef` names.";
    TRAINING_WAITING_JOB: S3TrainingJob "Training" "False" "WaitingForJob",
        "The job whose checkpoint this one starts from has none yet, or still works.",
        "Wait for that job, or suspend it.";
    TRAINING_WAITING_GATEWAY: S3TrainingJob "Training" "False" "WaitingForGenerator",
        "The generator gateway does not answer yet.",
        "Check endpoint and secret of `generator.provider`.";
    TRAINING_WAITING_SECRET: S3TrainingJob "Training" "False" "WaitingForSecret",
        "A Secret or key that the spec names does not exist.",
        "Create the Secret that the message names.";
    TRAINING_QUEUED: S3TrainingJob "Training" "False" "Queued",
        "The job waits for admission to its queue.",
        "Nothing; it is admitted when there is quota. The message says what Kueue waits for.";
    TRAINING_QUEUE_UNAVAILABLE: S3TrainingJob "Training" "False" "QueueUnavailable",
        "The job asks for a Kueue Workload, and none can be made here.",
        "Install Kueue and set the chart's `kueue.enabled`, use `queue.mode: Labels`, or leave `queue` out.";
    TRAINING_UNSCHEDULABLE: S3TrainingJob "Training" "False" "Unschedulable",
        "No node takes the trainer pods.",
        "Compare requested GPUs, memory and node selector with the nodes.";
    TRAINING_STARTING: S3TrainingJob "Training" "False" "Starting",
        "Pods of an attempt are being started.",
        "Wait; if it lasts, see the message and the events of the pods (image, volume, secret).";
    TRAINING_STOPPING: S3TrainingJob "Training" "False" "Stopping",
        "Nothing new starts; older pods save and leave, or have left.",
        "Nothing; it goes on by itself. A pod on a lost node is fenced and no longer waited for.";
    TRAINING_WARM_START: S3TrainingJob "Training" "True" "WarmStart",
        "Supervised training before the first policy update step.",
        "Nothing; it goes on by itself.";
    TRAINING_RUNNING: S3TrainingJob "Training" "True" "Stepping",
        "Policy update steps are being made.",
        "Nothing; it goes on by itself.";
    TRAINING_BACKOFF: S3TrainingJob "Training" "False" "Backoff",
        "An attempt failed; the next starts when the delay is over.",
        "The message names the failure class and the time of the next attempt.";
    TRAINING_DONE: S3TrainingJob "Training" "False" "Finished",
        "Training is over.",
        "Nothing; it goes on by itself.";
    JOB_SUSPENDING: S3TrainingJob "Suspended" "False" "Suspending",
        "The job checkpoints and stops.",
        "Nothing; it goes on by itself.";
    JOB_SUSPENDED: S3TrainingJob "Suspended" "True" "Suspended",
        "`suspend` is true; the job holds no pods and no GPUs.",
        "Set `suspend: false` to go on.";
    JOB_PAUSED: S3TrainingJob "Suspended" "True" "PausedByGuard",
        "A guard with action `Pause` has stopped the job; it is saved and holds no pods and no GPUs.",
        "See what `CollapseSuspected` says. To go on, set `suspend: true` and then `false`, or change the guard.";
    JOB_NOT_SUSPENDED: S3TrainingJob "Suspended" "False" "NotSuspended",
        "The job may run.",
        "Nothing; it goes on by itself.";
    COLLAPSE_NONE: S3TrainingJob "CollapseSuspected" "False" "WithinBounds",
        "All guarded values are within their bounds.",
        "Nothing; it goes on by itself.";
    COLLAPSE_SUSPECTED: S3TrainingJob "CollapseSuspected" "True" "BoundPassed",
        "A guarded value is beyond its bound; the message names it.",
        "Look at the learning curves and episodes of the report; lower the learning rate, or start from an earlier checkpoint.";
    SCHEDULE_TEMPLATE: S3TrainingJob "Evaluated" "False" "TemplateUnfit",
        "The `EvalRun` that `evaluation.runs.templateRef` names does not exist or evaluates nothing of this job, or the name of an evaluation is taken.",
        "Create it, or put right what the message says; nothing that was trained is lost.";
    SCHEDULE_GOING: S3TrainingJob "Evaluated" "Unknown" "Scheduled",
        "Scheduled evaluations are still to come or under way; `status.evaluations` lists them.",
        "Nothing; it goes on by itself.";
    SCHEDULE_FAILED: S3TrainingJob "Evaluated" "False" "EvaluationFailed",
        "All scheduled evaluations are over, and one of them or more failed.",
        "See the `EvalRun` that the message names; delete it to have it made again.";
    SCHEDULE_DONE: S3TrainingJob "Evaluated" "True" "Evaluated",
        "Every scheduled evaluation is finished; `status.evaluations` summarises them.",
        "Nothing; it goes on by itself.";
    JOB_PROGRESSING: S3TrainingJob "Succeeded" "Unknown" "Progressing",
        "The job has not finished; the other conditions say where it is.",
        "Nothing; it goes on by itself.";
    JOB_SUCCEEDED: S3TrainingJob "Succeeded" "True" "StepsDone",
        "All steps are done and the adapter is exported.",
        "Nothing; it goes on by itself.";
    JOB_STOPPED_EARLY: S3TrainingJob "Succeeded" "True" "StoppedEarly",
        "`stop` has ended the training before its last step; the message says by which rule.",
        "Nothing; it goes on by itself.";
    JOB_INVALID: S3TrainingJob "Succeeded" "False" "InvalidSpec",
        "The spec asks for something that cannot be done; the message names the field.",
        "Change the field that the message names.";
    JOB_NAME_TAKEN: S3TrainingJob "Succeeded" "Unknown" "NameTaken",
        "An object that the job needs has the name of one that the operator did not make; it is left alone.",
        "Rename or delete the object that the message names, or rename the job.";
    JOB_UNSUPPORTED: S3TrainingJob "Succeeded" "False" "UnsupportedField",
        "The spec sets a field that this version does not honour yet.",
        "Remove the field that the message names, or upgrade.";
    JOB_ATTEMPTS_EXHAUSTED: S3TrainingJob "Succeeded" "False" "AttemptsExhausted",
        "`failurePolicy.maxAttempts` attempts failed.",
        "Read the last failure in the message; raise the number or cure the cause.";
    JOB_OUT_OF_MEMORY: S3TrainingJob "Succeeded" "False" "OutOfMemory",
        "The trainer exceeded its memory.",
        "Raise the memory limit, or lower `rollout.batch` and `rollout.microBatch`.";
    JOB_NOT_A_NUMBER: S3TrainingJob "Succeeded" "False" "NotANumber",
        "A loss, gradient or reward was not a number.",
        "Lower the learning rate or raise `optimizer.epsilon`; the last checkpoint is sound.";
    JOB_INVALID_INPUT: S3TrainingJob "Succeeded" "False" "InvalidInput",
        "A worker refused its input: a model, dataset or index.",
        "Put right what the message names.";
    JOB_DEADLINE: S3TrainingJob "Succeeded" "False" "DeadlineExceeded",
        "`activeDeadlineSeconds` are over.",
        "The last checkpoint is kept; raise the deadline in a new job that resumes from it.";
    JOB_GPU_BUDGET: S3TrainingJob "Succeeded" "False" "GpuBudgetExhausted",
        "`gpuSecondBudget` is used up.",
        "The last checkpoint is kept; raise the budget in a new job that resumes from it.";
    EVAL_WAITING_INDEX: EvalRun "Evaluating" "False" "WaitingForIndex",
        "An index that an arm searches is not ready.",
        "See the conditions of that RetrieverIndex.";
    EVAL_WAITING_JOB: EvalRun "Evaluating" "False" "WaitingForJob",
        "A training job whose searcher is evaluated has not made it yet.",
        "Wait for the job, or choose `checkpoint: Latest`, which any checkpoint serves.";
    EVAL_WAITING_GATEWAY: EvalRun "Evaluating" "False" "WaitingForGenerator",
        "The generator gateway does not answer yet.",
        "Check endpoint and secret of `generator.provider`.";
    EVAL_WAITING_SECRET: EvalRun "Evaluating" "False" "WaitingForSecret",
        "A Secret or key that the spec names does not exist.",
        "Create the Secret that the message names.";
    EVAL_QUEUED: EvalRun "Evaluating" "False" "Queued",
        "The run waits for admission to its queue.",
        "Nothing; it is admitted when there is quota. The message says what Kueue waits for.";
    EVAL_QUEUE_UNAVAILABLE: EvalRun "Evaluating" "False" "QueueUnavailable",
        "The run asks for a Kueue Workload, and none can be made here.",
        "Install Kueue and set the chart's `kueue.enabled`, use `queue.mode: Labels`, or leave `queue` out.";
    EVAL_STARTING: EvalRun "Evaluating" "False" "Starting",
        "Pods of an attempt are being started.",
        "Wait; if it lasts, see the message and the events of the pods (node, image, volume, secret).";
    EVAL_STOPPING: EvalRun "Evaluating" "False" "Stopping",
        "Nothing new starts; older pods save and leave, or have left.",
        "Nothing; it goes on by itself.";
    EVAL_RUNNING: EvalRun "Evaluating" "True" "Answering",
        "Questions are being answered; `status.done` says how many.",
        "Nothing; it goes on by itself.";
    EVAL_BACKOFF: EvalRun "Evaluating" "False" "Backoff",
        "An attempt failed; the next goes on after the last finished question.",
        "The message names the failure and the time of the next attempt.";
    EVAL_DONE: EvalRun "Evaluating" "False" "Finished",
        "The evaluation is over.",
        "Nothing; it goes on by itself.";
    EVAL_SUSPENDED: EvalRun "Suspended" "True" "Suspended",
        "`suspend` is true; the run holds no pods.",
        "Set `suspend: false` to go on.";
    EVAL_NOT_SUSPENDED: EvalRun "Suspended" "False" "NotSuspended",
        "The run may go on.",
        "Nothing; it goes on by itself.";
    EVAL_PROGRESSING: EvalRun "Succeeded" "Unknown" "Progressing",
        "The run has not finished; the other conditions say where it is.",
        "Nothing; it goes on by itself.";
    EVAL_SUCCEEDED: EvalRun "Succeeded" "True" "Complete",
        "Every question of every arm is answered; results and report are published.",
        "Nothing; it goes on by itself.";
    EVAL_INVALID: EvalRun "Succeeded" "False" "InvalidSpec",
        "The spec asks for something that cannot be done; the message names the field.",
        "Change the field that the message names.";
    EVAL_NAME_TAKEN: EvalRun "Succeeded" "Unknown" "NameTaken",
        "An object that the run needs has the name of one that the operator did not make; it is left alone.",
        "Rename or delete the object that the message names, or rename the run.";
    EVAL_INVALID_INPUT: EvalRun "Succeeded" "False" "InvalidInput",
        "A worker refused its input: a model, dataset or index.",
        "Put right what the message names.";
    EVAL_ATTEMPTS_EXHAUSTED: EvalRun "Succeeded" "False" "AttemptsExhausted",
        "Too many attempts failed.",
        "Read the last failure in the message and cure its cause; finished questions are kept.";
    EVAL_DEADLINE: EvalRun "Succeeded" "False" "DeadlineExceeded",
        "`activeDeadlineSeconds` are over.",
        "Raise the deadline in a new run; cached answers cost nothing again.";
}

/// The catalogue as Markdown, one table a kind.
pub fn reasons_markdown() -> String {
    let mut page = String::from(
        "# Condition reasons\n\nMade from `crds/src/reasons.rs` by `s3-operator explain-reasons --output docs/reasons.md`; do not edit.\n",
    );
    for kind in Kind::ALL {
        // writing to a String cannot fail
        let _ = write!(
            page,
            "\n## {}\n\n| condition | status | reason | meaning | what to do |\n|---|---|---|---|---|\n",
            kind.name()
        );
        for r in REASONS.iter().filter(|r| r.kind == kind) {
            let _ =
                writeln!(page, "| `{}` | {} | `{}` | {} | {} |", r.condition, r.status, r.name, r.meaning, r.action);
        }
    }
    page
}
