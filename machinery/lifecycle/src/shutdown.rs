//! The wish to stop, as seen by every task.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A wish to stop that many tasks can wait for. Clones are the same wish; a [`Shutdown::child`] is also fulfilled when
/// its parent is, but not the other way round.
#[derive(Clone, Debug, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// A wish that nobody has made yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A wish that SIGTERM or SIGINT makes. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// When the signal handlers cannot be installed.
    pub fn on_signals() -> io::Result<Self> {
        let shutdown = Self::new();
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let wish = shutdown.clone();
        tokio::spawn(async move {
            let name = tokio::select! {
                _ = term.recv() => "SIGTERM",
                _ = int.recv() => "SIGINT",
                () = wish.requested() => return,
            };
            tracing::info!(signal = name, "stopping");
            wish.request();
        });
        Ok(shutdown)
    }

    /// Makes the wish.
    pub fn request(&self) {
        self.0.cancel();
    }

    /// Whether the wish was made.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until the wish is made.
    pub async fn requested(&self) {
        self.0.cancelled().await;
    }

    /// Like [`Shutdown::requested`], without borrowing.
    pub fn into_requested(self) -> impl Future<Output = ()> + Send + 'static {
        self.0.cancelled_owned()
    }

    /// A wish of its own that is also made when this one is.
    #[must_use]
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }
}
