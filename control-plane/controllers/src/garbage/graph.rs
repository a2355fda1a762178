//! Who owns whom.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery_plan::{Key, ObjectRef, ResourceType};

use super::{FOREGROUND, ORPHAN};

/// An owner as a dependent names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// `apiVersion` of the owner.
    pub api_version: String,
    /// Kind of the owner.
    pub kind: String,
    /// Name of the owner.
    pub name: String,
    /// Uid of the owner: what counts.
    pub uid: String,
    /// Whether the dependent holds up a foreground deletion of the owner.
    pub blocks: bool,
}

/// What the collector knows of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Type, namespace and name.
    pub object: ObjectRef,
    /// Uid.
    pub uid: String,
    /// The state that all of this was seen in.
    pub resource_version: String,
    /// Who owns it.
    pub owners: Vec<Owner>,
    /// Finalizers, in order.
    pub finalizers: Vec<String>,
    /// Whether it is being deleted.
    pub deleting: bool,
}

impl Object {
    /// What metadata of a resource say; none without a uid.
    #[must_use]
    pub fn of(resource: &ResourceType, meta: &ObjectMeta) -> Option<Self> {
        let owners = meta.owner_references.iter().flatten().map(|owner| Owner {
            api_version: owner.api_version.clone(),
            kind: owner.kind.clone(),
            name: owner.name.clone(),
            uid: owner.uid.clone(),
            blocks: owner.block_owner_deletion == Some(true),
        });
        Some(Self {
            object: ObjectRef {
                resource: resource.clone(),
                key: Key::of(meta),
            },
            uid: meta.uid.clone()?,
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            owners: owners.collect(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
        })
    }

    /// Whether it waits for its dependents to go.
    #[must_use]
    pub fn waits_for_dependents(&self) -> bool {
        self.deleting && self.finalizers.iter().any(|finalizer| finalizer == FOREGROUND)
    }

    /// Whether its dependents are to be set free before it goes.
    #[must_use]
    pub fn orphans_dependents(&self) -> bool {
        self.deleting && self.finalizers.iter().any(|finalizer| finalizer == ORPHAN)
    }

    fn needs_a_look(&self) -> bool {
        !self.owners.is_empty() || self.waits_for_dependents() || self.orphans_dependents()
    }
}

/// All objects with their owners, by uid.
#[derive(Debug, Default)]
pub struct Graph {
    objects: HashMap<String, Arc<Object>>,
    /// Uids of dependents by uid of the owner, whether or not the owner is known.
    dependents: HashMap<String, HashSet<String>>,
    namespaces: HashMap<String, BTreeSet<String>>,
}

impl Graph {
    /// The object with this uid.
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<&Arc<Object>> {
        self.objects.get(uid)
    }

    /// Objects that name this uid as an owner.
    #[must_use]
    pub fn dependents(&self, uid: &str) -> Vec<Arc<Object>> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| self.objects.get(uid).cloned()).collect()
    }

    /// Everything in a namespace.
    #[must_use]
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<Object>> {
        let uids = self.namespaces.get(namespace).into_iter().flatten();
        uids.filter_map(|uid| self.objects.get(uid).cloned()).collect()
    }

    /// How many objects of each resource a namespace has.
    #[must_use]
    pub fn counts(&self, namespace: &str) -> HashMap<ResourceType, usize> {
        let mut counts = HashMap::new();
        let uids = self.namespaces.get(namespace).into_iter().flatten();
        for object in uids.filter_map(|uid| self.objects.get(uid)) {
            *counts.entry(object.object.resource.clone()).or_default() += 1;
        }
        counts
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Uids of all objects of a resource, to find those that a new list no longer has.
    #[must_use]
    pub fn of_resource(&self, resource: &ResourceType) -> Vec<String> {
        let of = self
            .objects
            .values()
            .filter(|object| object.object.resource == *resource);
        of.map(|object| object.uid.clone()).collect()
    }

    /// Takes in a new or changed object; returns the uids to look at now.
    pub fn observe(&mut self, object: Object) -> Vec<String> {
        let new = Arc::new(object);
        let old = self.objects.insert(new.uid.clone(), Arc::clone(&new));
        if old.as_ref().is_some_and(|old| **old == *new) {
            return Vec::new();
        }
        if let Some(old) = &old {
            self.unlink(old);
        }
        self.link(&new);
        self.affected(old.as_deref(), &new)
    }

    fn affected(&self, old: Option<&Object>, new: &Object) -> Vec<String> {
        let mut affected = Vec::new();
        let same_owners = old.is_some_and(|old| old.owners == new.owners && old.deleting == new.deleting);
        if new.needs_a_look() && (new.deleting || !same_owners) {
            affected.push(new.uid.clone());
        }
        if new.waits_for_dependents() && !old.is_some_and(Object::waits_for_dependents) {
            affected.extend(self.dependents.get(&new.uid).into_iter().flatten().cloned());
        }
        // An owner that waits may no longer have to.
        affected.extend(old.into_iter().flat_map(|old| self.waiting_owners(old)));
        affected
    }

    /// Takes note that an object is gone; returns the uids to look at now.
    pub fn remove(&mut self, uid: &str) -> Vec<String> {
        let Some(old) = self.objects.remove(uid) else {
            return Vec::new();
        };
        self.unlink(&old);
        let mut affected: Vec<String> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        affected.extend(self.waiting_owners(&old));
        affected
    }

    fn waiting_owners(&self, object: &Object) -> Vec<String> {
        let waits = |uid: &&String| {
            self.objects
                .get(*uid)
                .is_some_and(|owner| owner.waits_for_dependents())
        };
        object
            .owners
            .iter()
            .map(|owner| &owner.uid)
            .filter(waits)
            .cloned()
            .collect()
    }

    fn link(&mut self, object: &Object) {
        for owner in &object.owners {
            self.dependents
                .entry(owner.uid.clone())
                .or_default()
                .insert(object.uid.clone());
        }
        let namespace = &object.object.key.namespace;
        if !namespace.is_empty() {
            self.namespaces
                .entry(namespace.clone())
                .or_default()
                .insert(object.uid.clone());
        }
    }

    fn unlink(&mut self, object: &Object) {
        for owner in &object.owners {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(&object.uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
        let namespace = &object.object.key.namespace;
        if let Some(here) = self.namespaces.get_mut(namespace) {
            here.remove(&object.uid);
            if here.is_empty() {
                self.namespaces.remove(namespace);
            }
        }
    }
}
