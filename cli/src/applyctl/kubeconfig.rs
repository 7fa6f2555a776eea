//! Files that say which clusters there are and who one is there, as kubectl knows them. What is in them that concerns
//! nobody here is kept as it is.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::failure::{Exit, Failure};
use crate::tls::Credentials;

/// A whole file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Kubeconfig {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
    /// The context that is meant where none is named.
    pub current_context: String,
    clusters: Vec<Named>,
    users: Vec<Named>,
    contexts: Vec<Named>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// `{name, cluster: …}`, `{name, user: …}`, `{name, context: …}`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
    #[serde(flatten)]
    what: Map<String, Value>,
}

impl Default for Kubeconfig {
    fn default() -> Self {
        Self {
            api_version: "v1".into(),
            kind: "Config".into(),
            current_context: String::new(),
            clusters: Vec::new(),
            users: Vec::new(),
            contexts: Vec::new(),
            rest: Map::new(),
        }
    }
}

/// A context, as far as one connects by it.
#[derive(Debug)]
pub struct Context {
    /// Where managers are, the preferred one first.
    pub servers: Vec<String>,
    pub credentials: Credentials,
    pub namespace: Option<String>,
}

/// Which is one of a cluster's managers, whatever address it is reached at.
const SERVER_NAME: &str = controllers::identity::MANAGER_NAME;
/// Where in a cluster's entry the other managers are; kubectl knows of one.
const EXTENSION: &str = "apply";

impl Kubeconfig {
    /// One context, by which kubectl finds a cluster too.
    pub fn of(name: &str, user: &str, servers: &[String], credentials: &Credentials, namespace: Option<&str>) -> Self {
        let data = |pem: &str| STANDARD.encode(pem);
        let named = |name: &str, what: &str, value: Value| Named {
            name: name.to_owned(),
            what: Map::from_iter([(what.to_owned(), value)]),
        };
        let cluster = json!({
            "server": servers.first(), "certificate-authority-data": data(&credentials.authorities),
            "tls-server-name": SERVER_NAME,
            "extensions": [{"name": EXTENSION, "extension": {"servers": servers}}],
        });
        let person = json!({
            "client-certificate-data": data(&credentials.chain), "client-key-data": data(&credentials.key),
        });
        let mut context = json!({"cluster": name, "user": format!("{user}@{name}")});
        if let Some(namespace) = namespace {
            context["namespace"] = namespace.into();
        }
        Self {
            current_context: name.to_owned(),
            clusters: vec![named(name, "cluster", cluster)],
            users: vec![named(&format!("{user}@{name}"), "user", person)],
            contexts: vec![named(name, "context", context)],
            ..Self::default()
        }
    }

    /// Where this user's is: `APPLY_CONFIG`, else `apply/config` in the folder of configurations.
    pub fn place() -> Option<PathBuf> {
        let said = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = || said("XDG_CONFIG_HOME").or_else(|| Some(said("HOME")?.join(".config")));
        said("APPLY_CONFIG").or_else(|| Some(folder()?.join("apply/config")))
    }

    /// This user's; empty where there is none.
    pub fn own() -> Result<Self, Failure> {
        match Self::place() {
            Some(place) if place.exists() => Self::read(&place),
            _ => Ok(Self::default()),
        }
    }

    pub fn read(path: &Path) -> Result<Self, Failure> {
        let text = super::session::read_file(path)?;
        // Its own words would quote what it cannot read, keys among it.
        let read = serde_yaml::from_slice::<Self>(&text);
        read.map_err(|error| {
            let at = error.location().map(|at| format!(":{}:{}", at.line(), at.column())).unwrap_or_default();
            Failure::new(Exit::Refused, format!("{}{at}: is no file of clusters and credentials", path.display()))
        })
    }

