//! The objects of one kind as far as this process knows them: what the watch showed, overlaid with our own writes.
//! Pure data; [`crate::Cache`] adds the lock, the watch and the notifications.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use kube::ResourceExt;
use machinery_plan::Key;

/// A change of one object: absent before means new, absent after means gone.
#[derive(Clone, Debug)]
pub struct Change<K> {
    /// Which object.
    pub key: Key,
    /// As it was.
    pub old: Option<Arc<K>>,
    /// As it is.
    pub new: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// The states before and after, where they exist.
    pub fn versions(&self) -> impl Iterator<Item = &Arc<K>> {
        self.old.iter().chain(self.new.iter())
    }

    /// The newest state, or the last one of an object that is gone.
    #[must_use]
    pub fn latest(&self) -> &Arc<K> {
        self.new
            .as_ref()
            .or(self.old.as_ref())
            .expect("a change has a state before or after")
    }
}

/// What an object is found under besides its key.
pub(crate) type IndexFn<K> = Box<dyn Fn(&K) -> Vec<String> + Send + Sync>;

struct Index<K> {
    of: IndexFn<K>,
    keys: HashMap<String, BTreeSet<Key>>,
}

struct Entry<K> {
    object: Arc<K>,
    /// Set while only our own write vouches for this state: the number of the list that was running or done then.
    written_in: Option<u64>,
}

/// See the module.
pub(crate) struct Objects<K> {
    entries: BTreeMap<Key, Entry<K>>,
    indices: HashMap<&'static str, Index<K>>,
    /// Uids that we know deleted although the watch has not said so yet.
    deleted: HashMap<Key, String>,
    /// Every event up to this resource version has been seen.
    seen: u64,
    listing: Option<HashSet<Key>>,
    lists: u64,
}

impl<K> Default for Objects<K> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            indices: HashMap::new(),
            deleted: HashMap::new(),
            seen: 0,
            listing: None,
            lists: 0,
        }
    }
}

fn version<K: ResourceExt>(object: &K) -> u64 {
    object
        .meta()
        .resource_version
        .as_deref()
        .and_then(|rv| rv.parse().ok())
        .unwrap_or(u64::MAX)
}

impl<K: ResourceExt> Objects<K> {
    pub(crate) fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.entries.get(key).map(|entry| Arc::clone(&entry.object))
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<K>> {
        self.entries.values().map(|entry| &entry.object)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<K>> {
        let first = Key::new(namespace, "");
        let here = self
            .entries
            .range(first..)
            .take_while(move |(key, _)| key.namespace == namespace);
        here.map(|(_, entry)| &entry.object)
    }

    pub(crate) fn add_index(&mut self, name: &'static str, of: IndexFn<K>) {
        let mut index = Index {
            of,
            keys: HashMap::new(),
        };
        for (key, entry) in &self.entries {
            index.insert(key, &entry.object);
        }
        self.indices.insert(name, index);
    }

    pub(crate) fn indexed(&self, name: &str, value: &str) -> Vec<Arc<K>> {
        let keys = self.indices.get(name).and_then(|index| index.keys.get(value));
        keys.into_iter()
            .flatten()
            .filter_map(|key| self.get(key))
            .collect()
    }

    /// The watch shows a state of an object.
    pub(crate) fn applied(&mut self, object: K) -> Option<Change<K>> {
        let key = key_of(&object);
        let shown = version(&object);
        if let Some(listed) = &mut self.listing {
            listed.insert(key.clone());
        } else if shown != u64::MAX {
            self.seen = self.seen.max(shown);
        }
        if self.is_known_deleted(&key, &object) {
            return None;
        }
        if let Some(held) = self.entries.get_mut(&key)
            && held.object.uid() == object.uid()
            && version(held.object.as_ref()) >= shown
        {
            held.written_in = None;
            return None;
        }
        Some(self.set(key, object, None))
    }

    /// The watch shows the deletion of an object.
    pub(crate) fn removed(&mut self, object: &K) -> Option<Change<K>> {
        let key = key_of(object);
        let shown = version(object);
        if shown != u64::MAX {
            self.seen = self.seen.max(shown);
        }
        if self.deleted.get(&key) == object.uid().as_ref() {
            self.deleted.remove(&key);
        }
        let held = self.entries.get(&key)?;
        (held.object.uid() == object.uid() || version(held.object.as_ref()) <= shown)
            .then(|| self.unset(&key))
            .flatten()
    }

    /// A list begins: what it does not show is gone.
    pub(crate) fn list_begins(&mut self) {
        self.lists += 1;
        self.listing = Some(HashSet::new());
    }

    /// A list has ended. Returns what vanished.
    pub(crate) fn list_ended(&mut self) -> Vec<Change<K>> {
        let Some(listed) = self.listing.take() else {
            return Vec::new();
        };
        let now = self.lists;
        let kept = |entry: &Entry<K>| entry.written_in.is_some_and(|list| list >= now);
        let gone = self
            .entries
            .iter()
            .filter(|(key, entry)| !listed.contains(*key) && !kept(entry));
        let gone: Vec<Key> = gone.map(|(key, _)| key.clone()).collect();
        self.deleted.retain(|key, _| listed.contains(key));
        let versions = self
            .all()
            .map(|object| version(object.as_ref()))
            .filter(|v| *v != u64::MAX);
        self.seen = self.seen.max(versions.max().unwrap_or(0));
        gone.iter().filter_map(|key| self.unset(key)).collect()
    }

    /// The API server answered our write with this state.
    pub(crate) fn written(&mut self, object: K) -> Option<Change<K>> {
        let key = key_of(&object);
        let held = self
            .entries
            .get(&key)
            .map_or(0, |entry| version(entry.object.as_ref()));
        let written = version(&object);
        if written <= self.seen || written <= held || self.is_known_deleted(&key, &object) {
            return None;
        }
        let list = self.lists;
        Some(self.set(key, object, Some(list)))
    }

    /// The API server told us that the object with this uid is gone.
    pub(crate) fn deleted(&mut self, key: &Key, uid: &str) -> Option<Change<K>> {
        let held = self.entries.get(key)?;
        if held.object.uid().as_deref() != Some(uid) {
            return None;
        }
        self.deleted.insert(key.clone(), uid.to_owned());
        self.unset(key)
    }

    fn is_known_deleted(&self, key: &Key, object: &K) -> bool {
        self.deleted
            .get(key)
            .is_some_and(|uid| Some(uid) == object.uid().as_ref())
    }

    fn set(&mut self, key: Key, object: K, written_in: Option<u64>) -> Change<K> {
        let new = Arc::new(object);
        let old = self.entries.insert(
            key.clone(),
            Entry {
                object: Arc::clone(&new),
                written_in,
            },
        );
        let old = old.map(|entry| entry.object);
        for index in self.indices.values_mut() {
            if let Some(old) = &old {
                index.remove(&key, old);
            }
            index.insert(&key, &new);
        }
        Change {
            key,
            old,
            new: Some(new),
        }
    }

    fn unset(&mut self, key: &Key) -> Option<Change<K>> {
        let old = self.entries.remove(key)?.object;
        for index in self.indices.values_mut() {
            index.remove(key, &old);
        }
        Some(Change {
            key: key.clone(),
            old: Some(old),
            new: None,
        })
    }
}

impl<K> Index<K> {
    fn insert(&mut self, key: &Key, object: &K) {
        for value in (self.of)(object) {
            self.keys.entry(value).or_default().insert(key.clone());
        }
    }

