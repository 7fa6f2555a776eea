//! What a machine does when its parts are killed, and when its power is cut. Needs root.

mod kills;
mod power;
