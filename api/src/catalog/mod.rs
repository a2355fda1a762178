//! Every resource that is served: names, verbs, scope, schema. Built once from the committed tables.

mod resources;
mod types;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use crate::schema::{Schema, SchemaRef};
use types::Types;

/// Group, version and kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gvk {
    /// API group; empty for the core group.
    pub group: String,
    /// Version within the group.
    pub version: String,
    /// Kind (`Deployment`).
    pub kind: String,
}

impl Gvk {
    /// From `apiVersion` and `kind` as they stand in an object.
    pub fn from_api_version(api_version: &str, kind: &str) -> Gvk {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        Gvk {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: kind.to_owned(),
        }
    }

    /// `apps/v1` or `v1`.
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    fn parse(text: &str) -> Option<Gvk> {
        let mut parts = text.splitn(3, '/').map(str::to_owned);
        Some(Gvk {
            group: parts.next()?,
            version: parts.next()?,
            kind: parts.next()?,
        })
    }
}

/// One resource of one group and version.
#[derive(Debug, Clone)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: String,
    /// Version within the group.
    pub version: String,
    /// Name in URLs (`deployments`).
    pub plural: String,
    /// Singular name (`deployment`).
    pub singular: String,
    /// Kind (`Deployment`).
    pub kind: String,
    /// Lives in a namespace.
    pub namespaced: bool,
    /// Short names (`deploy`).
    pub short_names: Vec<String>,
    /// Categories (`all`).
    pub categories: Vec<String>,
    /// Verbs, sorted.
    pub verbs: Vec<String>,
    /// What stands below an object (`status`, `scale`, `log` …).
    pub subresources: Vec<Subresource>,
    /// Schema of the kind.
    pub schema: Arc<Schema>,
    /// Protobuf message name; `None` when the kind has no protobuf form.
    pub proto: Option<String>,
    /// Where objects are kept: the same for every version and group that shows the same objects.
    pub storage: StorageName,
    /// The version of [`Resource::storage`] in which objects are kept.
    pub storage_version: String,
}

impl Resource {
    /// `apps/v1` or `v1`, as it stands in objects.
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    /// Group, version and kind.
    pub fn gvk(&self) -> Gvk {
        Gvk {
            group: self.group.clone(),
            version: self.version.clone(),
            kind: self.kind.clone(),
        }
    }

    /// The kind of a list of these (`DeploymentList`).
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// `deployments.apps` or `pods`, as messages name a resource.
    pub fn qualified_name(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// Writes to the object itself leave its status alone.
    pub fn has_status_subresource(&self) -> bool {
        self.subresource("status").is_some()
    }

    /// The subresource `name`.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Serves the verb.
    pub fn has(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// Objects are kept (rather than answered at once, such as a `SubjectAccessReview`).
    pub fn is_stored(&self) -> bool {
        self.has("get") && self.has("create")
    }
}

/// Where objects are kept, as `group/plural` (`apps/deployments`, `/pods`), shared by all served versions.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StorageName(pub String);

impl StorageName {
    /// Group and plural name.
    pub fn parts(&self) -> (&str, &str) {
        self.0.split_once('/').unwrap_or(("", &self.0))
    }
}

/// A part of a resource with a path of its own.
#[derive(Debug, Clone)]
pub struct Subresource {
    /// Path segment below the object (`status`).
    pub name: String,
    /// Group of the kind that is read and written there.
    pub group: String,
    /// Its version.
    pub version: String,
    /// Its kind (`Scale`).
    pub kind: String,
    /// Verbs, sorted.
    pub verbs: Vec<String>,
}

impl Subresource {
    /// The schema of what is read and written there, when it is a known type.
    pub fn schema(&self) -> Option<Arc<Schema>> {
        catalog().kind_schema(&self.group, &self.version, &self.kind)
    }
}

/// A group with its versions.
#[derive(Debug, Clone)]
pub struct Group {
    /// Name; empty for the core group.
    pub name: String,
    /// Versions in preference order.
    pub versions: Vec<String>,
}

/// Every resource that is served.
#[derive(Debug)]
pub struct Catalog {
    resources: Vec<Arc<Resource>>,
    groups: Vec<Group>,
    by_path: HashMap<(String, String, String), usize>,
    by_kind: HashMap<Gvk, usize>,
}

/// The catalogue of built-in kinds, built at the first call.
pub fn catalog() -> &'static Catalog {
    static CATALOG: OnceLock<Catalog> = OnceLock::new();
    CATALOG.get_or_init(|| Catalog::new(resources::read(types())))
}

fn types() -> &'static Types {
    static TYPES: OnceLock<Types> = OnceLock::new();
    TYPES.get_or_init(Types::read)
}

pub(crate) fn named_type(place: usize) -> &'static Schema {
    &types().schemas[place]
}

/// The schema of a named type, by definition name (`io.k8s.api.core.v1.Pod`) or protobuf message name.
pub fn type_schema(name: &str) -> Option<&'static Schema> {
    types().by_name(name).map(named_type)
}

/// A reference to a named type, for schemas built at run time (a custom resource's `metadata`).
pub fn type_ref(name: &str) -> Option<SchemaRef> {
    types().by_name(name).map(SchemaRef::Named)
}

/// The kinds of a definition, as published.
pub(crate) fn gvks_of(name: &str) -> &'static [Gvk] {
    let types = types();
    types
        .by_name(name)
        .map_or(&[], |place| types.gvks[place].as_slice())
}

