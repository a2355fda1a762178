//! Carries steps out: what a sandbox and a container need is made, in order, and undone when the pod is gone.

use crate::cgroups::Cgroups;
use crate::client::{Runtime, RuntimeError};
use crate::config::{ContainerInput, SandboxInput};
use crate::dirs::Dirs;
use crate::images::Present;
use crate::{config, hooks, images, mounts, volumes};
use agent_pods::dns::{ClusterDns, Resolver, hosts, resolver};
use agent_pods::env::{EnvInputs, environment};
use agent_pods::fields::Facts;
use agent_pods::image::{ImageAction, decide};
use agent_pods::model::{Member, PodModel};
use agent_pods::names::hostname;
use agent_pods::resize::Resized;
use agent_pods::resources::{self, Limits, qos, qos_folder};
use agent_pods::security;
use agent_pods::volumes::Sources;
use k8s_cri::v1::{Mount, PodSandboxConfig};
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

/// What the executor knows of its node.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The node's name, the host name of host-network pods.
    pub node_name: String,
    /// The cluster's DNS.
    pub dns: ClusterDns,
    /// Bytes of memory.
    pub memory: i64,
}

/// Takes events about pods (upstream's reasons: `Pulled`, `Created`, `Started`, `Killing` …).
pub trait Recorder: Send + Sync {
    /// Records that something normal happened to `container`, or to the pod as a whole.
    fn normal(&self, pod: &PodModel, container: Option<&str>, reason: &'static str, message: String);
    /// Records that something failed.
    fn warning(&self, pod: &PodModel, container: Option<&str>, reason: &'static str, message: String);
}

/// Why a container was not started: the waiting reason and the message to report.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct StartError {
    /// `ErrImagePull`, `CreateContainerConfigError`, `CreateContainerError`, `RunContainerError` …
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl StartError {
    fn new(reason: &'static str, why: impl ToString) -> Self {
        Self {
            reason,
            message: why.to_string(),
        }
    }
}

/// What a container start needs to know.
#[derive(Clone, Copy, Debug)]
pub struct StartInput<'a> {
    /// The container.
    pub member: &'a Member,
    /// Number of this run.
    pub attempt: u32,
    /// Back-off after this run, in seconds.
    pub backoff: u32,
    /// The sandbox.
    pub sandbox: &'a str,
    /// The sandbox's attempt number.
    pub sandbox_attempt: u32,
    /// The container whose processes an ephemeral one sees.
    pub target: Option<&'a str>,
    /// Objects the pod refers to.
    pub sources: &'a Sources,
    /// Node and sandbox facts.
    pub facts: &'a Facts,
}

/// Carries steps out on one node.
pub struct Executor {
    runtime: Runtime,
    dirs: Dirs,
    cgroups: Cgroups,
    settings: Settings,
    host_resolver: Resolver,
}

impl Executor {
    /// For the node with these settings; reads the node's own resolver configuration once.
    #[must_use]
    pub fn new(runtime: Runtime, dirs: Dirs, cgroups: Cgroups, settings: Settings) -> Self {
        let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        Self {
            runtime,
            dirs,
            cgroups,
            settings,
            host_resolver: Resolver::parse(&text),
        }
    }

    /// The runtime.
    #[must_use]
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The node's folders.
    #[must_use]
    pub fn dirs(&self) -> &Dirs {
        &self.dirs
    }

    fn cgroup(&self, pod: &PodModel) -> String {
        self.cgroups.pod(pod.uid(), qos_folder(qos(pod.spec())))
    }

    fn hostname(&self, pod: &PodModel) -> String {
        match pod.host_network() {
            true => self.settings.node_name.clone(),
            false => hostname(pod.spec().hostname.as_deref(), pod.name()),
        }
    }

    fn sandbox_config(
        &self,
        pod: &PodModel,
        attempt: u32,
        annotations: &BTreeMap<String, String>,
    ) -> PodSandboxConfig {
        let logs = self.dirs.pod_logs(pod.namespace(), pod.name(), pod.uid());
        config::sandbox(
            pod,
            &SandboxInput {
                attempt,
                hostname: if pod.host_network() {
                    String::new()
                } else {
                    self.hostname(pod)
                },
                logs: &logs.to_string_lossy(),
                resolver: resolver(pod, &self.settings.dns, &self.host_resolver),
                cgroup: &self.cgroup(pod),
                annotations,
                seccomp: &self.dirs.seccomp().to_string_lossy(),
            },
        )
    }

