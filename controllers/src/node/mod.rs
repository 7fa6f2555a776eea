//! Controllers that run on every machine, and the parts they act through. Reading order: `sys` (raw system calls, the
//! only `unsafe`), `spec` (the document that runc and crun read), `containerd` (execution), `images`, `volumes`, `links`
//! and `mesh` (the data plane), `names`, `keep` (the small process that outlives applyd).

pub mod containerd;
pub mod identity;
pub mod images;
pub mod keep;
pub mod links;
pub mod logs;
pub mod machine;
pub mod mesh;
pub mod names;
pub mod spec;
pub mod surroundings;
pub mod sys;
pub mod tasks;
pub mod volumes;
pub mod wireguard;
