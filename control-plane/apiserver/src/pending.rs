//! Interim stand-ins until the `api` crate has them.
#![allow(dead_code)]

pub(crate) mod apply {
    use api::schema::Schema;
    use api::status::Status;
    use serde_json::Value;

    pub(crate) struct Conflicts;

    impl Conflicts {
        pub(crate) fn status(&self) -> Status {
            Status::internal("apply conflict")
        }
    }

    pub(crate) fn apply(
        _: &Schema,
        live: Option<&Value>,
        applied: &Value,
        _: &str,
        _: bool,
        _: Option<&str>,
        _: jiff::Timestamp,
    ) -> Result<Value, Conflicts> {
        match live {
            Some(live) => api::patch::merge(live, applied).map_err(|_| Conflicts),
            None => Ok(applied.clone()),
        }
    }

    pub(crate) fn track_update(
        _: &Schema,
        _: Option<&Value>,
        _: &mut Value,
        _: &str,
        _: &str,
        _: Option<&str>,
        _: jiff::Timestamp,
    ) {
    }
}
