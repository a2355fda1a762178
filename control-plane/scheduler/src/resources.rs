//! What a pod asks for and what a node has, in whole numbers that add and compare fast.

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use std::collections::BTreeMap;

/// Amounts: CPU in thousandths of a core, memory and ephemeral storage in bytes, extended resources in units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub milli_cpu: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
    /// Extended resources and huge pages, by name.
    pub extended: BTreeMap<String, i64>,
}

/// A pod that asks for nothing is counted as this much when nodes are compared, so that such pods spread.
/// Source: the scheduler's non-zero requests, 100 millicores and 200 MB.
const UNSTATED_CPU: i64 = 100;
const UNSTATED_MEMORY: i64 = 200 * 1024 * 1024;

impl Resources {
    /// Reads a map of quantities. What cannot be parsed counts as zero: the API server refuses such objects.
    pub fn from_map(map: &BTreeMap<String, ApiQuantity>) -> Self {
        let mut out = Self::default();
        for (name, quantity) in map {
            let Ok(quantity) = Quantity::parse(&quantity.0) else {
                continue;
            };
            match name.as_str() {
                "cpu" => out.milli_cpu = quantity.milli_value(),
                "memory" => out.memory = quantity.value(),
                "ephemeral-storage" => out.ephemeral_storage = quantity.value(),
                "pods" => {}
                _ => {
                    out.extended.insert(name.clone(), quantity.value());
                }
            }
        }
        out
    }

    pub fn add(&mut self, other: &Self) {
        self.combine(other, |a, b| a + b);
    }

    pub fn subtract(&mut self, other: &Self) {
        self.combine(other, |a, b| a - b);
        self.extended.retain(|_, amount| *amount != 0);
    }

    fn max(&mut self, other: &Self) {
        self.combine(other, i64::max);
    }

    fn combine(&mut self, other: &Self, f: impl Fn(i64, i64) -> i64) {
        self.milli_cpu = f(self.milli_cpu, other.milli_cpu);
        self.memory = f(self.memory, other.memory);
        self.ephemeral_storage = f(self.ephemeral_storage, other.ephemeral_storage);
        for (name, amount) in &other.extended {
            let own = self.extended.entry(name.clone()).or_default();
            *own = f(*own, *amount);
        }
    }

    /// What each resource lacks if `self` were to be placed where `free` is left, by name.
    pub fn lacking_in<'a>(&'a self, free: &'a Self) -> impl Iterator<Item = &'a str> + 'a {
        let plain = [
            ("cpu", self.milli_cpu, free.milli_cpu),
            ("memory", self.memory, free.memory),
            (
                "ephemeral-storage",
                self.ephemeral_storage,
                free.ephemeral_storage,
            ),
        ];
        let extended = self.extended.iter().map(|(name, wanted)| {
            (
                name.as_str(),
                *wanted,
                free.extended.get(name).copied().unwrap_or_default(),
            )
        });
        plain
            .into_iter()
            .chain(extended)
            .filter(|(_, wanted, free)| *wanted > 0 && wanted > free)
            .map(|(name, ..)| name)
    }
}

/// What the pod asks for: the sum over its containers and sidecars, or the most that its start needs at one time.
/// Source: Kubernetes, "Sidecar containers and Pod lifecycle: resource sharing within containers".
pub fn of_pod(pod: &Pod) -> Resources {
    pod.spec
        .as_ref()
        .map(|spec| of_spec(spec, stated))
        .unwrap_or_default()
}

/// As [`of_pod`], with a floor for containers that ask for nothing: for comparing nodes only.
pub fn of_pod_for_scoring(pod: &Pod) -> Resources {
    pod.spec
        .as_ref()
        .map(|spec| of_spec(spec, stated_or_floor))
        .unwrap_or_default()
}

fn of_spec(spec: &PodSpec, of: fn(&Container) -> Resources) -> Resources {
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&of(container));
    }
    let mut sidecars = Resources::default();
    let mut start = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let mut needed = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            running.add(&needed);
            sidecars.add(&needed);
            needed = sidecars.clone();
        } else {
            needed.add(&sidecars);
        }
        start.max(&needed);
    }
    running.max(&start);
    if let Some(requests) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        pod_level(&mut running, requests);
    }
    if let Some(overhead) = &spec.overhead {
        running.add(&Resources::from_map(overhead));
    }
    running
}

/// Requests stated for the pod as a whole stand in for the sum of its containers'.
fn pod_level(sum: &mut Resources, requests: &BTreeMap<String, ApiQuantity>) {
    let whole = Resources::from_map(requests);
    if requests.contains_key("cpu") {
        sum.milli_cpu = whole.milli_cpu;
    }
    if requests.contains_key("memory") {
        sum.memory = whole.memory;
    }
    for (name, amount) in whole
        .extended
        .into_iter()
        .filter(|(name, _)| name.starts_with("hugepages-"))
    {
        sum.extended.insert(name, amount);
    }
}

fn stated(container: &Container) -> Resources {
    let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    requests.map(Resources::from_map).unwrap_or_default()
}

fn stated_or_floor(container: &Container) -> Resources {
    let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    let mut out = requests.map(Resources::from_map).unwrap_or_default();
    if requests.is_none_or(|r| !r.contains_key("cpu")) {
        out.milli_cpu = UNSTATED_CPU;
    }
    if requests.is_none_or(|r| !r.contains_key("memory")) {
        out.memory = UNSTATED_MEMORY;
    }
    out
}
