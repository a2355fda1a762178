//! Texts that many objects have in common, kept once.
use hashbrown::HashSet;
use std::sync::Arc;

/// How many texts there are at least before unused ones are looked for.
const FEW: usize = 256;

/// Names of namespaces and ports: few, and in every service.
pub(crate) struct Texts {
    known: HashSet<Arc<str>>,
    /// How many there may be before unused ones are looked for.
    enough: usize,
}

impl Default for Texts {
    fn default() -> Self {
        Self {
            known: HashSet::default(),
            enough: FEW,
        }
    }
}

impl Texts {
    /// The one copy of this text.
    pub fn shared(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.known.get(text) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.enough {
            self.known.retain(|text| Arc::strong_count(text) > 1);
            self.enough = FEW.max(self.known.len() * 2);
        }
        let new: Arc<str> = text.into();
        self.known.insert(Arc::clone(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_kept_once_and_only_as_long_as_somebody_has_it() {
        let mut texts = Texts::default();
        let first = texts.shared("http");
        assert!(Arc::ptr_eq(&first, &texts.shared("http")));
        for i in 0..10 * FEW {
            texts.shared(&format!("port-{i}"));
        }
        assert!(texts.known.len() <= 2 * FEW);
        assert!(Arc::ptr_eq(&first, &texts.shared("http")));
    }
}
