//! Raw system calls. The only place where `unsafe` may stand.

pub mod cgroup;
pub mod readiness;
pub mod view;
