//! Export and import of everything.

/// What an export or import moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transferred {
    /// Keys.
    pub keys: usize,
}