    /// Makes the pod's folders, cgroup and sandbox; returns the sandbox's identifier.
    ///
    /// # Errors
    /// A message for the `FailedCreatePodSandBox` event.
    pub async fn create_sandbox(
        &self,
        pod: &PodModel,
        attempt: u32,
        annotations: &BTreeMap<String, String>,
    ) -> Result<String, String> {
        let logs = self.dirs.pod_logs(pod.namespace(), pod.name(), pod.uid());
        for folder in [&logs, &self.dirs.pod(pod.uid())] {
            fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        }
        self.cgroups
            .make(&self.cgroup(pod), &resources::pod(pod))
            .map_err(|e| e.to_string())?;
        let config = self.sandbox_config(pod, attempt, annotations);
        let handler = pod
            .spec()
            .runtime_class_name
            .as_deref()
            .filter(|h| *h != "runc")
            .unwrap_or_default();
        let made = self.runtime.run_sandbox(config, handler).await;
        made.map_err(|e| format!("Failed to create pod sandbox: {e}"))
    }

    /// Fills the pod's volumes.
    ///
    /// # Errors
    /// A message for the `FailedMount` event.
    pub fn set_up_volumes(&self, pod: &PodModel, sources: &Sources, facts: &Facts) -> Result<(), String> {
        volumes::set_up(&self.dirs, pod, sources, facts).map_err(|e| e.to_string())
    }

    /// Brings the volumes made of files up to date; true when one changed.
    ///
    /// # Errors
    /// A message for the `FailedMount` event.
    pub fn refresh_volumes(&self, pod: &PodModel, sources: &Sources, facts: &Facts) -> Result<bool, String> {
        volumes::refresh(&self.dirs, pod, sources, facts).map_err(|e| e.to_string())
    }

    /// Gets the image, then makes and starts the container and runs its postStart hook.
    ///
    /// # Errors
    /// [`StartError`], with the reason the status shows.
    pub async fn start(
        &self,
        pod: &PodModel,
        i: &StartInput<'_>,
        events: &dyn Recorder,
    ) -> Result<(), StartError> {
        let name = i.member.spec.name.as_str();
        if i.attempt > 0
            && let Err(error) = self.cgroups.set(&self.cgroup(pod), &resources::pod(pod))
        {
            // The container may have been stopped to get other limits, which the pod must have room for.
            tracing::debug!(pod = pod.name(), %error, "the pod's limits stay for now");
        }
        let image = self.image(pod, i, events).await?;
        let config = self.container_config(pod, i, &image)?;
        let of = self.sandbox_config(pod, i.sandbox_attempt, &BTreeMap::new());
        let id = self.runtime.create(i.sandbox, config, of).await.map_err(|e| {
            events.warning(pod, Some(name), "Failed", format!("Error: {e}"));
            StartError::new("CreateContainerError", e)
        })?;
        events.normal(pod, Some(name), "Created", format!("Container created: {name}"));
        if let Err(error) = self.runtime.start(&id).await {
            events.warning(pod, Some(name), "Failed", format!("Error: {error}"));
            return Err(StartError::new("RunContainerError", error));
        }
        events.normal(pod, Some(name), "Started", format!("Container started: {name}"));
        self.post_start(pod, i, &id, events).await
    }

    /// Gives the pod and these of its running containers the limits that its specification asks for.
    ///
    /// # Errors
    /// A message; worth trying again, since memory in use may be freed meanwhile.
    pub async fn resize(&self, pod: &PodModel, containers: &[Resized]) -> Result<(), String> {
        let cgroup = self.cgroup(pod);
        let limits = resources::pod(pod);
        // A part may not get more than the whole: the pod's own limits are away while its containers' change.
        let without = Limits {
            cpu_quota: 0,
            memory: 0,
            ..limits
        };
        self.cgroups.set(&cgroup, &without).map_err(|e| e.to_string())?;
        for container in containers {
            let Some(member) = pod.member(&container.name) else {
                continue;
            };
            let limits = config::new_limits(member);
            let updated = self.runtime.update_resources(&container.id, limits).await;
            updated.map_err(|e| e.to_string())?;
        }
        self.cgroups.set(&cgroup, &limits).map_err(|e| e.to_string())
    }

