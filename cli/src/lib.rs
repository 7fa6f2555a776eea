//! What people run: `applyctl`, the command, and what it shares with `applyd`, the daemon.
//!
//! The command decides nothing: it reads what was typed, calls the API and prints. Whatever judges or converges is in
//! `schemas`, `reconciler` or `controllers`.

pub mod applyctl;
pub mod daemon;
pub mod stream;
pub mod tls;
mod usage;
