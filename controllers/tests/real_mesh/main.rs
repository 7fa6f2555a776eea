//! The data plane of one machine on a real kernel, as root, in network namespaces that each test makes for itself.

mod apart;
mod changes;
mod lab;
mod machine;
mod reach;
mod scale;
