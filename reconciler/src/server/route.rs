//! What a path means. A pure function: there are as many paths as there are kinds, and kinds come and go.

use percent_encoding::percent_decode_str;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Health,
    Ready,
    Metrics,
    Version,
    /// `/api`: the versions of the group without a name, in which some kinds are served a second time.
    Core,
    CoreResources,
    Groups,
    Group(String),
    Resources {
        group: String,
        version: String,
    },
    /// The dialect before `OpenApi`, in which nothing is said.
    OpenApi2,
    OpenApi,
    OpenApiOf {
        group: String,
        version: String,
    },
    Commits,
    Stream,
    Collection {
        at: Place,
    },
    Object {
        at: Place,
        name: String,
        subresource: String,
    },
}

/// Which objects a path speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub group: String,
    pub version: String,
    pub namespace: Option<String>,
    pub plural: String,
}

/// `None` when nothing is served there.
pub(super) fn parse(path: &str) -> Option<Route> {
    let decoded = path.trim_matches('/').split('/').map(|segment| percent_decode_str(segment).decode_utf8());
    let segments: Vec<String> = decoded.map(|segment| segment.ok().map(String::from)).collect::<Option<_>>()?;
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    Some(match segments.as_slice() {
        ["healthz" | "livez"] => Route::Health,
        ["readyz"] => Route::Ready,
        ["metrics"] => Route::Metrics,
        ["version"] => Route::Version,
        ["api"] => Route::Core,
        ["api", "v1"] => Route::CoreResources,
        ["api", "v1", rest @ ..] => objects("", "v1", rest)?,
        ["openapi", "v2"] => Route::OpenApi2,
        ["openapi", "v3"] => Route::OpenApi,
        ["openapi", "v3", "api", version] => Route::OpenApiOf { group: String::new(), version: (*version).into() },
        ["openapi", "v3", "apis", group, version] => {
            Route::OpenApiOf { group: (*group).into(), version: (*version).into() }
        }
        ["apis"] => Route::Groups,
        ["apis", group] => Route::Group((*group).into()),
        ["apis", group, version] => Route::Resources { group: (*group).into(), version: (*version).into() },
        ["apis", "apply", "v1", "commits"] => Route::Commits,
        ["apis", "apply", "v1", "stream"] => Route::Stream,
        ["apis", group, version, rest @ ..] => objects(group, version, rest)?,
        _ => return None,
    })
}

fn objects(group: &str, version: &str, rest: &[&str]) -> Option<Route> {
    let at = |namespace: Option<&str>, plural: &str| Place {
        group: group.into(),
        version: version.into(),
        namespace: namespace.map(str::to_owned),
        plural: plural.into(),
    };
    let object = |at: Place, name: &str, subresource: &str| Route::Object {
        at,
        name: name.into(),
        subresource: subresource.into(),
    };
    let route = match rest {
        [plural] => Route::Collection { at: at(None, plural) },
        [plural, name] => object(at(None, plural), name, ""),
        // `namespaces/x/status` is the status of the namespace x, as in Kubernetes.
        ["namespaces", name, "status"] => object(at(None, "namespaces"), name, "status"),
        ["namespaces", namespace, plural] => Route::Collection { at: at(Some(namespace), plural) },
        ["namespaces", namespace, plural, name] => object(at(Some(namespace), plural), name, ""),
        ["namespaces", namespace, plural, name, subresource] => object(at(Some(namespace), plural), name, subresource),
        [plural, name, subresource] => object(at(None, plural), name, subresource),
        _ => return None,
    };
    rest.iter().all(|segment| !segment.is_empty()).then_some(route)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(path: &str) -> String {
        match parse(path) {
            None => "nothing".into(),
            Some(Route::Collection { at }) => {
                format!("all {} of {}/{} in {:?}", at.plural, at.group, at.version, at.namespace.unwrap_or_default())
            }
            Some(Route::Object { at, name, subresource }) => {
                format!("{} {:?}/{name} {subresource}", at.plural, at.namespace.unwrap_or_default())
            }
            Some(other) => format!("{other:?}"),
        }
    }

    #[test]
    fn paths_mean_what_they_mean_in_kubernetes() {
        for (path, expected) in [
            ("/healthz", "Health"),
            ("/apis", "Groups"),
            ("/apis/apply/v1", "Resources { group: \"apply\", version: \"v1\" }"),
            ("/apis/apply/v1/commits", "Commits"),
            ("/apis/apply/v1/services", "all services of apply/v1 in \"\""),
            ("/apis/apply/v1/namespaces/default/services", "all services of apply/v1 in \"default\""),
            ("/apis/apply/v1/namespaces/default/services/vote", "services \"default\"/vote "),
            ("/apis/apply/v1/namespaces/default/services/vote/status", "services \"default\"/vote status"),
            ("/api/v1/namespaces/default", "namespaces \"\"/default "),
            ("/api/v1/namespaces", "all namespaces of /v1 in \"\""),
            ("/apis/apply/v1/nodes/n1/status", "nodes \"\"/n1 status"),
            ("/apis/apply/v1/namespaces/default", "namespaces \"\"/default "),
            ("/apis/apply/v1/namespaces/default/status", "namespaces \"\"/default status"),
            ("/apis/apply/v1/services/a%2Fb", "services \"\"/a/b "),
            ("/apis/apply/v1/namespaces//services", "nothing"),
            ("/apis/apply/v1/namespaces/a/b/c/d/e", "nothing"),
            ("/", "nothing"),
            ("/apis/apply/v1/%ff", "nothing"),
        ] {
            assert_eq!(said(path), expected, "{path}");
        }
    }
}
