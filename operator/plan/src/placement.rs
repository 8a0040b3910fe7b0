//! What only a cluster honours of a plan: where and how often its components run, and on which volumes.
//!
//! It stands beside the components, not in them, so that a laptop and a cluster have equal components.

use crate::names::{
    baseline_name, evaluation_name, index_name, retriever_name, searcher_name, training_name, warm_start_name,
};
use crate::server::{server_name, servers_of};
use crate::{Component, Resources};
use s3_crds::{Autoscaling, PodOverrides, Queue, Storage};
use std::collections::BTreeMap;

/// How one component's pods are to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Placement {
    /// Pods that share its work (jobs) or its load (services).
    pub replicas: u32,
    /// CPU, memory and what else the resource asks for each pod.
    pub resources: s3_crds::Resources,
    /// Additions to its pods.
    pub pod: PodOverrides,
    /// The queue that its jobs enter.
    pub queue: Option<Queue>,
    /// How its servers follow the load, where the cluster can do that.
    pub autoscaling: Option<Autoscaling>,
}

impl Placement {
    fn of(replicas: u32, resources: &s3_crds::Resources, pod: Option<&PodOverrides>) -> Self {
        let pod = pod.cloned().unwrap_or_default();
        Self { replicas, resources: resources.clone(), pod, queue: None, autoscaling: None }
    }
}

/// What only a cluster honours.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Placements {
    /// By component name; what is missing is placed by defaults.
    components: BTreeMap<String, Placement>,
    /// The storage of each resource, by `Kind/name`.
    storage: BTreeMap<String, Storage>,
}

impl Placements {
    /// A component's placement; one replica with nothing asked where no resource says more.
    pub fn of(&self, component: &Component) -> Placement {
        let default = || Placement { replicas: 1, ..Placement::default() };
        self.components.get(&component.name).cloned().unwrap_or_else(default)
    }

    /// The storage that a resource (`Kind/name`) asks for.
    pub fn storage(&self, owner: &str) -> Storage {
        self.storage.get(owner).cloned().unwrap_or_default()
    }

    /// Reads what the resources say.
    pub(crate) fn read(resources: &Resources) -> Self {
        let mut all = Self::default();
        for (name, index) in &resources.indices {
            let spec = &index.object.spec;
            all.storage.insert(format!("RetrieverIndex/{name}"), spec.storage.clone());
            if let Some(build) = &spec.source.build {
                all.components
                    .insert(index_name(name), Placement::of(build.workers, &build.resources, build.pod.as_ref()));
            }
            let serving = &spec.serving;
            let placement = Placement {
                autoscaling: serving.autoscaling.clone().filter(|_| serving.replicas > 0),
                ..Placement::of(serving.replicas, &serving.resources, serving.pod.as_ref())
            };
            all.components.insert(retriever_name(name), placement);
        }
        let generators = resources
            .jobs
            .values()
            .filter_map(|job| Some((job.object.spec.generator.as_ref()?, job.object.spec.judge.as_ref())));
        let others = resources.runs.values().map(|run| (&run.object.spec.generator, run.object.spec.judge.as_ref()));
        for managed in generators.chain(others).flat_map(|(generator, judge)| servers_of(generator, judge)) {
            let placement = Placement::of(managed.replicas, &managed.resources, managed.pod.as_ref());
            // What has no name is in no plan.
            all.components.extend(server_name(managed).ok().map(|name| (name, placement)));
        }
        for (name, job) in &resources.jobs {
            let spec = &job.object.spec;
            all.storage.insert(format!("S3TrainingJob/{name}"), spec.checkpoint.storage.clone());
            let placement =
                Placement { queue: spec.queue.clone(), ..Placement::of(1, &spec.resources, spec.pod.as_ref()) };
            for component in [baseline_name(name), warm_start_name(name)] {
                all.components.insert(component, placement.clone());
            }
            if let Some(serving) = &spec.serving {
                let placement = Placement::of(serving.replicas, &serving.resources, serving.pod.as_ref());
                all.components.insert(searcher_name(name), placement);
            }
            all.components.insert(training_name(name), Placement { replicas: spec.parallelism.replicas, ..placement });
        }
        for (name, run) in &resources.runs {
            let spec = &run.object.spec;
            all.storage.insert(format!("EvalRun/{name}"), spec.storage.clone());
            let placement =
                Placement { queue: spec.queue.clone(), ..Placement::of(1, &spec.resources, spec.pod.as_ref()) };
            all.components.insert(evaluation_name(name), placement);
        }
        all
    }
}
