//! What every command has: the way to the cluster, the namespace, and where its words go.

use std::io::{self, BufRead, IsTerminal, Read};
use std::path::Path;
use std::time::Duration;

use reconciler::Timestamp;
use reconciler::objects::{Client, Remote, Writer};
use reconciler::seams::{Monotonic, Seams};
use schemas::kinds::DEFAULT_NAMESPACE;

use super::args::{Format, Global, Reason};
use super::failure::{Exit, Failure};
use super::screen::Screen;

/// The way to the cluster, and whoever asked.
pub struct Session {
    pub client: Client,
    pub namespace: String,
    /// The same, where it was said.
    pub said_namespace: Option<String>,
    pub format: Format,
    pub screen: Screen,
    pub seams: Seams,
    /// Whether a person can be asked.
    pub can_ask: bool,
    /// The daemon itself, for what is not objects.
    server: Option<Remote>,
}

impl Session {
    pub fn new(client: Client, global: &Global, screen: Screen, seams: Seams) -> Self {
        let can_ask = io::stdin().is_terminal() && screen.width.is_some();
        Self {
            client,
            namespace: global.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()),
            said_namespace: global.namespace.clone(),
            format: global.output,
            screen,
            seams,
            can_ask,
            server: None,
        }
    }

    pub fn with_server(mut self, server: Remote) -> Self {
        self.server = Some(server);
        self
    }

    /// Where none is said.
    pub fn in_namespace(mut self, namespace: Option<String>) -> Self {
        if let (None, Some(namespace)) = (&self.said_namespace, namespace) {
            self.namespace = namespace;
        }
        self
    }

    /// The daemon itself.
    pub fn remote(&self) -> Result<Remote, Failure> {
        let missing = || Failure::new(Exit::Unreachable, "this needs a connection to applyd");
        self.server.clone().ok_or_else(missing)
    }

    pub fn now(&self) -> Timestamp {
        self.seams.now()
    }

    /// What is written from now on says why.
    pub fn because(&mut self, reason: &Reason) {
        if let Some(message) = &reason.message {
            let writer = self.client.writer().clone().because(message.trim());
            self.client = Client::new(self.client.objects().clone(), writer);
        }
    }

    /// The same client, whose writes are checked and answered and not done.
    pub fn trying(&self) -> Client {
        Client::new(self.client.objects().clone(), self.client.writer().clone().trying())
    }

    /// Data for programs, where the format says so; whether it did.
    pub fn print_value(&mut self, value: &serde_json::Value) -> Result<bool, Failure> {
        let text = match self.format {
            Format::Json => format!("{}\n", pretty(value)?),
            Format::Yaml => schemas::source::yaml::to_string(value)
                .map_err(|error| Failure::new(Exit::Failed, format!("cannot be written as YAML: {error}")))?,
            _ => return Ok(false),
        };
        self.screen.data(&text)?;
        Ok(true)
    }

    /// Asks before something is destroyed. Without a person to ask, only `--yes` says yes.
    pub fn confirm(&mut self, what: &str, yes: bool) -> Result<(), Failure> {
        if yes {
            return Ok(());
        }
        if !self.can_ask {
            return Err(Failure::new(Exit::Usage, format!("this would {what}")).advise("say --yes if it shall"));
        }
        self.screen.fail(&format!("This will {what}. Go on? [y/N]"))?;
        let mut answer = String::new();
        io::stdin()
            .lock()
            .read_line(&mut answer)
            .map_err(|error| Failure::new(Exit::Failed, format!("cannot read the answer: {error}")))?;
        match answer.trim().to_lowercase().as_str() {
            "y" | "yes" => Ok(()),
            _ => Err(Failure::new(Exit::Failed, "nothing was changed")),
        }
    }

    /// `2.1 s` since `start`.
    pub fn since(&self, start: Monotonic) -> Duration {
        self.seams.monotonic().since(start)
    }
}

/// Who writes: the command, in the name of this process's user. A server believes it only of a machine's administrator;
/// everybody else writes as whom the connection shows them to be.
pub fn writer() -> Writer {
    let user = rustix::process::geteuid();
    // `sudo` says who became root.
    let behind = std::env::var("SUDO_USER").ok().filter(|name| !name.is_empty());
    let identity = match behind {
        _ if !user.is_root() => format!("user:uid-{}", user.as_raw()),
        Some(name) => format!("user:{name}"),
        None => "user:root".to_owned(),
    };
    Writer::new(identity, "applyctl")
}

pub fn pretty(value: &serde_json::Value) -> Result<String, Failure> {
    serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot be written as JSON: {error}")))
}

/// A whole file; `-` is the standard input. Larger ones than any reader takes are not read to their end.
pub fn read_file(path: &Path) -> Result<Vec<u8>, Failure> {
    let limit = schemas::source::FILE_BYTES_MAX as u64 + 1;
    let mut bytes = Vec::new();
    let read = if path.as_os_str() == "-" {
        io::stdin().lock().take(limit).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes))
    };
    match read {
        Ok(_) => Ok(bytes),
        Err(error) => {
            let exit = if error.kind() == io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Failed };
            Err(Failure::new(exit, format!("cannot read {}: {error}", path.display())))
        }
    }
}

/// The namespace of an object of this kind that names none.
pub fn namespace_of(kind: &reconciler::Kind, namespace: &str) -> String {
    match kind.scope {
        reconciler::api::Scope::Cluster => String::new(),
        reconciler::api::Scope::Namespaced if namespace.is_empty() => DEFAULT_NAMESPACE.to_owned(),
        reconciler::api::Scope::Namespaced => namespace.to_owned(),
    }
}
