//! Real parts that suites run against, each private to its test and gone with it.

pub mod containerd;
