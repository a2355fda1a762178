//! The clusters of this machine, as their files tell.
use crate::layout::{Cluster, ClusterName, Dirs, StoreKind, state_root};
use crate::output::{Row, WithHint, age};
use crate::supervise::{SUPERVISOR, recorded};
use anyhow::{Context, Result};
use serde::Serialize;

/// The cluster of this name, if there is one.
///
/// # Errors
/// When its file is damaged.
pub fn find(name: &ClusterName) -> Result<Option<Cluster>> {
    let path = Dirs::of(name).cluster_file();
    match std::fs::read(&path) {
        Ok(text) => Ok(Some(
            serde_json::from_slice(&text)
                .with_context(|| format!("{} is damaged", path.display()))
                .hint(format!("remove the cluster: skep down --name {name}"))?,
        )),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The cluster of this name.
///
/// # Errors
/// When there is none.
pub fn existing(name: &ClusterName) -> Result<Cluster> {
    find(name)?
        .with_context(|| format!("there is no cluster {name}"))
        .hint("`skep list` shows those there are, `skep up` makes one")
}

/// Whether its supervisor runs.
pub fn running(cluster: &Cluster) -> bool {
    recorded(&cluster.dirs().processes())
        .get(SUPERVISOR)
        .is_some_and(|p| p.alive())
}

/// The names of all clusters that left files here.
pub fn names() -> Vec<ClusterName> {
    let folders = [state_root(), crate::layout::run_root()]
        .into_iter()
        .filter_map(|d| std::fs::read_dir(d).ok());
    let mut names: Vec<ClusterName> = folders
        .flatten()
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect();
    names.sort();
    names.dedup();
    names
}

/// A line of `skep list`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    /// The cluster's name.
    name: String,
    /// Whether it runs.
    running: bool,
    /// How many nodes it has.
    nodes: u8,
    /// Where objects are kept.
    store: StoreKind,
    /// Where the API is reached.
    api: String,
    /// When it was made.
    created: String,
    /// Its administrator's access.
    kubeconfig: String,
    /// Its running processes by name, with the numbers the machine knows them by.
    processes: std::collections::BTreeMap<String, u32>,
    #[serde(skip)]
    age: i64,
}

impl Row for Listed {
    const COLUMNS: &'static [&'static str] =
        &["NAME", "STATUS", "NODES", "STORE", "AGE", "API", "KUBECONFIG"];
    const WIDE_FROM: usize = 6;

    fn cells(&self) -> Vec<String> {
        let status = if self.running { "Running" } else { "Stopped" };
        let store = format!("{:?}", self.store).to_lowercase();
        let api = self.api.clone();
        vec![
            self.name.clone(),
            status.into(),
            self.nodes.to_string(),
            store,
            age(self.age),
            api,
            self.kubeconfig.clone(),
        ]
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}

/// All clusters of this machine.
///
/// # Errors
/// When a cluster's file is damaged.
pub fn clusters() -> Result<Vec<Listed>> {
    let now = jiff::Timestamp::now();
    let found = names().iter().map(find).collect::<Result<Vec<_>>>()?;
    Ok(found
        .into_iter()
        .flatten()
        .map(|cluster| listed(&cluster, now))
        .collect())
}

fn listed(cluster: &Cluster, now: jiff::Timestamp) -> Listed {
    let created = jiff::Timestamp::from_second(cluster.created).unwrap_or_default();
    let alive = recorded(&cluster.dirs().processes())
        .into_iter()
        .filter(|(_, p)| p.alive());
    Listed {
        name: cluster.name.to_string(),
        running: running(cluster),
        nodes: cluster.nodes,
        store: cluster.store,
        api: cluster.machine_url(),
        created: created.to_string(),
        kubeconfig: cluster.dirs().kubeconfig().display().to_string(),
        processes: alive.map(|(name, p)| (name, p.pid)).collect(),
        age: now.as_second() - cluster.created,
    }
}