    async fn post_start(
        &self,
        pod: &PodModel,
        i: &StartInput<'_>,
        id: &str,
        events: &dyn Recorder,
    ) -> Result<(), StartError> {
        let Some(hook) = i
            .member
            .spec
            .lifecycle
            .as_ref()
            .and_then(|l| l.post_start.as_ref())
        else {
            return Ok(());
        };
        let ip = i.facts.pod_ips.first().copied();
        if let Err(error) = hooks::run(&self.runtime, id, i.member, hook, ip).await {
            let message = format!("PostStartHook failed: {error}");
            events.warning(
                pod,
                Some(&i.member.spec.name),
                "FailedPostStartHook",
                message.clone(),
            );
            let grace = agent_pods::terminate::spec_grace(pod);
            if let Err(error) = self.runtime.stop(id, grace).await {
                tracing::warn!(container = id, %error, "container not stopped after its postStart hook failed");
            }
            return Err(StartError::new("PostStartHookError", message));
        }
        Ok(())
    }

    /// The image by the container's policy.
    async fn image(
        &self,
        pod: &PodModel,
        i: &StartInput<'_>,
        events: &dyn Recorder,
    ) -> Result<Present, StartError> {
        let spec = &i.member.spec;
        let name = spec.image.as_deref().unwrap_or_default();
        let unreachable = |e: RuntimeError| StartError::new("ImageInspectError", e);
        let present = images::find(&self.runtime, name).await.map_err(unreachable)?;
        match (
            decide(spec.image_pull_policy.as_deref(), name, present.is_some()),
            present,
        ) {
            (ImageAction::Use, Some(present)) => {
                let message = format!(
                    "Container image {name:?} already present on machine and can be accessed by the pod"
                );
                events.normal(pod, Some(&spec.name), "Pulled", message);
                Ok(present)
            }
            (ImageAction::Refuse, _) => {
                let message = format!("Container image {name:?} is not present with pull policy of Never");
                events.warning(pod, Some(&spec.name), "ErrImageNeverPull", message.clone());
                Err(StartError::new("ErrImageNeverPull", message))
            }
            _ => self.pull(pod, i, name, events).await,
        }
    }

    async fn pull(
        &self,
        pod: &PodModel,
        i: &StartInput<'_>,
        image: &str,
        events: &dyn Recorder,
    ) -> Result<Present, StartError> {
        let container = Some(i.member.spec.name.as_str());
        events.normal(pod, container, "Pulling", format!("Pulling image {image:?}"));
        let named = pod.spec().image_pull_secrets.iter().flatten();
        let secrets = named.filter_map(|s| i.sources.secrets.get(&s.name));
        let credentials = images::credentials(secrets, image);
        let begun = std::time::Instant::now();
        if let Err(error) = images::pull(&self.runtime, image, &credentials).await {
            events.warning(
                pod,
                container,
                "Failed",
                format!("Failed to pull image {image:?}: {error}"),
            );
            events.warning(pod, container, "Failed", "Error: ErrImagePull".to_owned());
            return Err(StartError::new("ErrImagePull", error));
        }
        let found = images::find(&self.runtime, image)
            .await
            .map_err(|e| StartError::new("ImageInspectError", e))?;
        let found = found.ok_or_else(|| StartError::new("ErrImagePull", "the pulled image is not there"))?;
        let took = begun.elapsed().as_millis();
        let message = format!(
            "Successfully pulled image {image:?} in {took}ms. Image size: {} bytes.",
            found.size
        );
        events.normal(pod, container, "Pulled", message);
        Ok(found)
    }

    fn container_config(
        &self,
        pod: &PodModel,
        i: &StartInput<'_>,
        image: &Present,
    ) -> Result<k8s_cri::v1::ContainerConfig, StartError> {
        let refused = |why: String| StartError::new("CreateContainerConfigError", why);
        let settings = security::effective(pod, i.member);
        security::verify_non_root(&settings, image.uid, &image.user).map_err(|e| refused(e.to_string()))?;
        let inputs = EnvInputs {
            pod,
            sources: i.sources,
            facts: i.facts,
        };
        let env = environment(&inputs, i.member).map_err(|e| refused(e.to_string()))?;
        let mut mounts =
            volumes::container_mounts(&self.dirs, pod, i.member, &env).map_err(|e| refused(e.to_string()))?;
        self.own_mounts(pod, i, &mut mounts)
            .map_err(|e| refused(e.to_string()))?;
        let logs = self
            .dirs
            .pod_logs(pod.namespace(), pod.name(), pod.uid())
            .join(&i.member.spec.name);
        fs::create_dir_all(&logs).map_err(|e| refused(format!("{}: {e}", logs.display())))?;
        Ok(config::container(
            pod,
            i.member,
            &ContainerInput {
                attempt: i.attempt,
                backoff: i.backoff,
                env: &env,
                mounts,
                image: &image.id,
                target: i.target.map(str::to_owned),
                node_memory: self.settings.memory,
                seccomp: &self.dirs.seccomp().to_string_lossy(),
            },
        ))
    }

