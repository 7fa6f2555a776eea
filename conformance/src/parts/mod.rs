//! Real parts that suites run against, each private to its test and gone with it; and one stub.

pub mod chance;
#[expect(clippy::disallowed_methods, reason = "tests of the real world wait in real time")]
pub mod containerd;
pub mod debian;
pub mod etcd;
pub mod installation;
#[expect(clippy::disallowed_methods, reason = "tests of the real world wait in real time")]
pub mod machine;
pub mod process;
pub mod registry;
pub mod stub_registry;
