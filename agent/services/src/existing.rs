use datapath_abi::{Backend, BackendKey, FrontendKey, FrontendValue, Owner, SetId};
use std::collections::HashMap;

/// What stands in the maps: read once at start, so that a new agent goes on where the last one stopped; also the form in
/// which tests compare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Existing {
    pub frontends: HashMap<FrontendKey, FrontendValue>,
    pub backends: HashMap<BackendKey, Backend>,
    pub owners: HashMap<SetId, Owner>,
}

impl Existing {
    /// Carries out changes as the data path would.
    pub fn apply(&mut self, c: &crate::Changes) {
        self.owners.extend(c.owners.iter().copied());
        self.backends.extend(c.backends.iter().copied());
        self.frontends.extend(c.frontends.iter().copied());
        for key in &c.gone_frontends {
            self.frontends.remove(key);
        }
        for key in &c.gone_backends {
            self.backends.remove(key);
        }
        for key in &c.gone_owners {
            self.owners.remove(key);
        }
    }

    /// Names what does not hold together: frontends that lead to missing slots, slots and owners that nothing names.
    pub fn inconsistencies(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (key, v) in &self.frontends {
            let missing = (0..v.count.max(v.local)).filter(|&slot| {
                !self.backends.contains_key(&BackendKey {
                    set: v.set,
                    generation: v.generation,
                    slot,
                })
            });
            found.extend(
                missing.map(|slot| format!("{key:?} leads to slot {slot} of {:?}, which is missing", v.set)),
            );
        }
        for key in self.backends.keys() {
            let named = |v: &&FrontendValue| {
                v.set == key.set && v.generation == key.generation && key.slot < v.count.max(v.local)
            };
            if !self.frontends.values().any(|v| named(&v)) {
                found.push(format!("{key:?} is named by no frontend"));
            }
        }
        for set in self.owners.keys() {
            if !self.frontends.values().any(|v| v.set == *set) {
                found.push(format!("{set:?} has an owner and no frontend"));
            }
        }
        found
    }
}
