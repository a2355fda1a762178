//! Which resources there are, and questions about objects of any of them.

use std::collections::HashMap;

use control_plane_controllers::garbage::Object;
use http::Request;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::discovery::{Discovery, Scope, verbs};
use machinery_plan::{Key, ObjectRef, ResourceType};
use machinery_reconcile::{Failure, FailureKind};
use serde::Deserialize;

/// Resources that can be listed, watched and deleted, each in its most stable version.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resources {
    all: Vec<ResourceType>,
    by_kind: HashMap<(String, String), ResourceType>,
}

impl Resources {
    /// Asks the API server.
    pub(crate) async fn discover(client: Client) -> Result<Self, kube::Error> {
        let found = Discovery::new(client).run_aggregated().await?;
        let mut resources = Self::default();
        for group in found.groups() {
            for (resource, abilities) in group.resources_by_stability() {
                let able = [verbs::LIST, verbs::WATCH, verbs::DELETE]
                    .iter()
                    .all(|v| abilities.supports_operation(v));
                let namespaced = abilities.scope == Scope::Namespaced;
                let type_ = ResourceType {
                    group: resource.group.clone().into(),
                    version: resource.version.clone().into(),
                    plural: resource.plural.clone().into(),
                    kind: resource.kind.clone().into(),
                    namespaced,
                };
                resources
                    .by_kind
                    .insert((resource.group.clone(), resource.kind.clone()), type_.clone());
                if able {
                    resources.all.push(type_);
                }
            }
        }
        Ok(resources)
    }

    pub(crate) fn all(&self) -> &[ResourceType] {
        &self.all
    }

    /// The resource of a kind; versions of one group are the same objects.
    pub(crate) fn of_kind(&self, api_version: &str, kind: &str) -> Option<&ResourceType> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        self.by_kind.get(&(group.to_owned(), kind.to_owned()))
    }
}

#[derive(Deserialize)]
struct OnlyMeta {
    metadata: ObjectMeta,
}

#[derive(Deserialize)]
struct ListOfMeta {
    items: Vec<OnlyMeta>,
}

const META: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
const META_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";

/// The object as the API server has it now; none if there is no such object.
pub(crate) async fn get(
    client: &Client,
    resource: &ResourceType,
    key: &Key,
) -> Result<Option<Object>, Failure> {
    let path = ObjectRef {
        resource: resource.clone(),
        key: key.clone(),
    }
    .path(None);
    match client.request::<OnlyMeta>(ask(&path, META)).await {
        Ok(found) => Ok(Object::of(resource, &found.metadata)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(failed(&path, &error)),
    }
}

/// All objects of a resource in a namespace, as the API server has them now.
pub(crate) async fn list(
    client: &Client,
    resource: &ResourceType,
    namespace: &str,
) -> Result<Vec<Object>, Failure> {
    let path = resource.path(Some(namespace));
    match client.request::<ListOfMeta>(ask(&path, META_LIST)).await {
        Ok(list) => Ok(list
            .items
            .iter()
            .filter_map(|item| Object::of(resource, &item.metadata))
            .collect()),
        Err(error) => Err(failed(&path, &error)),
    }
}

fn ask(path: &str, accept: &str) -> Request<Vec<u8>> {
    let request = Request::builder().uri(path).header(http::header::ACCEPT, accept);
    request
        .body(Vec::new())
        .expect("paths are made of API names, which are valid in URLs")
}

fn failed(path: &str, error: &kube::Error) -> Failure {
    Failure {
        action: format!("read {path}"),
        kind: FailureKind::Unavailable,
        message: error.to_string(),
    }
}
