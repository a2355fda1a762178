//! Keyed queue, runner and executor shared by all controllers.