/// A hash (FNV-1a) of the tables and of `name`: the same for the same tables.
pub(crate) fn table_digest(name: &str) -> u64 {
    let bytes = types::TABLE
        .bytes()
        .chain(resources::TABLE.bytes())
        .chain(name.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl Catalog {
    fn new(resources: Vec<Resource>) -> Catalog {
        let mut catalog = Catalog {
            resources: Vec::new(),
            groups: Vec::new(),
            by_path: HashMap::new(),
            by_kind: HashMap::new(),
        };
        for resource in resources {
            catalog.add(resource);
        }
        catalog
    }

    fn add(&mut self, resource: Resource) {
        let place = self.resources.len();
        let path = (
            resource.group.clone(),
            resource.version.clone(),
            resource.plural.clone(),
        );
        self.by_path.insert(path, place);
        self.by_kind.insert(resource.gvk(), place);
        match self.groups.iter_mut().find(|g| g.name == resource.group) {
            Some(group) if group.versions.contains(&resource.version) => {}
            Some(group) => group.versions.push(resource.version.clone()),
            None => self.groups.push(Group {
                name: resource.group.clone(),
                versions: vec![resource.version.clone()],
            }),
        }
        self.resources.push(Arc::new(resource));
    }

    /// The resource under this path; `""` is the core group.
    pub fn lookup(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        let path = (group.to_owned(), version.to_owned(), plural.to_owned());
        self.by_path
            .get(&path)
            .map(|place| self.resources[*place].clone())
    }

    /// The resource whose objects are of this kind.
    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<Arc<Resource>> {
        let gvk = Gvk {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: kind.to_owned(),
        };
        self.by_kind.get(&gvk).map(|place| self.resources[*place].clone())
    }

    /// The schema of any known kind, served as a resource or not (`Scale`, `DeleteOptions`, `PodList`).
    pub fn kind_schema(&self, group: &str, version: &str, kind: &str) -> Option<Arc<Schema>> {
        let gvk = Gvk {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: kind.to_owned(),
        };
        types().by_kind(&gvk).map(|place| types().schemas[place].clone())
    }

    /// All resources, groups and versions in preference order.
    pub fn resources(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.iter()
    }

    /// All groups, the core group first, versions in preference order.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The version of `resource` in which its objects are kept.
    pub fn storage_resource(&self, resource: &Resource) -> Option<Arc<Resource>> {
        let (group, plural) = resource.storage.parts();
        self.lookup(group, &resource.storage_version, plural)
    }
}

pub(crate) fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{Kind, ListType, Zero};

    #[test]
    fn a_deployment_is_found_by_path_and_by_kind() {
        let by_path = catalog().lookup("apps", "v1", "deployments").unwrap();
        let by_kind = catalog().by_kind("apps", "v1", "Deployment").unwrap();
        assert!(Arc::ptr_eq(&by_path, &by_kind));
        assert_eq!(by_path.short_names, ["deploy"]);
        assert_eq!(by_path.proto.as_deref(), Some("k8s.io.api.apps.v1.Deployment"));
        assert_eq!(by_path.storage, StorageName("apps/deployments".into()));
        assert_eq!(by_path.subresource("scale").unwrap().kind, "Scale");
        assert!(by_path.has_status_subresource() && by_path.namespaced && by_path.has("watch"));
    }

    #[test]
    fn every_resource_and_subresource_has_a_schema() {
        for resource in catalog().resources() {
            assert!(resource.schema.object().is_some(), "{}", resource.plural);
            for sub in &resource.subresources {
                let known = sub.schema().is_some() || sub.kind.ends_with("Options");
                assert!(known, "{}/{}: {:?}", resource.plural, sub.name, sub.kind);
            }
        }
    }

    #[test]
    fn both_groups_of_events_share_their_objects() {
        let core = catalog().lookup("", "v1", "events").unwrap();
        let new = catalog().lookup("events.k8s.io", "v1", "events").unwrap();
        assert_eq!(core.storage, new.storage);
        assert_eq!(catalog().storage_resource(&new).unwrap().api_version(), "v1");
    }

    #[test]
    fn fields_carry_list_keys_merge_keys_and_defaults() {
        let pod = catalog().lookup("", "v1", "pods").unwrap();
        let containers = pod
            .schema
            .field("spec")
            .unwrap()
            .schema
            .field("containers")
            .unwrap();
        assert_eq!(containers.patch.merge_key.as_deref(), Some("name"));
        let ports = containers.schema.items().unwrap().field("ports").unwrap();
        let list = ports.schema.list().unwrap();
        assert_eq!(
            (list.list_type, list.map_keys.as_slice()),
            (
                ListType::Map,
                ["containerPort".into(), "protocol".into()].as_slice()
            )
        );
        assert_eq!(list.items.field("protocol").unwrap().default, Some("TCP".into()));
        assert_eq!(list.items.field("containerPort").unwrap().zero, Zero::Write);
    }

    #[test]
    fn fields_of_an_embedded_message_stand_in_the_object() {
        let volume = type_schema("io.k8s.api.core.v1.Volume").unwrap();
        let field = volume.field("emptyDir").unwrap();
        assert!(matches!(field.schema.kind, Kind::Object(_)) && field.number.is_none());
        assert_eq!(volume.object().unwrap().inlined[0].number, 2);
    }

    #[test]
    fn a_type_may_contain_itself() {
        let schema =
            type_schema("k8s.io.apiextensions_apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps").unwrap();
        let again = schema.child("properties").unwrap().child("anything").unwrap();
        assert_eq!(again.name, schema.name);
    }
}
