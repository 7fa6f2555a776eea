//! How times, sizes and images read on a screen. Whole values are in `-o json`.

use std::time::Duration;

use schemas::Timestamp;
use schemas::kinds::service::{PublishMode, PublishedPort};
use unicode_width::UnicodeWidthStr;

/// How many columns of a terminal a text takes.
pub fn width(text: &str) -> usize {
    text.width()
}

/// The text with blanks behind it, up to so many columns.
pub fn padded(text: &str, columns: usize) -> String {
    format!("{text}{}", " ".repeat(columns.saturating_sub(width(text))))
}

/// A text from elsewhere as one line of a screen: without what moves the cursor or changes colours there.
pub fn line(text: &str) -> String {
    let plain = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.collect()
}

/// `7 s`, `12 min`, `5 h`, `3 d`.
pub fn rough(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `6.2 s`; from a minute on like [`rough`].
pub fn fine(duration: Duration) -> String {
    if duration.as_secs() < 60 { format!("{:.1} s", duration.as_secs_f64()) } else { rough(duration) }
}

/// How long ago; `–` when it is not known.
pub fn ago(then: Option<Timestamp>, now: Timestamp) -> String {
    then.map_or_else(|| "–".to_owned(), |then| rough(now.since(then)))
}

/// `31/47 MB`.
pub fn progress(done: u64, total: u64) -> String {
    let mega = |bytes: u64| bytes.div_ceil(1_000_000);
    format!("{}/{} MB", mega(done), mega(total))
}

/// `1.2 GB`, in powers of ten as disks are sold.
pub fn bytes(bytes: u64) -> String {
    match bytes {
        0..=999 => format!("{bytes} B"),
        1_000..=999_999 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..=999_999_999 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// An image reference with its digest short: `example/vote@sha256:5a1c…`.
pub fn image(reference: &str) -> String {
    match reference.split_once("@sha256:") {
        Some((name, digest)) if digest.len() > 8 => format!("{name}@sha256:{}…", digest.get(..4).unwrap_or(digest)),
        _ => reference.to_owned(),
    }
}

/// Ports as they are open: `5000→80, 53→53/udp`; those without a number yet are `→80`.
pub fn ports(ports: &[PublishedPort]) -> String {
    let one = |port: &PublishedPort| {
        let published = port.published.map(|number| number.to_string()).unwrap_or_default();
        let protocol = match port.protocol.as_str() {
            "tcp" => String::new(),
            other => format!("/{other}"),
        };
        let mode = if port.mode == PublishMode::Host { " (host)" } else { "" };
        format!("{published}→{}{protocol}{mode}", port.target)
    };
    ports.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// `1 task`, `3 tasks`.
pub fn count(number: usize, singular: &str) -> String {
    match (number, singular.strip_suffix('y')) {
        (1, _) => format!("1 {singular}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        (_, None) if singular.ends_with('s') => format!("{number} {singular}"),
        _ => format!("{number} {singular}s"),
    }
}

/// Reads `90`, `90s`, `5m`, `1h30m`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    text.parse::<schemas::Period>().map(Duration::from).map_err(|error| error.to_string())
}

/// Reads `2`, and says what would be right of anything else.
pub fn parse_number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "a whole number is expected, such as 2".to_owned())
}

#[cfg(test)]
mod tests {
    use schemas::kinds::service::Protocol;

    use super::*;

    #[test]
    fn times_are_near_and_short() {
        for (seconds, expected) in [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7_200, "2 h"), (200_000, "2 d")] {
            assert_eq!(rough(Duration::from_secs(seconds)), expected);
        }
        assert_eq!(fine(Duration::from_millis(6_240)), "6.2 s");
        assert_eq!(ago(None, Timestamp::from_seconds(5)), "–");
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert!(parse_duration("soon").is_err());
    }

    #[test]
    fn digests_are_short_and_ports_are_read_from_outside_in() {
        let digest = "5a1c0e7f4b6d92833e5f70c1a2b4d6e8f90123456789abcdef0123456789abcd";
        assert_eq!(image(&format!("example/vote@sha256:{digest}")), "example/vote@sha256:5a1c…");
        assert_eq!(image("example/vote:1"), "example/vote:1");
        let tcp = PublishedPort { target: 80, published: Some(5000), ..PublishedPort::default() };
        let udp = PublishedPort { target: 53, protocol: Protocol::Udp, ..PublishedPort::default() };
        assert_eq!(ports(&[tcp, udp]), "5000→80, →53/udp");
    }

    #[test]
    fn wide_letters_take_two_columns_and_what_moves_the_cursor_takes_none() {
        assert_eq!(padded("東京", 6), "東京  ");
        assert_eq!(padded("abc", 2), "abc");
        assert_eq!(line("  no\n\u{1b}[2Janswer\n"), "no  [2Janswer");
    }

    #[test]
    fn counts_agree_with_their_nouns() {
        assert_eq!(count(1, "task"), "1 task");
        assert_eq!(count(2, "registry"), "2 registries");
        assert_eq!(count(0, "service"), "0 services");
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_234_567), "1.2 MB");
        assert_eq!(progress(30_900_000, 47_000_000), "31/47 MB");
    }
}
