//! What is special to each kind and cannot be said by the schema: defaults, preparation of writes, validation,
//! selectable fields. Everything is dispatched on the [`Resource`]; kinds that are not named here get the general rules.

pub(crate) mod access;
mod constants;
mod defaults;
mod lifecycle;
mod qos;
pub mod quota;
mod selectable;
mod validate;

pub use defaults::defaults;
pub use lifecycle::{mark_deleted, prepare_create, prepare_update};
pub use qos::qos_class;
pub use selectable::selectable_fields;
pub use validate::{validate_create, validate_update, validate_update_of};

use crate::catalog::Resource;

/// What a write knows about its request.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The time of the request.
    pub now: jiff::Timestamp,
    /// Who asks.
    pub user: &'a str,
    /// The subresource that is written (`status`, `finalize` …), if it is not the object itself.
    pub subresource: Option<&'a str>,
}

/// Group and plural, to match on.
fn id(res: &Resource) -> (&str, &str) {
    (&res.group, &res.plural)
}

/// Whether the resource is defined by a custom resource definition: built-in schemas have names.
fn is_custom(res: &Resource) -> bool {
    res.schema.name.is_none()
}

#[cfg(test)]
mod robustness;
