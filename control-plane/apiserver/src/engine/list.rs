//! LIST: which state is read, which objects are in it, and where the next page begins.

use std::sync::Arc;
use std::time::Duration;

use api::status::Status;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use control_plane_store::{Entry, Revision, Snapshot, StoreError};
use serde::{Deserialize, Serialize};

use crate::call::{Call, Reply};
use crate::error::{Failure, Result, fail};
use crate::filter::Filter;
use crate::object;
use crate::options::{ListOptions, VersionMatch};

/// How long a read waits for a version that is ahead of us, as upstream.
const FUTURE_WAIT: Duration = Duration::from_secs(3);

/// A list, not yet encoded.
pub(crate) struct Listing {
    pub(crate) snapshot: Snapshot,
    pub(crate) prefix: Vec<u8>,
    pub(crate) filter: Filter,
    /// The revision in the list's metadata.
    pub(crate) revision: Revision,
    /// The entries of one page; `None` means everything from the start of the prefix, to be streamed.
    pub(crate) page: Option<Vec<Arc<Entry>>>,
    pub(crate) continue_token: String,
    pub(crate) remaining: Option<usize>,
}

impl Listing {
    /// All matching entries, in the order of their keys.
    pub(crate) fn entries(&self) -> Box<dyn Iterator<Item = &Arc<Entry>> + '_> {
        match &self.page {
            Some(page) => Box::new(page.iter()),
            None => Box::new(
                self.snapshot
                    .range(&self.prefix, &self.prefix)
                    .map(|(_, entry)| entry)
                    .filter(|entry| self.filter.matches(&entry.value)),
            ),
        }
    }
}

/// What a continue token holds; the format is ours alone, clients treat it as opaque.
#[derive(Serialize, Deserialize)]
struct Continue {
    /// Revision of the pages; -1 goes on at the newest state.
    rv: i64,
    /// The key after which to go on, below the prefix.
    start: String,
}

impl Continue {
    fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).expect("two plain fields always serialise"))
    }

    fn decode(token: &str) -> Result<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok();
        let decoded = bytes.and_then(|b| serde_json::from_slice(&b).ok());
        decoded.ok_or_else(|| {
            Status::bad_request("continue key is not valid: it was not given by this server").into()
        })
    }
}

/// Serves a list.
pub(crate) async fn list(call: &Call) -> Result<Reply> {
    let options = ListOptions::parse(&call.query, false)?;
    let filter = Filter::parse(&call.stored, &options.label_selector, &options.field_selector)?;
    let prefix = object::prefix(&call.stored, call.namespace());
    if options.continue_token.is_empty() {
        let snapshot = snapshot_for(call, &options).await?;
        return Ok(Reply::List(page(
            snapshot,
            prefix.clone(),
            prefix,
            filter,
            options.limit,
        )));
    }
    let from = Continue::decode(&options.continue_token)?;
    let mut start = prefix.clone();
    start.extend_from_slice(from.start.as_bytes());
    start.push(0);
    let snapshot = snapshot_of(call, &from).await?;
    Ok(Reply::List(page(snapshot, prefix, start, filter, options.limit)))
}

/// The state that the options of a read ask for.
pub(crate) async fn snapshot_for(call: &Call, options: &ListOptions) -> Result<Snapshot> {
    let store = &call.server.inner.store;
    let exact = match options.version_match {
        Some(VersionMatch::Exact) => true,
        // The old rule: a limit with a version and no match means exactly that version.
        None => options.limit > 0 && options.version.is_some_and(|v| v > 0),
        Some(VersionMatch::NotOlderThan) => false,
    };
    match options.version {
        None => Ok(store.fresh().await?),
        Some(0) => Ok(store.snapshot()),
        Some(version) if exact => at_exactly(call, version).await,
        Some(version) => not_older_than(call, version).await,
    }
}

pub(crate) async fn not_older_than(call: &Call, version: u64) -> Result<Snapshot> {
    match call
        .server
        .inner
        .store
        .at_least(Revision::new(version), FUTURE_WAIT)
        .await
    {
        Ok(snapshot) => Ok(snapshot),
        Err(StoreError::Future { current }) => fail(Status::too_large_rv(version, current.get())),
        Err(other) => Err(other.into()),
    }
}

async fn at_exactly(call: &Call, version: u64) -> Result<Snapshot> {
    not_older_than(call, version).await?;
    Ok(call.server.inner.store.at(Revision::new(version))?)
}

async fn snapshot_of(call: &Call, from: &Continue) -> Result<Snapshot> {
    let Ok(rv) = u64::try_from(from.rv) else {
        return Ok(call.server.inner.store.fresh().await?);
    };
    match call.server.inner.store.at(Revision::new(rv)) {
        Ok(snapshot) => Ok(snapshot),
        Err(StoreError::Compacted { .. }) => Err(expired(from)),
        Err(other) => Err(other.into()),
    }
}

/// 410 with a token that goes on at the newest state: the rest of the list will not fit the pages before.
fn expired(from: &Continue) -> Failure {
    let message = "The provided continue parameter is too old to display a consistent list result. You can start a \
                   new list without the continue parameter, or use the continue token in this response to retrieve \
                   the remainder of the results. Continuing with the provided token results in an inconsistent list \
                   - objects that were created, modified, or deleted between the time the first chunk was returned \
                   and now may show up in the list.";
    let mut failure = Failure::from(Status::expired(message));
    failure.continue_token = Some(
        Continue {
            rv: -1,
            start: from.start.clone(),
        }
        .encode()
        .into(),
    );
    failure
}

fn page(snapshot: Snapshot, prefix: Vec<u8>, start: Vec<u8>, filter: Filter, limit: usize) -> Listing {
    let revision = snapshot.revision();
    let mut listing = Listing {
        snapshot,
        prefix,
        filter,
        revision,
        page: None,
        continue_token: String::new(),
        remaining: None,
    };
    if limit > 0 || start != listing.prefix {
        listing.fill(&start, if limit == 0 { usize::MAX } else { limit });
    }
    listing
}

impl Listing {
    fn fill(&mut self, start: &[u8], limit: usize) {
        let mut found: Vec<Arc<Entry>> = Vec::new();
        let mut last: &[u8] = &[];
        let mut rest = self.snapshot.range(&self.prefix, start);
        let mut more = false;
        for (key, entry) in rest
            .by_ref()
            .filter(|(_, entry)| self.filter.matches(&entry.value))
        {
            if found.len() == limit {
                more = true;
                break;
            }
            last = key;
            found.push(Arc::clone(entry));
        }
        if more {
            let start = String::from_utf8_lossy(&last[self.prefix.len()..]).into_owned();
            let rv = i64::try_from(self.revision.get()).unwrap_or(i64::MAX);
            self.continue_token = Continue { rv, start }.encode();
            // As upstream: with a selector the number of the remaining ones is not told.
            self.remaining = self.filter.is_everything().then(|| rest.count() + 1);
        }
        self.page = Some(found);
    }
}
