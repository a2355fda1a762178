//! Names of API objects: resource types, keys and references.

use std::borrow::Cow;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{ClusterResourceScope, Metadata, NamespaceResourceScope};
use serde::Serialize;

/// Whether a scope of `k8s-openapi` is the namespaced one.
pub trait Scoped {
    /// True for resources that live in a namespace.
    const NAMESPACED: bool;
}

impl Scoped for ClusterResourceScope {
    const NAMESPACED: bool = false;
}

impl Scoped for NamespaceResourceScope {
    const NAMESPACED: bool = true;
}

/// A typed top-level Kubernetes object: what planners are given and what they create.
pub trait Kubernetes: k8s_openapi::Resource<Scope: Scoped> + Metadata<Ty = ObjectMeta> + Serialize {}

impl<K> Kubernetes for K where K: k8s_openapi::Resource<Scope: Scoped> + Metadata<Ty = ObjectMeta> + Serialize {}

/// One resource as the API serves it (group, version, plural) with its kind and scope.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ResourceType {
    /// API group; empty for the core group.
    pub group: Cow<'static, str>,
    /// API version, such as `v1`.
    pub version: Cow<'static, str>,
    /// Plural name as it stands in URLs, such as `pods`.
    pub plural: Cow<'static, str>,
    /// Kind, such as `Pod`.
    pub kind: Cow<'static, str>,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
}

impl ResourceType {
    /// The resource type of a typed object.
    #[must_use]
    pub const fn of<K: k8s_openapi::Resource<Scope: Scoped>>() -> Self {
        Self {
            group: Cow::Borrowed(K::GROUP),
            version: Cow::Borrowed(K::VERSION),
            plural: Cow::Borrowed(K::URL_PATH_SEGMENT),
            kind: Cow::Borrowed(K::KIND),
            namespaced: <K::Scope as Scoped>::NAMESPACED,
        }
    }

    /// `apiVersion` as it stands in objects: `v1` or `group/version`.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// URL path of the collection, in a namespace where there is one.
    #[must_use]
    pub fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        match namespace {
            Some(namespace) if self.namespaced => format!("{root}/namespaces/{namespace}/{}", self.plural),
            _ => format!("{root}/{}", self.plural),
        }
    }
}

/// Namespace and name of an object whose type is known; `namespace` is empty for cluster-scoped objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Key {
    /// Namespace, empty for cluster-scoped objects.
    pub namespace: String,
    /// Object name.
    pub name: String,
}

impl Key {
    /// A key from its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The key that metadata names.
    #[must_use]
    pub fn of(meta: &ObjectMeta) -> Self {
        Self::new(
            meta.namespace.clone().unwrap_or_default(),
            meta.name.clone().unwrap_or_default(),
        )
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// An object that an action is about. The name is empty in a create with `generateName`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ObjectRef {
    /// Its type.
    pub resource: ResourceType,
    /// Its namespace and name.
    pub key: Key,
}

impl ObjectRef {
    /// The reference to a typed object.
    pub fn to<K: Kubernetes>(object: &K) -> Self {
        Self {
            resource: ResourceType::of::<K>(),
            key: Key::of(object.metadata()),
        }
    }

    /// URL path of the collection that the object stands in.
    #[must_use]
    pub fn collection_path(&self) -> String {
        let namespace = Some(self.key.namespace.as_str()).filter(|ns| !ns.is_empty());
        self.resource.path(namespace)
    }

    /// URL path of the object or of one of its subresources.
    #[must_use]
    pub fn path(&self, subresource: Option<&str>) -> String {
        let object = format!("{}/{}", self.collection_path(), self.key.name);
        match subresource {
            Some(subresource) => format!("{object}/{subresource}"),
            None => object,
        }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.resource.kind, self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::Deployment;
    use k8s_openapi::api::core::v1::{Node, Pod};

    #[test]
    fn a_resource_type_knows_its_urls() {
        assert_eq!(
            ResourceType::of::<Deployment>().path(Some("a")),
            "/apis/apps/v1/namespaces/a/deployments"
        );
        assert_eq!(ResourceType::of::<Node>().path(Some("ignored")), "/api/v1/nodes");
        let pod = ObjectRef {
            resource: ResourceType::of::<Pod>(),
            key: Key::new("a", "b"),
        };
        assert_eq!(pod.path(Some("binding")), "/api/v1/namespaces/a/pods/b/binding");
        assert_eq!(pod.to_string(), "Pod a/b");
    }
}