    /// In the place of this user's, whole or not at all; 0600.
    pub fn keep(&self) -> Result<(), Failure> {
        let missing = || Failure::new(Exit::Failed, "there is no HOME to keep contexts in; say APPLY_CONFIG=FILE");
        let place = Self::place().ok_or_else(missing)?;
        let kept = || -> io::Result<()> {
            if let Some(folder) = place.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            }
            let beside = place.with_extension("new");
            let _ = fs::remove_file(&beside);
            write_new(&beside, &self.text()?)?;
            fs::rename(&beside, &place)
        };
        kept().map_err(|error| Failure::new(Exit::Failed, format!("cannot write {}: {error}", place.display())))
    }

    /// To a new file, 0600; `-` is the standard output, whose text is returned.
    pub fn write(&self, path: &Path) -> Result<Option<String>, Failure> {
        let failed = |error: io::Error| {
            let failure = Failure::new(Exit::Failed, format!("cannot write {}: {error}", path.display()));
            match error.kind() {
                io::ErrorKind::AlreadyExists => failure.advise("name another file"),
                _ => failure,
            }
        };
        let text = self.text().map_err(failed)?;
        if path.as_os_str() == "-" {
            return Ok(Some(text));
        }
        write_new(path, &text).map_err(failed).map(|()| None)
    }

    fn text(&self) -> io::Result<String> {
        let value = serde_json::to_value(self).map_err(io::Error::other)?;
        schemas::source::yaml::to_string(&value).map_err(io::Error::other)
    }

    /// Names of contexts.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.contexts.iter().map(|context| context.name.as_str())
    }

    /// What is said of a context for people: its server, its user, its namespace.
    pub fn about(&self, name: &str) -> [String; 3] {
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        let context = find(&self.contexts, name, "context");
        let cluster = context.and_then(|context| find(&self.clusters, &text(context.get("cluster")), "cluster"));
        let user = text(context.and_then(|context| context.get("user")));
        let user = user.split_once('@').map_or(user.as_str(), |(user, _)| user).to_owned();
        [text(cluster.and_then(|it| it.get("server"))), user, text(context.and_then(|it| it.get("namespace")))]
    }

    /// All that one connects by.
    pub fn context(&self, name: &str) -> Result<Context, Failure> {
        let bad = |why: String| Failure::new(Exit::Refused, format!("context {name}: {why}"));
        let Some(context) = find(&self.contexts, name, "context") else {
            let known: Vec<&str> = self.names().collect();
            let failure = Failure::new(Exit::NotFound, format!("there is no context {name}"));
            return Err(match known.is_empty() {
                true => failure.advise("take one over: applyctl context add FILE"),
                false => failure.advise(format!("there are: {}", known.join(", "))),
            });
        };
        let named = |what: &str| context.get(what).and_then(Value::as_str).unwrap_or_default();
        let cluster =
            find(&self.clusters, named("cluster"), "cluster").ok_or_else(|| bad("it names no cluster".into()))?;
        let user = find(&self.users, named("user"), "user").ok_or_else(|| bad("it names no user".into()))?;
        let pem = |of: &Map<String, Value>, what: &str| {
            let text = of.get(what).and_then(Value::as_str).and_then(|text| STANDARD.decode(text).ok());
            let text = text.and_then(|bytes| String::from_utf8(bytes).ok());
            text.ok_or_else(|| bad(format!("{what} is missing, or not base64")))
        };
        let credentials = Credentials {
            chain: pem(user, "client-certificate-data")?,
            key: pem(user, "client-key-data")?,
            authorities: pem(cluster, "certificate-authority-data")?,
        };
        let all = cluster.get("extensions").and_then(Value::as_array).into_iter().flatten();
        let all =
            all.filter(|entry| entry["name"] == EXTENSION).filter_map(|entry| entry["extension"]["servers"].as_array());
        let mut servers: Vec<String> = all.flatten().filter_map(|it| it.as_str().map(str::to_owned)).collect();
        if servers.is_empty() {
            servers.extend(cluster.get("server").and_then(Value::as_str).map(str::to_owned));
        }
        let namespace = context.get("namespace").and_then(Value::as_str).filter(|it| !it.is_empty());
        Ok(Context { servers, credentials, namespace: namespace.map(str::to_owned) })
    }

    /// Takes over what is in another one, in the place of what has the same names; `called`: its only context's name.
    pub fn take_over(&mut self, mut other: Kubeconfig, called: Option<&str>) -> Result<String, Failure> {
        if let Some(called) = called {
            let [context] = &mut other.contexts[..] else {
                return Err(Failure::new(Exit::Usage, "--name is for a file with one context"));
            };
            // Its cluster and user may have the names of others here.
            let suffix = |name: &Value| Value::from(format!("{}#{called}", name.as_str().unwrap_or_default()));
            if let Some(Value::Object(what)) = context.what.get_mut("context") {
                for part in ["cluster", "user"] {
                    what.insert(part.to_owned(), suffix(&what.get(part).cloned().unwrap_or_default()));
                }
            }
            context.name = called.to_owned();
            for entry in other.clusters.iter_mut().chain(&mut other.users) {
                entry.name = format!("{}#{called}", entry.name);
            }
        }
        let first =
            other.contexts.iter().map(|context| context.name.clone()).find(|name| *name == other.current_context);
        let first = first.or_else(|| other.contexts.first().map(|context| context.name.clone()));
        let first = first.ok_or_else(|| Failure::new(Exit::Refused, "the file has no context"))?;
        for (own, others) in
            [(&mut self.clusters, other.clusters), (&mut self.users, other.users), (&mut self.contexts, other.contexts)]
        {
            own.retain(|entry| !others.iter().any(|other| other.name == entry.name));
            own.extend(others);
        }
        self.current_context.clone_from(&first);
        Ok(first)
    }

    /// With the credentials that nobody else names; says whether it was there.
    pub fn forget(&mut self, name: &str) -> bool {
        let before = self.contexts.len();
        self.contexts.retain(|context| context.name != name);
        for (what, entries) in [("cluster", &mut self.clusters), ("user", &mut self.users)] {
            let named: Vec<&str> =
                self.contexts.iter().filter_map(|context| context.what.get("context")?.get(what)?.as_str()).collect();
            entries.retain(|entry| named.contains(&entry.name.as_str()));
        }
        if self.current_context == name {
            self.current_context.clear();
        }
        self.contexts.len() < before
    }
}

