//! The class of a failure, told from exit code, pod status and message.

use crate::{Exit, ExitKind};
use s3_crds::{FailureAction, FailureClass};

/// How a pod ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodEnd {
    /// Exit code of the worker, when its container terminated.
    pub exit_code: Option<i32>,
    /// Signal that killed it.
    pub signal: Option<i32>,
    /// The container's reason (`OOMKilled`).
    pub container_reason: Option<String>,
    /// The pod's reason (`Evicted`, `NodeLost`, `DeadlineExceeded`).
    pub pod_reason: Option<String>,
    /// The pod was deleted or its node went away before the worker had ended.
    pub taken: bool,
    /// The last line that is known.
    pub message: Option<String>,
}

/// Tells the class and a line for people.
pub fn classify(end: &PodEnd) -> (FailureClass, String) {
    let text = end.message.as_deref().map(str::trim).filter(|text| !text.is_empty());
    let with = |what: String| match text {
        Some(text) => format!("{what}: {text}"),
        None => what,
    };
    if end.container_reason.as_deref() == Some("OOMKilled") {
        return (FailureClass::OutOfMemory, with("the container exceeded its memory limit".into()));
    }
    let reason = end.pod_reason.as_deref().unwrap_or_default();
    if matches!(
        reason,
        "Evicted"
            | "NodeLost"
            | "NodeShutdown"
            | "Shutdown"
            | "Terminated"
            | "Preempting"
            | "NodeAffinity"
            | "UnexpectedAdmissionError"
    ) {
        return (FailureClass::NodeLost, with(format!("the pod was taken from its node ({reason})")));
    }
    let Some(exit) = end.exit_code.map(Exit::Code).or(end.signal.map(Exit::Signal)) else {
        return (FailureClass::NodeLost, with("the pod vanished before its worker had ended".into()));
    };
    let said = |what: &str| with(format!("{} ({what})", exit.describe()));
    match exit.kind() {
        ExitKind::PeerLost => (FailureClass::Communication, said("another replica was lost")),
        // A process that its library ended; it names itself.
        ExitKind::Defect | ExitKind::Unavailable if text.is_some_and(|text| text.contains("NCCL")) => {
            (FailureClass::Communication, said("communication between GPUs"))
        }
        ExitKind::Input => (FailureClass::InvalidInput, said("wrong input")),
        ExitKind::NotANumber => (FailureClass::NotANumber, said("not a number")),
        ExitKind::Unavailable => (FailureClass::DependencyUnavailable, said("something it needs is out of reach")),
        ExitKind::Io => (FailureClass::Storage, said("reading or writing failed")),
        // It saved and left because the pod was to go.
        ExitKind::Interrupted => (FailureClass::NodeLost, said("interrupted from outside")),
        // Of a component that has no guards: nobody pauses it.
        ExitKind::Paused => (FailureClass::Unknown, said("paused")),
        ExitKind::Fenced => (FailureClass::NodeLost, said("fenced by another process")),
        ExitKind::Done => (FailureClass::Unknown, said("ended well and left no outcome")),
        // 137 and 143: killed, most often because the pod was deleted.
        ExitKind::Defect if end.taken => (FailureClass::NodeLost, said("killed from outside")),
        ExitKind::Defect => (FailureClass::Unknown, said("defect")),
    }
}

/// Of the failures of several replicas the one that the attempt failed of: who lost another one only followed.
pub fn cause(failures: impl IntoIterator<Item = (FailureClass, String)>) -> Option<(FailureClass, String)> {
    let mut first = None;
    for failure in failures {
        if failure.0 != FailureClass::Communication {
            return Some(failure);
        }
        first.get_or_insert(failure);
    }
    first
}

/// What follows a failure of a class without a rule.
pub fn default_action(class: FailureClass) -> FailureAction {
    match class {
        FailureClass::OutOfMemory | FailureClass::NotANumber | FailureClass::InvalidInput => FailureAction::Fail,
        FailureClass::NodeLost
        | FailureClass::Communication
        | FailureClass::DependencyUnavailable
        | FailureClass::Storage
        | FailureClass::Unknown => FailureAction::Resume,
    }
}

/// The class as a word of messages and metrics.
pub fn class_word(class: FailureClass) -> &'static str {
    match class {
        FailureClass::OutOfMemory => "OutOfMemory",
        FailureClass::NodeLost => "NodeLost",
        FailureClass::Communication => "Communication",
        FailureClass::NotANumber => "NotANumber",
        FailureClass::DependencyUnavailable => "DependencyUnavailable",
        FailureClass::Storage => "Storage",
        FailureClass::InvalidInput => "InvalidInput",
        FailureClass::Unknown => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_its_class() {
        let exit = |code| PodEnd { exit_code: Some(code), ..PodEnd::default() };
        let reason = |name: &str| PodEnd { pod_reason: Some(name.into()), ..exit(137) };
        let cases = [
            (PodEnd { container_reason: Some("OOMKilled".into()), ..exit(137) }, FailureClass::OutOfMemory),
            (reason("Evicted"), FailureClass::NodeLost),
            (reason("NodeLost"), FailureClass::NodeLost),
            (PodEnd::default(), FailureClass::NodeLost),
            (exit(64), FailureClass::InvalidInput),
            (exit(65), FailureClass::NotANumber),
            (exit(69), FailureClass::DependencyUnavailable),
            (PodEnd { message: Some("NCCL error 2".into()), ..exit(70) }, FailureClass::Communication),
            (exit(70), FailureClass::Unknown),
            (exit(76), FailureClass::Communication),
            (exit(74), FailureClass::Storage),
            (exit(75), FailureClass::NodeLost),
            (exit(77), FailureClass::NodeLost),
            (PodEnd { taken: true, ..exit(143) }, FailureClass::NodeLost),
            (exit(137), FailureClass::Unknown),
            (exit(0), FailureClass::Unknown),
        ];
        for (end, class) in cases {
            assert_eq!(classify(&end).0, class, "{end:?}");
        }
        let told = classify(&PodEnd { message: Some("disk full\n".into()), ..exit(74) });
        assert_eq!(told.1, "exit code 74 (reading or writing failed): disk full");
    }
}