    fn remove(&mut self, key: &Key, object: &K) {
        for value in (self.of)(object) {
            if let Some(keys) = self.keys.get_mut(&value) {
                keys.remove(key);
                if keys.is_empty() {
                    self.keys.remove(&value);
                }
            }
        }
    }
}

pub(crate) fn key_of<K: ResourceExt>(object: &K) -> Key {
    Key::of(object.meta())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    fn object(name: &str, uid: &str, rv: u64) -> ConfigMap {
        let metadata = ObjectMeta {
            namespace: Some("a".to_owned()),
            name: Some(name.to_owned()),
            uid: Some(uid.to_owned()),
            resource_version: Some(rv.to_string()),
            ..ObjectMeta::default()
        };
        ConfigMap {
            metadata,
            ..ConfigMap::default()
        }
    }

    fn listed(objects: impl IntoIterator<Item = ConfigMap>) -> Objects<ConfigMap> {
        let mut all = Objects::default();
        all.list_begins();
        for object in objects {
            all.applied(object);
        }
        all.list_ended();
        all
    }

    fn held(all: &Objects<ConfigMap>, name: &str) -> Option<String> {
        all.get(&Key::new("a", name))
            .and_then(|object| object.metadata.resource_version.clone())
    }

    #[test]
    fn our_own_write_is_seen_before_the_watch_shows_it_and_older_events_do_not_undo_it() {
        let mut all = listed([object("x", "1", 5)]);
        assert!(all.written(object("x", "1", 9)).is_some());
        assert!(all.applied(object("x", "1", 7)).is_none());
        assert_eq!(held(&all, "x").as_deref(), Some("9"));
        assert!(all.applied(object("x", "1", 10)).is_some());
    }

    #[test]
    fn an_answer_that_arrives_after_the_deletion_does_not_bring_the_object_back() {
        let mut all = listed([object("x", "1", 5)]);
        all.applied(object("y", "2", 6));
        all.removed(&object("y", "2", 8));
        assert!(all.written(object("y", "2", 6)).is_none());
        assert_eq!(held(&all, "y"), None);
    }

    #[test]
    fn a_deletion_of_ours_holds_against_events_that_are_still_under_way() {
        let mut all = listed([object("x", "1", 5)]);
        assert!(all.deleted(&Key::new("a", "x"), "1").is_some());
        assert!(all.applied(object("x", "1", 6)).is_none());
        assert!(
            all.applied(object("x", "2", 9)).is_some(),
            "a namesake is another object"
        );
    }

    #[test]
    fn what_a_new_list_does_not_show_is_gone_but_not_what_we_wrote_meanwhile() {
        let mut all = listed([object("x", "1", 5), object("y", "2", 5)]);
        all.list_begins();
        all.applied(object("x", "1", 5));
        all.written(object("z", "3", 12));
        let gone = all.list_ended();
        assert_eq!(
            gone.iter().map(|c| c.key.name.as_str()).collect::<Vec<_>>(),
            ["y"]
        );
        assert_eq!(held(&all, "z").as_deref(), Some("12"));
    }

    #[test]
    fn an_index_follows_changes_and_deletions() {
        let mut all = listed([object("x", "1", 5)]);
        all.add_index(
            "uid",
            Box::new(|object: &ConfigMap| object.metadata.uid.iter().cloned().collect()),
        );
        assert_eq!(all.indexed("uid", "1").len(), 1);
        all.applied(object("x", "2", 6));
        assert_eq!(
            (all.indexed("uid", "1").len(), all.indexed("uid", "2").len()),
            (0, 1)
        );
        all.removed(&object("x", "2", 7));
        assert!(all.indexed("uid", "2").is_empty());
    }

    #[test]
    fn a_namespace_is_listed_by_itself() {
        let all = listed([object("x", "1", 5), object("y", "2", 5)]);
        assert_eq!(all.in_namespace("a").count(), 2);
        assert_eq!(all.in_namespace("").count(), 0);
    }
}
