//! A container's environment, command and arguments, resolved to plain text.
//!
//! Order as in upstream's kubelet: service variables, `envFrom`, then `env`, a later one winning; `$(NAME)` refers to
//! what came before.

use crate::expand::expand;
use crate::fields::{self, Facts, FieldError};
use crate::model::{Member, PodModel};
use crate::volumes::Sources;
use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, EnvVarSource, Service};
use std::collections::BTreeMap;

/// Why a container's configuration cannot be made; shown as `CreateContainerConfigError`.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EnvError {
    /// A config map that is not there.
    #[error("configmap {0:?} not found")]
    NoConfigMap(String),
    /// A secret that is not there.
    #[error("secret {0:?} not found")]
    NoSecret(String),
    /// A key that is not in its config map or secret.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        /// The key.
        key: String,
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// Namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The downward API has no such thing.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// A kind of source this agent does not have.
    #[error(
        "environment variable {0} uses a source this node does not support; use configMapKeyRef, secretKeyRef, fieldRef or resourceFieldRef"
    )]
    Unsupported(String),
}

/// What the environment is resolved from.
#[derive(Clone, Copy)]
pub struct EnvInputs<'a> {
    /// The pod.
    pub pod: &'a PodModel,
    /// Config maps, secrets and services.
    pub sources: &'a Sources,
    /// Node and sandbox facts.
    pub facts: &'a Facts,
}

