//! What a deployment may say, by environment variables.

use std::env;
use std::fs;

/// A variable, or its default when it is absent or empty.
pub fn var(name: &str, default: &str) -> String {
    env::var(name).ok().filter(|value| !value.is_empty()).unwrap_or_else(|| default.to_owned())
}

/// A port from a variable.
pub fn port(name: &str, default: u16) -> Result<u16, String> {
    let value = var(name, &default.to_string());
    value.parse().map_err(|_| format!("{name}={value} is not a port (1-65535)"))
}

/// The two things to choose from: `OPTION_A` and `OPTION_B`.
pub fn options() -> [String; 2] {
    [var("OPTION_A", "Cats"), var("OPTION_B", "Dogs")]
}

/// The name of the container, which is its host name.
pub fn served_by() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned()).unwrap_or_default()
}
