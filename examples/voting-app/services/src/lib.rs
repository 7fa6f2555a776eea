//! What the three programs of the voting application share: a small HTTP server that stops without dropping
//! anybody, and just enough of the languages of Redis and PostgreSQL.
//!
//! The application itself is in `bin/`, one file a program, in the order in which a vote travels:
//!
//! - `vote` shows a page with two choices and puts each vote into a Redis list;
//! - `worker` moves votes from Redis to PostgreSQL, one vote a voter, none lost, none counted twice;
//! - `result` shows the counts and sends every change to the browsers that are watching.
//!
//! Everything is `std` and threads. Each program is linked statically and is the only file of its image.

pub mod backoff;
pub mod dial;
pub mod http;
pub mod page;
pub mod postgres;
pub mod redis;
pub mod settings;
pub mod stop;
pub mod vote;
