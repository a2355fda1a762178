//! Carries pod actions out over the Container Runtime Interface.
