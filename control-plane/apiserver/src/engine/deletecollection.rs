//! DELETE of a whole collection.

use api::meta::Meta;
use serde_json::json;

use crate::call::{Call, Reply};
use crate::engine::delete::{self, DeleteOptions};
use crate::error::Result;
use crate::filter::Filter;
use crate::object;
use crate::options::ListOptions;

/// Deletes every object that the selectors match, one after the other.
pub(crate) async fn delete_collection(call: &Call, body: &[u8]) -> Result<Reply> {
    let options = DeleteOptions::parse(call, body)?;
    let list = ListOptions::parse(&call.query, false)?;
    let filter = Filter::parse(&call.stored, &list.label_selector, &list.field_selector)?;
    let prefix = object::prefix(&call.stored, call.namespace());
    let snapshot = call.server.inner.store.fresh().await?;
    let found = snapshot
        .range(&prefix, &prefix)
        .filter(|(_, e)| filter.matches(&e.value));
    let mut items = Vec::new();
    for (key, entry) in found {
        let deleted = delete::delete_key(call, key.to_vec(), &options).await;
        match deleted {
            Ok(_) => items.push(object::value(entry)?),
            // Gone already: somebody else deleted it, which is what was wanted.
            Err(failure) if failure.status.code == 404 => {}
            Err(failure) => return Err(failure),
        }
    }
    debug_assert!(items.iter().all(|item| !Meta::of(item).name().is_empty()));
    let list = json!({"kind": format!("{}List", call.res.kind), "apiVersion": call.res.api_version(),
        "metadata": {"resourceVersion": snapshot.revision().to_string()}, "items": items});
    Ok(Reply::Other {
        code: 200,
        value: list,
    })
}