    /// `/etc/hosts` and the termination message, unless the container mounts something of its own there.
    fn own_mounts(&self, pod: &PodModel, i: &StartInput<'_>, mounts: &mut Vec<Mount>) -> std::io::Result<()> {
        let mut add = |host: &Path, inside: String| {
            if !mounts.iter().any(|m| m.container_path == inside) {
                let host_path = host.to_string_lossy().into_owned();
                mounts.push(Mount {
                    container_path: inside,
                    host_path,
                    ..Mount::default()
                });
            }
        };
        let file = self.dirs.hosts(pod.uid());
        self.write_hosts(pod, &i.facts.pod_ips, &file)?;
        add(&file, "/etc/hosts".to_owned());
        let file = self.dirs.termination(pod.uid(), &i.member.spec.name, i.attempt);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&file, "")?;
        // Any user the container runs as may write its message.
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
        add(&file, config::termination_path(i.member));
        Ok(())
    }

    fn write_hosts(&self, pod: &PodModel, ips: &[IpAddr], file: &Path) -> std::io::Result<()> {
        let node = fs::read_to_string("/etc/hosts").unwrap_or_default();
        let text = hosts(pod, ips, &self.hostname(pod), &self.settings.dns.domain, &node);
        // Containers that run hold the same file: it is written in place, and only when it differs.
        match fs::read_to_string(file) {
            Ok(old) if old == text => Ok(()),
            _ => fs::write(file, text),
        }
    }

    /// Runs the preStop hook and stops the container, all within `grace` seconds.
    ///
    /// # Errors
    /// [`RuntimeError`]; worth trying again.
    pub async fn stop(
        &self,
        pod: &PodModel,
        member: Option<&Member>,
        id: &str,
        grace: i64,
        ip: Option<IpAddr>,
        events: &dyn Recorder,
    ) -> Result<(), RuntimeError> {
        let begun = std::time::Instant::now();
        let hook = member.and_then(|m| Some((m, m.spec.lifecycle.as_ref()?.pre_stop.as_ref()?)));
        if let Some((member, hook)) = hook {
            let limit = std::time::Duration::from_secs(grace.unsigned_abs());
            let run = tokio::time::timeout(limit, hooks::run(&self.runtime, id, member, hook, ip));
            if let Ok(Err(error)) = run.await {
                let message = format!("PreStopHook failed: {error}");
                events.warning(pod, Some(&member.spec.name), "FailedPreStopHook", message);
            }
        }
        let used = i64::try_from(begun.elapsed().as_secs()).unwrap_or(i64::MAX);
        // After a hook that used everything up the container still gets two seconds, as documented.
        let left = (grace - used).max(if hook.is_some() { 2.min(grace) } else { 0 });
        self.runtime.stop(id, left).await
    }

    /// Removes a pod's volumes, files, logs and cgroup.
    ///
    /// # Errors
    /// A message; everything that could be removed is.
    pub async fn clean_up(&self, pod: &PodModel) -> Result<(), String> {
        self.cgroups
            .remove(&self.cgroup(pod))
            .await
            .map_err(|e| e.to_string())?;
        self.clean_up_files(pod.namespace(), pod.name(), pod.uid())
    }

    /// Removes the files of a pod of which nothing but its names is known.
    ///
    /// # Errors
    /// A message; everything that could be removed is.
    pub fn clean_up_files(&self, namespace: &str, name: &str, uid: &str) -> Result<(), String> {
        for folder in [self.dirs.pod(uid), self.dirs.pod_logs(namespace, name, uid)] {
            mounts::remove_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        }
        Ok(())
    }
}
