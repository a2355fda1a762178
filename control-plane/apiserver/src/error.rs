//! The one place that maps failures of the layers below to an API `Status`.

use api::status::Status;
use control_plane_store::StoreError;

use crate::options::OptionError;

/// Why a request ends without what it asked for. Becomes a `Status` object on the wire.
#[derive(Debug)]
pub struct Failure {
    /// The status to send.
    pub status: Box<Status>,
    /// Token with which a list that fell behind may go on at the newest state.
    pub continue_token: Option<Box<str>>,
}

/// Result of everything that serves a request.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self {
            status: Box::new(status),
            continue_token: None,
        }
    }
}

impl From<OptionError> for Failure {
    fn from(error: OptionError) -> Self {
        Status::bad_request(error.to_string()).into()
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Compacted { oldest } => Status::expired(format!(
                "The resourceVersion for the provided list is too old; the oldest is {oldest}"
            )),
            StoreError::Timeout(_) => Status::timeout(error),
            StoreError::Unavailable(_) | StoreError::Closed => Status::unavailable(error.to_string()),
            StoreError::Future { .. } | StoreError::Conflict { .. } => Status::internal(error),
        }
        .into()
    }
}

/// Ends a request with this status.
pub fn fail<T>(status: Status) -> Result<T> {
    Err(status.into())
}
