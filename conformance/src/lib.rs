//! What is promised: black-box suites over real parts, and the means to run them. Nothing depends on this crate.

pub mod bench;
pub mod browser;
pub mod demo;
pub mod images;
pub mod lab;
#[expect(clippy::disallowed_methods, reason = "the real world is asked in real time")]
pub mod load;
#[expect(clippy::disallowed_methods, reason = "the real world is watched in real time")]
pub mod observer;
pub mod parts;
pub mod picture;
pub mod prove;
