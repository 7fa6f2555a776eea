//! Controllers that run beside the store.
