//! Which name was meant.

/// The one of `known` that `typed` most likely was meant to be: a mistake or two away, or the same but for case, `-`
/// and `_`. Nothing when no name is near.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| -> Vec<char> {
        text.chars().filter(|c| !matches!(c, '-' | '_')).flat_map(char::to_lowercase).take(LONGEST).collect()
    };
    let wanted = plain(typed);
    let limit = (wanted.len() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|name| (distance(&wanted, &plain(name)), name))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, name)| name)
}

/// Names are compared by their beginning, so that a hostile name costs no more than a long one.
const LONGEST: usize = 64;

/// Edits between two words: insertions, deletions, replacements, and swaps of neighbours (optimal string alignment).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let replaced = last[j] + usize::from(x != y);
            let mut least = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_or_two_is_seen_through() {
        let known = ["volumes", "image", "replicas", "stopGrace", "env", "args"];
        for (typed, meant) in [
            ("volums", Some("volumes")),
            ("Image", Some("image")),
            ("imgae", Some("image")),
            ("replica", Some("replicas")),
            ("stop_grace", Some("stopGrace")),
            ("stop-grace", Some("stopGrace")),
            ("arg", Some("args")),
            ("environment", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, known), meant, "{typed}");
        }
        assert_eq!(nearest(&"v".repeat(1 << 20), known), None);
    }
}
