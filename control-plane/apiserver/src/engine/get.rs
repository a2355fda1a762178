//! GET of one object.

use control_plane_store::Snapshot;

use crate::call::{Call, Reply};
use crate::engine::list;
use crate::error::{Result, fail};
use crate::options::ListOptions;

/// Reads the object the path names: the newest state, or with `resourceVersion` one at least as new.
pub(crate) async fn get(call: &Call) -> Result<Reply> {
    let options = ListOptions {
        version: call.query.number("resourceVersion")?,
        ..ListOptions::default()
    };
    let snapshot = list::snapshot_for(call, &options).await?;
    stored(call, &snapshot)
}

/// The object the path names, as it is in a snapshot.
pub(crate) fn stored(call: &Call, snapshot: &Snapshot) -> Result<Reply> {
    match snapshot.get(&call.key()?) {
        Some(entry) => Ok(Reply::Stored {
            code: 200,
            entry: entry.value.clone(),
            modified: entry.modified,
        }),
        None => fail(call.not_found()),
    }
}
