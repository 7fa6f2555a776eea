//! Which of an image's builds runs on this machine.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An operating system and a processor, in the words of image indexes: `linux/amd64`, `linux/arm/v7`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    /// Empty when the architecture has no variants, or the oldest one is meant.
    pub variant: String,
}

/// The text is not a platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a platform such as linux/amd64 or linux/arm/v7")]
pub struct BadPlatform(String);

impl Platform {
    /// The platform that this program was built for.
    pub fn of_this_machine() -> Platform {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "x86" => ("386", ""),
            "aarch64" => ("arm64", ""),
            "arm" => ("arm", "v7"),
            "powerpc64" => ("ppc64le", ""),
            other => (other, ""),
        };
        Platform::new("linux", architecture, variant)
    }

    /// A platform with its variant in the one form that is compared: `arm64/v8` and `amd64/v1` are the plain ones,
    /// `arm` alone is `arm/v7`.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Platform {
        let architecture = match architecture {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            "i386" => "386",
            same => same,
        };
        let variant = match (architecture, variant) {
            ("amd64", "v1") | ("arm64", "v8" | "8") => "",
            ("arm", "" | "7") => "v7",
            ("arm", "6") => "v6",
            ("arm", "5") => "v5",
            (_, same) => same,
        };
        Platform { os: os.to_owned(), architecture: architecture.to_owned(), variant: variant.to_owned() }
    }

    /// How well something built for `offered` runs here; smaller is better, none when it does not run.
    pub fn distance(&self, offered: &Platform) -> Option<u8> {
        if self.os != offered.os {
            return None;
        }
        if self == offered {
            return Some(0);
        }
        match (self.architecture.as_str(), offered.architecture.as_str()) {
            // An older variant runs on a newer processor, never the other way round.
            (ours, theirs) if ours == theirs => {
                let newer_by = variant_number(&self.variant)?.checked_sub(variant_number(&offered.variant)?)?;
                Some(newer_by)
            }
            ("amd64", "386") => Some(100),
            ("arm64", "arm") if offered.variant != "v8" => Some(100 + 7 - variant_number(&offered.variant)?.min(7)),
            _ => None,
        }
    }

    /// The position of the best of `offered`, the first one among equals.
    pub fn choose(&self, offered: &[Platform]) -> Option<usize> {
        let distances = offered.iter().enumerate().filter_map(|(at, platform)| Some((self.distance(platform)?, at)));
        distances.min().map(|(_, at)| at)
    }
}

/// `v6` is 6; no variant is the oldest.
fn variant_number(variant: &str) -> Option<u8> {
    if variant.is_empty() { Some(0) } else { variant.strip_prefix('v')?.parse().ok() }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

impl FromStr for Platform {
    type Err = BadPlatform;

    fn from_str(text: &str) -> Result<Self, BadPlatform> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts[..] {
            [os, architecture] if !os.is_empty() && !architecture.is_empty() => Ok(Platform::new(os, architecture, "")),
            [os, architecture, variant] if !os.is_empty() && !architecture.is_empty() && !variant.is_empty() => {
                Ok(Platform::new(os, architecture, variant))
            }
            _ => Err(BadPlatform(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Platform {
    type Error = BadPlatform;
    fn try_from(text: String) -> Result<Self, BadPlatform> {
        text.parse()
    }
}

impl From<Platform> for String {
    fn from(platform: Platform) -> String {
        platform.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_build_is_chosen() {
        for (ours, offered, chosen) in [
            ("linux/amd64", "linux/arm64 linux/amd64 windows/amd64", Some("linux/amd64")),
            ("linux/amd64", "linux/386 linux/amd64/v1", Some("linux/amd64")),
            ("linux/amd64", "linux/386 linux/arm64", Some("linux/386")),
            ("linux/amd64", "linux/amd64/v3", None),
            ("linux/amd64", "linux/arm64 windows/amd64", None),
            ("linux/arm64", "linux/arm/v6 linux/arm/v7 linux/amd64", Some("linux/arm/v7")),
            ("linux/arm64", "linux/arm/v7 linux/arm64/v8", Some("linux/arm64")),
            ("linux/arm/v7", "linux/arm/v5 linux/arm/v6 linux/arm64", Some("linux/arm/v6")),
            ("linux/arm/v6", "linux/arm/v7", None),
            ("linux/amd64", "", None),
        ] {
            let ours: Platform = ours.parse().unwrap();
            let offered: Vec<Platform> = offered.split_whitespace().map(|text| text.parse().unwrap()).collect();
            let got = ours.choose(&offered).map(|at| offered[at].to_string());
            assert_eq!(got.as_deref(), chosen, "{ours} of {offered:?}");
        }
    }

    #[test]
    fn what_is_not_a_platform_is_refused() {
        for text in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/arm/"] {
            assert!(text.parse::<Platform>().is_err(), "{text:?}");
        }
    }
}
