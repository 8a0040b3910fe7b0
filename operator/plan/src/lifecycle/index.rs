//! `RetrieverIndex`: build (where there is one) → serve → ready; swap when a rebuild is done; go only when nobody uses it.

use super::Said;
use super::stage::{Failing, Move, Stage, Waiting, next_move};
use s3_crds::reason;

/// What the Deployment of the servers says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serving {
    /// It is there.
    pub present: bool,
    /// Servers wanted.
    pub wanted: u32,
    /// Servers that pass their self-query.
    pub ready: u32,
    /// All of them serve the newest settings, and no others run.
    pub current: bool,
    /// Some server was ready before, as the status says.
    pub was_up: bool,
    /// Why a server does not start.
    pub trouble: Option<String>,
}

/// Everything that is decided from.
#[derive(Clone, Debug)]
pub struct IndexView<'a> {
    /// What fetches its corpus and encoder, where they lie in hubs and buckets.
    pub fetch: Option<Stage<'a>>,
    /// Its build; a web search has none.
    pub build: Option<Stage<'a>>,
    /// Its servers.
    pub serving: Serving,
    /// Being deleted.
    pub terminating: bool,
    /// Who uses it.
    pub users: &'a [String],
    /// An older build is served.
    pub served_before: bool,
}

/// The decision.
#[derive(Clone, Debug, PartialEq)]
pub struct IndexDecision {
    /// What to do with the fetch, where there is one.
    pub fetch: Option<Move>,
    /// What to do with the build, where there is one.
    pub build: Option<Move>,
    /// Whether the servers are to be held as the plan says.
    pub serve: bool,
    /// Whether the object may go.
    pub release: bool,
    /// Conditions.
    pub said: Vec<Said>,
    /// When to look again, seconds since 1970.
    pub again: Option<i64>,
}