fn find<'a>(entries: &'a [Named], name: &str, what: &str) -> Option<&'a Map<String, Value>> {
    entries.iter().find(|entry| entry.name == name)?.what.get(what)?.as_object()
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(word: &str) -> Credentials {
        Credentials { chain: format!("chain {word}"), key: format!("key {word}"), authorities: "authority".into() }
    }

    fn one(cluster: &str, user: &str) -> Kubeconfig {
        let servers = ["https://10.0.0.1:7677".to_owned(), "https://10.0.0.2:7677".to_owned()];
        Kubeconfig::of(cluster, user, &servers, &credentials(user), Some("shop"))
    }

    #[test]
    fn what_was_taken_over_is_connected_by_and_forgotten_whole() {
        let read = |config: &Kubeconfig| serde_yaml::from_str::<Kubeconfig>(&config.text().unwrap()).unwrap();
        let mut own = Kubeconfig::default();
        assert_eq!(own.take_over(read(&one("otter", "ann")), None).unwrap(), "otter");
        assert_eq!(own.take_over(read(&one("otter", "bob")), Some("work")).unwrap(), "work");
        own = read(&own);
        assert_eq!(own.names().collect::<Vec<_>>(), ["otter", "work"]);
        assert_eq!(own.current_context, "work");
        let context = own.context("otter").unwrap();
        assert_eq!(context.servers, ["https://10.0.0.1:7677", "https://10.0.0.2:7677"]);
        assert_eq!((context.credentials.key.as_str(), context.namespace.as_deref()), ("key ann", Some("shop")));
        assert_eq!(own.context("work").unwrap().credentials.key, "key bob");
        assert_eq!(own.about("work"), ["https://10.0.0.1:7677", "bob", "shop"]);
        assert!(own.context("none").unwrap_err().to_string().contains("otter, work"));
        assert!(own.forget("work") && !own.forget("work"));
        let text = own.text().unwrap();
        assert!(!text.contains(&STANDARD.encode("key bob")) && text.contains(&STANDARD.encode("key ann")), "{text}");
        assert_eq!(own.current_context, "", "nobody is somebody else without having said so");
    }

    #[test]
    fn what_others_keep_in_it_stays() {
        let text = "apiVersion: v1\nkind: Config\npreferences: {colors: true}\ncontexts:\n- name: k\n  context: {cluster: k, user: k}\nclusters:\n- name: k\n  cluster: {server: 'https://k'}\nusers:\n- name: k\n  user: {token: t}\n";
        let mut own: Kubeconfig = serde_yaml::from_str(text).unwrap();
        own.take_over(one("otter", "ann"), None).unwrap();
        let text = own.text().unwrap();
        assert!(text.contains("colors: true") && text.contains("token: t"), "{text}");
        assert!(own.context("k").unwrap_err().to_string().contains("client-certificate-data"));
    }
}
