//! What is said: kinds, defaults and validation, and the readers of the files that people bring. Pure data: no I/O,
//! no async.

pub mod image;