/// Decides.
pub fn decide_index(view: &IndexView<'_>) -> IndexDecision {
    let fetch = view.fetch.as_ref().map(next_move);
    let build = view.build.as_ref().map(next_move);
    let done = matches!(build, None | Some(Move::Done { .. }));
    let mut open = view.fetch.iter().chain(&view.build).rev().flat_map(|stage| stage.attempts.iter().rev());
    let phase = open.find(|attempt| attempt.open()).map(|attempt| {
        let live = &attempt.live;
        live.unschedulable.clone().or_else(|| live.waiting.clone()).unwrap_or_else(|| live.phase.clone())
    });
    let mut said = Vec::new();
    let mut again = None;
    // The build waits for what is fetched, so whatever holds that up speaks.
    let speaks = match &fetch {
        Some(fetch) if !matches!(fetch, Move::Done { .. }) => Some(fetch),
        _ => build.as_ref(),
    };
    said.push(match speaks {
        None => (reason::INDEX_OF_THE_WEB, String::new()),
        Some(Move::Done { .. }) if done => (reason::INDEX_BUILT, String::new()),
        Some(Move::Fail(Failing { message, .. })) => (reason::INDEX_BUILD_FAILED, message.clone()),
        Some(Move::Wait(Waiting::Backoff { until, message, .. })) => {
            again = Some(*until);
            (reason::INDEX_BUILD_PENDING, format!("{message}; again at {}", super::job::clock(*until)))
        }
        _ if view.served_before => (reason::INDEX_REBUILDING, phase.unwrap_or_default()),
        Some(Move::Run { .. } | Move::Record { .. }) => (reason::INDEX_BUILDING, phase.unwrap_or_default()),
        _ => (reason::INDEX_BUILD_PENDING, String::new()),
    });
    // Flat indices search all vectors; no other kind is built yet.
    said.extend(build.as_ref().map(|_| {
        if done { (reason::RECALL_EXACT, String::new()) } else { (reason::RECALL_NOT_MEASURED, String::new()) }
    }));
    let serving = &view.serving;
    let serving_said = match serving {
        Serving { present: true, wanted: 0, .. } => (reason::SERVING_SCALED_TO_ZERO, String::new()),
        Serving { ready, wanted, .. } if *ready > 0 => {
            (reason::SERVING_UP, format!("{ready} of {wanted} servers are ready"))
        }
        Serving { was_up: true, present: true, trouble, .. } => {
            (reason::SERVING_UNAVAILABLE, trouble.clone().unwrap_or_default())
        }
        Serving { trouble, .. } => (reason::SERVING_STARTING, trouble.clone().unwrap_or_default()),
    };
    said.push(serving_said);
    said.push(if view.terminating && !view.users.is_empty() {
        (reason::INDEX_IN_USE, format!("used by {}", view.users.join(", ")))
    } else if done && serving.ready > 0 && serving.current {
        (reason::INDEX_READY, String::new())
    } else {
        (reason::INDEX_NOT_READY, String::new())
    });
    let release = view.terminating && view.users.is_empty();
    IndexDecision { serve: done && !release, fetch, build, release, said, again }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::attempt::{Attempted, Live, Record, Verdict};
    use super::*;
    use s3_crds::FailurePolicy;

    fn view<'a>(attempts: &'a [Attempted], policy: &'a FailurePolicy, users: &'a [String]) -> IndexView<'a> {
        let build = Stage {
            component: "i",
            print: Some("p"),
            attempts,
            policy,
            stop: None,
            may_start: true,
            now: 10,
            seed: "u",
        };
        IndexView {
            fetch: None,
            build: Some(build),
            serving: Serving::default(),
            terminating: false,
            users,
            served_before: false,
        }
    }

    fn built() -> Attempted {
        let verdict = Verdict::Done { digest: "d".into(), summary: serde_json::Value::Null };
        let record = Some(Record::new(verdict, 5, 1));
        Attempted { number: 1, print: "p".into(), started: 1, gpus: 0, anew: 0, record, live: Live::default() }
    }

    fn reasons(decision: &IndexDecision) -> Vec<&str> {
        decision.said.iter().map(|(reason, _)| reason.name).collect()
    }

    #[test]
    fn build_serve_ready_rebuild_and_go() {
        let policy = FailurePolicy::default();
        let new = decide_index(&view(&[], &policy, &[]));
        assert_eq!((new.build.clone(), new.serve), (Some(Move::Start { attempt: 1 }), false));
        assert_eq!(reasons(&new), ["Pending", "NotMeasured", "Starting", "Progressing"]);
        let done = [built()];
        let started = decide_index(&view(&done, &policy, &[]));
        assert!(started.serve);
        assert_eq!(reasons(&started), ["Published", "Exact", "Starting", "Progressing"]);
        let up = Serving { present: true, wanted: 1, ready: 1, current: true, ..Serving::default() };
        let ready = decide_index(&IndexView { serving: up.clone(), ..view(&done, &policy, &[]) });
        assert_eq!(reasons(&ready), ["Published", "Exact", "Available", "Ready"]);
        let mut changed = IndexView { serving: up.clone(), served_before: true, ..view(&done, &policy, &[]) };
        changed.build.as_mut().unwrap().print = Some("q");
        let rebuild = decide_index(&changed);
        assert_eq!(
            (rebuild.build.clone(), rebuild.serve),
            (Some(Move::Start { attempt: 2 }), false),
            "the old one stays as it is"
        );
        assert_eq!(reasons(&rebuild), ["Rebuilding", "NotMeasured", "Available", "Progressing"]);
        let users = ["S3TrainingJob/a".to_owned()];
        let held = decide_index(&IndexView { serving: up.clone(), terminating: true, ..view(&done, &policy, &users) });
        assert_eq!((reasons(&held)[3], held.serve, held.release), ("InUse", true, false));
        assert!(held.said[3].1.contains("S3TrainingJob/a"));
        let free = decide_index(&IndexView { serving: up, terminating: true, ..view(&done, &policy, &[]) });
        assert!(free.release && !free.serve);
        let web = IndexView { build: None, ..view(&[], &policy, &[]) };
        let waits = decide_index(&web);
        assert_eq!((waits.build.clone(), waits.serve), (None, true), "nothing is built");
        assert_eq!(reasons(&waits), ["WebSearch", "Starting", "Progressing"]);
        let answers = Serving { present: true, wanted: 1, ready: 1, current: true, ..Serving::default() };
        assert_eq!(reasons(&decide_index(&IndexView { serving: answers, ..web })), ["WebSearch", "Available", "Ready"]);
        let lost = Serving { present: true, wanted: 1, was_up: true, ..Serving::default() };
        assert_eq!(reasons(&decide_index(&IndexView { serving: lost, ..view(&done, &policy, &[]) }))[2], "Unavailable");
    }
}