/// An ordered list of variables with unique names.
#[derive(Default)]
struct Env {
    order: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Env {
    fn set(&mut self, name: String, value: String) {
        if self.values.insert(name.clone(), value).is_none() {
            self.order.push(name);
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }
}

/// The environment of `member`.
///
/// # Errors
/// When something it refers to, and that is not optional, is missing.
pub fn environment(i: &EnvInputs, member: &Member) -> Result<Vec<(String, String)>, EnvError> {
    let mut env = Env::default();
    let links = i.pod.spec().enable_service_links.unwrap_or(true);
    for service in i
        .sources
        .services
        .iter()
        .filter(|s| visible(s, i.pod.namespace(), links))
    {
        service_variables(service, &mut env);
    }
    for source in member.spec.env_from.iter().flatten() {
        from_all(i, source, &mut env)?;
    }
    for var in member.spec.env.iter().flatten() {
        if let Some(value) = value(i, member, var, &env)? {
            env.set(var.name.clone(), value);
        }
    }
    let Env { order, mut values } = env;
    Ok(order
        .into_iter()
        .filter_map(|name| values.remove(&name).map(|v| (name, v)))
        .collect())
}

/// Command and arguments with references expanded against the environment.
#[must_use]
pub fn command(member: &Member, env: &[(String, String)]) -> (Vec<String>, Vec<String>) {
    let lookup = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let all = |list: &Option<Vec<String>>| list.iter().flatten().map(|text| expand(text, lookup)).collect();
    (all(&member.spec.command), all(&member.spec.args))
}

fn value(i: &EnvInputs, member: &Member, var: &EnvVar, env: &Env) -> Result<Option<String>, EnvError> {
    match &var.value_from {
        Some(source) => referenced(i, member, &var.name, source),
        None => Ok(Some(expand(var.value.as_deref().unwrap_or_default(), |name| {
            env.get(name)
        }))),
    }
}

fn referenced(
    i: &EnvInputs,
    member: &Member,
    name: &str,
    source: &EnvVarSource,
) -> Result<Option<String>, EnvError> {
    if let Some(field) = &source.field_ref {
        return Ok(Some(fields::field(i.pod, i.facts, field)?));
    }
    if let Some(resource) = &source.resource_field_ref {
        return Ok(Some(fields::resource(
            i.pod,
            i.facts,
            Some(&member.spec.name),
            resource,
        )?));
    }
    if let Some(key) = &source.config_map_key_ref {
        let map = i.sources.config_maps.get(&key.name);
        let optional = key.optional == Some(true);
        let found = map.map(|m| m.data.as_ref().and_then(|d| d.get(&key.key)).cloned());
        let no_object = || EnvError::NoConfigMap(key.name.clone());
        return keyed(found, optional, no_object, || {
            no_key(i, "ConfigMap", &key.name, &key.key)
        });
    }
    if let Some(key) = &source.secret_key_ref {
        let optional = key.optional == Some(true);
        let secret = i.sources.secrets.get(&key.name);
        let found = secret.map(|s| s.data.as_ref().and_then(|d| d.get(&key.key)).map(|b| text(&b.0)));
        let no_object = || EnvError::NoSecret(key.name.clone());
        return keyed(found, optional, no_object, || {
            no_key(i, "Secret", &key.name, &key.key)
        });
    }
    Err(EnvError::Unsupported(name.to_owned()))
}

/// The value of a key, or what its absence means.
fn keyed(
    found: Option<Option<String>>,
    optional: bool,
    no_object: impl Fn() -> EnvError,
    no_key: impl Fn() -> EnvError,
) -> Result<Option<String>, EnvError> {
    match found {
        Some(Some(value)) => Ok(Some(value)),
        _ if optional => Ok(None),
        Some(None) => Err(no_key()),
        None => Err(no_object()),
    }
}

fn no_key(i: &EnvInputs, kind: &'static str, name: &str, key: &str) -> EnvError {
    EnvError::NoKey {
        key: key.into(),
        kind,
        namespace: i.pod.namespace().into(),
        name: name.into(),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn from_all(i: &EnvInputs, source: &EnvFromSource, env: &mut Env) -> Result<(), EnvError> {
    let prefix = source.prefix.as_deref().unwrap_or_default();
    let mut put = |key: &str, value: String| {
        if variable_name(key) {
            env.set(format!("{prefix}{key}"), value);
        }
    };
    if let Some(from) = &source.config_map_ref {
        match i.sources.config_maps.get(&from.name) {
            Some(map) => map.data.iter().flatten().for_each(|(k, v)| put(k, v.clone())),
            None if from.optional == Some(true) => {}
            None => return Err(EnvError::NoConfigMap(from.name.clone())),
        }
    }
    if let Some(from) = &source.secret_ref {
        match i.sources.secrets.get(&from.name) {
            Some(secret) => secret.data.iter().flatten().for_each(|(k, v)| put(k, text(&v.0))),
            None if from.optional == Some(true) => {}
            None => return Err(EnvError::NoSecret(from.name.clone())),
        }
    }
    Ok(())
}

/// Since Kubernetes 1.34 any printable ASCII but `=` may stand in a variable's name.
fn variable_name(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=')
}

/// Services of the pod's namespace when links are on; the API server's always.
fn visible(service: &Service, namespace: &str, links: bool) -> bool {
    let of = service.metadata.namespace.as_deref().unwrap_or_default();
    let api = of == "default" && service.metadata.name.as_deref() == Some("kubernetes");
    let ip = service
        .spec
        .as_ref()
        .and_then(|s| s.cluster_ip.as_deref())
        .unwrap_or_default();
    !ip.is_empty() && ip != "None" && (api || (links && of == namespace))
}

/// The variables of one service, Docker links included (upstream's `envvars.FromServices`).
fn service_variables(service: &Service, env: &mut Env) {
    let Some(spec) = &service.spec else { return };
    let name = service
        .metadata
        .name
        .as_deref()
        .unwrap_or_default()
        .to_uppercase()
        .replace('-', "_");
    let ip = spec.cluster_ip.clone().unwrap_or_default();
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else { return };
    let host = if ip.contains(':') {
        format!("[{ip}]")
    } else {
        ip.clone()
    };
    env.set(format!("{name}_SERVICE_HOST"), ip.clone());
    env.set(format!("{name}_SERVICE_PORT"), first.port.to_string());
    for port in ports {
        if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            let suffix = port_name.to_uppercase().replace('-', "_");
            env.set(format!("{name}_SERVICE_PORT_{suffix}"), port.port.to_string());
        }
    }
    for (n, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let lower = protocol.to_lowercase();
        let url = format!("{lower}://{host}:{}", port.port);
        if n == 0 {
            env.set(format!("{name}_PORT"), url.clone());
        }
        let prefix = format!("{name}_PORT_{}_{}", port.port, protocol.to_uppercase());
        env.set(prefix.clone(), url);
        env.set(format!("{prefix}_PROTO"), lower);
        env.set(format!("{prefix}_PORT"), port.port.to_string());
        env.set(format!("{prefix}_ADDR"), ip.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod;
    use serde_json::{Value, json};

    fn sources() -> Sources {
        let map = json!({"data": {"k": "v", "bad=key": "x"}});
        let secret = json!({"data": {"s": "c2VjcmV0"}});
        let service = json!({"metadata": {"name": "my-db", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 80, "name": "web", "protocol": "TCP"}]}});
        Sources {
            config_maps: [("cm".to_owned(), serde_json::from_value(map).unwrap())].into(),
            secrets: [("sec".to_owned(), serde_json::from_value(secret).unwrap())].into(),
            services: vec![serde_json::from_value(service).unwrap()],
            ..Sources::default()
        }
    }

    fn env_of(spec: Value, links: bool) -> Result<Vec<(String, String)>, EnvError> {
        let pod = pod(json!({"enableServiceLinks": links, "containers": [spec]}));
        let inputs = EnvInputs {
            pod: &pod,
            sources: &sources(),
            facts: &Facts::default(),
        };
        environment(&inputs, &pod.members[0])
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn values_refer_to_earlier_ones() {
        let env = json!([{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)-$(C)"}, {"name": "C", "value": "3"}]);
        let got = env_of(json!({"name": "a", "env": env}), false).unwrap();
        assert_eq!(got, pairs(&[("A", "1"), ("B", "1-$(C)"), ("C", "3")]));
    }

    #[test]
    fn keys_of_config_maps_and_secrets_become_values() {
        let env = json!([
            {"name": "M", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}},
            {"name": "S", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "s"}}},
            {"name": "O", "valueFrom": {"secretKeyRef": {"name": "none", "key": "s", "optional": true}}},
            {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]);
        let got = env_of(json!({"name": "a", "env": env}), false).unwrap();
        assert_eq!(got, pairs(&[("M", "v"), ("S", "secret"), ("N", "web")]));
    }

    #[test]
    fn missing_objects_and_keys_are_errors_that_name_them() {
        let one = |source: Value| {
            env_of(
                json!({"name": "a", "env": [{"name": "X", "valueFrom": source}]}),
                false,
            )
        };
        let object = one(json!({"configMapKeyRef": {"name": "none", "key": "k"}})).unwrap_err();
        assert_eq!(object.to_string(), "configmap \"none\" not found");
        let key = one(json!({"configMapKeyRef": {"name": "cm", "key": "none"}})).unwrap_err();
        assert_eq!(key.to_string(), "couldn't find key none in ConfigMap default/cm");
    }

    #[test]
    fn env_from_takes_all_keys_that_can_be_names_and_env_overrides_them() {
        let spec = json!({"name": "a", "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}],
            "env": [{"name": "P_k", "value": "own"}]});
        assert_eq!(env_of(spec, false).unwrap(), pairs(&[("P_k", "own")]));
    }

    #[test]
    fn services_are_announced_with_links_on_and_not_with_links_off() {
        let got = env_of(json!({"name": "a"}), true).unwrap();
        let has = |name: &str, value: &str| got.contains(&(name.to_owned(), value.to_owned()));
        assert!(has("MY_DB_SERVICE_HOST", "10.96.0.9") && has("MY_DB_SERVICE_PORT_WEB", "80"));
        assert!(has("MY_DB_PORT_80_TCP", "tcp://10.96.0.9:80"));
        assert_eq!(env_of(json!({"name": "a"}), false).unwrap(), []);
    }

    #[test]
    fn commands_are_expanded_with_the_environment() {
        let pod = pod(json!({"containers": [{"name": "a", "command": ["sh"], "args": ["-c", "$(X) $(Y)"]}]}));
        let (command, args) = command(&pod.members[0], &pairs(&[("X", "1")]));
        assert_eq!(
            (command, args),
            (vec!["sh".to_owned()], vec!["-c".to_owned(), "1 $(Y)".to_owned()])
        );
    }
}
