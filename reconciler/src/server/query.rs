//! What stands behind the question mark.

use axum::extract::Query;
use axum::http::Uri;

use crate::objects::{Continue, Propagation};
use crate::objects::{Selector, wire};

use super::answer::Problem;

/// Kubernetes' parameters, as far as they are served. Others are ignored, as Kubernetes does.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked {
    pub watch: bool,
    pub bookmarks: bool,
    pub initial_events: bool,
    /// Empty and `0`: as things stand.
    pub resource_version: Option<u64>,
    pub limit: usize,
    pub from: Option<Continue>,
    pub labels: Selector,
    pub fields: Selector,
    pub dry_run: bool,
    pub field_manager: Option<String>,
    pub propagation: Option<Propagation>,
    pub timeout_seconds: Option<u64>,
    /// Of a stream.
    pub selections: Option<String>,
    pub epoch: Option<String>,
}

pub(super) fn parse(uri: &Uri) -> Result<Asked, Problem> {
    let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
        .map_err(|error| Problem::bad_request(format!("the query cannot be read: {error}")))?;
    let mut asked = Asked::default();
    for (name, value) in pairs {
        asked.take(&name, value)?;
    }
    Ok(asked)
}

impl Asked {
    fn take(&mut self, name: &str, value: String) -> Result<(), Problem> {
        let wrong = |what: &str| Problem::bad_request(format!("{name}={value:?}: expected {what}"));
        let flag = || match value.as_str() {
            "true" | "1" => Ok(true),
            "false" | "0" | "" => Ok(false),
            _ => Err(wrong("true or false")),
        };
        let number = || value.parse::<u64>().map_err(|_| wrong("a number"));
        let selector = || value.parse::<Selector>().map_err(|error| Problem::bad_request(error.to_string()));
        match name {
            "watch" => self.watch = flag()?,
            "allowWatchBookmarks" => self.bookmarks = flag()?,
            "sendInitialEvents" => self.initial_events = flag()?,
            "resourceVersion" if value.is_empty() => {}
            "resourceVersion" => self.resource_version = Some(number()?).filter(|version| *version != 0),
            "limit" => self.limit = usize::try_from(number()?).unwrap_or(usize::MAX),
            "continue" if value.is_empty() => {}
            "continue" => {
                self.from =
                    Some(wire::read_continue(&value).ok_or_else(|| wrong("what a list said to continue with"))?);
            }
            "labelSelector" => self.labels = selector()?,
            "fieldSelector" => self.fields = selector()?,
            "dryRun" => match value.as_str() {
                "All" => self.dry_run = true,
                "" => {}
                _ => return Err(wrong("All")),
            },
            "fieldManager" => self.field_manager = Some(value),
            "propagationPolicy" => self.propagation = Some(propagation(&value).ok_or_else(|| wrong(PROPAGATIONS))?),
            "timeoutSeconds" => self.timeout_seconds = Some(number()?).filter(|seconds| *seconds != 0),
            "selections" => self.selections = Some(value),
            "epoch" => self.epoch = Some(value),
            _ => {}
        }
        Ok(())
    }
}

pub(super) const PROPAGATIONS: &str = "Background, Foreground or Orphan";

pub(super) fn propagation(word: &str) -> Option<Propagation> {
    Some(match word {
        "Background" => Propagation::Background,
        "Foreground" => Propagation::Foreground,
        "Orphan" => Propagation::Orphan,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_and_wrong_ones_are_named() {
        let uri: Uri =
            "/x?watch=1&resourceVersion=12&labelSelector=a%3Db%2Cc+in+%28d%2Ce%29&limit=5&other=1".parse().unwrap();
        let asked = parse(&uri).unwrap();
        assert!(asked.watch && !asked.bookmarks);
        assert_eq!((asked.resource_version, asked.limit), (Some(12), 5));
        assert_eq!(asked.labels.to_string(), "a=b,c in (d,e)");
        for wrong in [
            "watch=maybe",
            "limit=-1",
            "resourceVersion=x",
            "labelSelector=%3Dx",
            "dryRun=Some",
            "continue=x",
            "propagationPolicy=No",
        ] {
            let problem = parse(&format!("/x?{wrong}").parse().unwrap()).unwrap_err();
            assert!(
                problem.to_string().contains(wrong.split('=').next().unwrap()) || wrong.contains("elector"),
                "{problem}"
            );
        }
    }
}
