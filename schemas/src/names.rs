//! Names: which are allowed, and what becomes of those in files.

/// Longest name of an object, and longest part of a host name (RFC 1035).
pub const NAME_MAX: usize = 63;

/// Why `name` cannot be an object's: a message for its path. Dots are allowed here, as in host names of nodes; kinds
/// whose names become one part of a host name use [`label_fault`].
pub fn object_name_fault(name: &str) -> Option<String> {
    let good = |part: &str| is_label(part, NAME_MAX);
    match name {
        "" => Some("is needed".into()),
        _ if name.len() <= NAME_MAX && name.split('.').all(good) => None,
        _ => Some(refusal(name, "lower case letters, digits, '-' and '.'")),
    }
}

/// Why `name` cannot be one part of a host name.
pub fn label_fault(name: &str) -> Option<String> {
    match name {
        "" => Some("is needed".into()),
        _ if is_label(name, NAME_MAX) => None,
        _ => Some(refusal(name, "lower case letters, digits and '-'")),
    }
}

fn refusal(name: &str, alphabet: &str) -> String {
    let shown = crate::walk::show_plain(&name.into());
    let advice = match object_name(name) {
        Ok(better) if better != name => format!("; did you mean {better}?"),
        _ => String::new(),
    };
    format!("{shown} is not a name ({alphabet}, {NAME_MAX} at most, a letter or digit at both ends){advice}")
}

fn is_label(text: &str, max: usize) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=max).contains(&text.len())
        && text.bytes().all(|b| alphanumeric(b) || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// The name of the object made of a name in a file: lower case, `_` and `.` become `-`.
///
/// # Errors
/// Why even that is no name: a message for its path.
pub fn object_name(in_file: &str) -> Result<String, String> {
    let name: String =
        in_file.chars().map(|c| if matches!(c, '_' | '.') { '-' } else { c.to_ascii_lowercase() }).collect();
    if is_label(&name, NAME_MAX) {
        return Ok(name);
    }
    let shown = crate::walk::show_plain(&in_file.into());
    Err(if in_file.is_empty() {
        "a name is needed".into()
    } else {
        format!(
            "{shown} cannot become a name (letters, digits, '-', '_' and '.', {NAME_MAX} at most, a letter or digit at both ends)"
        )
    })
}

/// The name of what a bundle makes of a service or network of its file: `voting-app` and `vote` make `voting-app-vote`.
///
/// # Errors
/// Why that is no name: a message for the path of the name in the file.
pub fn bundle_object_name(bundle: &str, in_file: &str) -> Result<String, String> {
    let name = format!("{}-{}", object_name(bundle)?, object_name(in_file)?);
    match name.len() {
        0..=NAME_MAX => Ok(name),
        length => Err(format!("{name} has {length} characters, {NAME_MAX} at most; shorten this name or the bundle's")),
    }
}

/// Every name that a bundle's service answers to on the bundle's networks: its own in the file, then the object's, then
/// as old files expect it.
pub fn service_aliases(bundle: &str, in_file: &str) -> Vec<String> {
    let mut names = vec![in_file.to_ascii_lowercase()];
    names.extend(object_name(in_file));
    names.extend(bundle_object_name(bundle, in_file));
    names.push(format!("{bundle}_{in_file}").to_ascii_lowercase());
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_files_become_names_of_objects() {
        for (bundle, in_file, made) in [
            ("voting-app", "vote", Ok("voting-app-vote")),
            ("voting_app", "Vote.Web", Ok("voting-app-vote-web")),
            ("app", "a_", Err("cannot become a name")),
            ("app", "", Err("a name is needed")),
            ("app", "ünter", Err("cannot become a name")),
            ("app", &"x".repeat(60), Err("63 at most")),
        ] {
            match (bundle_object_name(bundle, in_file), made) {
                (Ok(name), Ok(expected)) => assert_eq!(name, expected),
                (Err(message), Err(expected)) => assert!(message.contains(expected), "{message}"),
                (found, expected) => panic!("{in_file}: {found:?}, expected {expected:?}"),
            }
        }
    }

    #[test]
    fn a_service_answers_to_the_names_that_old_files_expect() {
        assert_eq!(service_aliases("musicstore", "albums"), ["albums", "musicstore-albums", "musicstore_albums"]);
        assert_eq!(service_aliases("a", "b_c"), ["b_c", "b-c", "a-b-c", "a_b_c"]);
    }

    #[test]
    fn refusals_say_which_name_would_do() {
        assert_eq!(object_name_fault("n1.example.com"), None);
        assert!(label_fault("n1.example.com").unwrap().ends_with("did you mean n1-example-com?"));
        assert!(label_fault("Web_1").unwrap().ends_with("did you mean web-1?"));
        assert!(label_fault("-x").unwrap().contains("is not a name"));
        assert_eq!(label_fault("").unwrap(), "is needed");
    }
}
