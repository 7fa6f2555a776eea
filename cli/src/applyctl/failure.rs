//! How a command ends when it does not end well: a code for programs, a sentence and the next command for people.

use std::fmt;

use reconciler::causes::chain;
use reconciler::objects;

use super::args::DEFAULT_HOST;
use crate::daemon::{A_WORKER, LOCKED, NO_CLUSTER, NO_MAJORITY};

/// What the process ends with. The numbers are part of the interface: `docs/exit-codes.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Failed,
    Usage,
    NotFound,
    NotConverged,
    Refused,
    Conflict,
    Unreachable,
    NotAllowed,
    RolledBack,
    /// 128 and the number of SIGINT, as shells count.
    Interrupted,
    /// Whatever the command that was run in a container ended with.
    OfCommand(u8),
}

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::NotConverged => 4,
            Self::Refused => 5,
            Self::Conflict => 6,
            Self::Unreachable => 7,
            Self::NotAllowed => 8,
            Self::RolledBack => 9,
            Self::Interrupted => 130,
            Self::OfCommand(code) => code,
        }
    }
}

/// Each code with what it means, as `--help` and the page show it.
pub const EXITS: &[(u8, &str)] = &[
    (0, "done"),
    (1, "failed; of diff: something would change"),
    (2, "usage: the command line cannot be read"),
    (3, "not found: no such object, kind or file"),
    (
        4,
        "not converged: not in time, or it cannot be as things are (image missing, crashes, unhealthy, no node fits, port taken)",
    ),
    (5, "refused: a file or an object is not valid, or a policy says no; nothing was changed"),
    (6, "conflict: it exists already, or somebody else changed it meanwhile"),
    (7, "cannot reach the cluster"),
    (8, "not allowed"),
    (9, "rolled back: an update failed and the service is as it was (nothing rolls back by itself yet)"),
    (130, "left with ^C; what was begun goes on"),
];

/// A command that did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub exit: Exit,
    /// A fragment that reads after `applyctl: `; may be empty when all is said already.
    pub message: String,
    /// What to type or do next.
    pub advice: Option<String>,
}

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), advice: None }
    }

    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

/// What to do when nobody answers.
const IS_IT_RUNNING: &str = "is applyd running? start it, or name another socket with --host";

impl Failure {
    /// Whoever is not reached by a context may not think of it.
    pub fn by_way_of(self, context: Option<&str>) -> Self {
        match context {
            Some(name) if self.advice.as_deref() == Some(IS_IT_RUNNING) => self.advise(format!(
                "context {name} says so (applyctl context ls); another: --context NAME; this machine's own applyd: --host {DEFAULT_HOST}"
            )),
            _ => self,
        }
    }

    /// What a call beside objects was answered: its message stands for itself, and no object is spoken of.
    pub fn beside_objects(error: objects::Error) -> Self {
        use objects::Error;
        let of_code = |detail: &str| {
            let (code, message) = detail.split_once(": ")?;
            let exit = match code {
                "409" => Exit::Conflict,
                "501" => Exit::Refused,
                "500" | "503" | "507" => Exit::Failed,
                _ => return None,
            };
            Some(Self::new(exit, message))
        };
        match &error {
            Error::UnknownKind { name } => Self::new(Exit::NotFound, name),
            Error::Invalid { faults, .. } => {
                let lines: Vec<&str> = faults.iter().map(|fault| fault.message.as_str()).collect();
                Self::new(Exit::Refused, lines.join("\n"))
            }
            Error::Unavailable { detail } => of_code(detail).unwrap_or_else(|| Self::from(error)),
            _ => Self::from(error),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.advice {
            Some(advice) => write!(f, "\n  {advice}"),
            None => Ok(()),
        }
    }
}

impl From<objects::Error> for Failure {
    fn from(error: objects::Error) -> Self {
        use objects::Error;
        let exit = match &error {
            Error::NotFound { .. } | Error::UnknownKind { .. } => Exit::NotFound,
            Error::AlreadyExists { .. } | Error::Conflict { .. } | Error::Fenced => Exit::Conflict,
            Error::Invalid { .. } | Error::TooLarge { .. } => Exit::Refused,
            Error::Forbidden { detail, .. } if detail.contains(NO_MAJORITY) || detail.contains(LOCKED) => {
                Exit::Unreachable
            }
            Error::Forbidden { .. } => Exit::NotAllowed,
            Error::Unavailable { .. } | Error::UnknownOutcome { .. } => Exit::Unreachable,
            _ => Exit::Failed,
        };
        let message = match &error {
            // One fault a line, as the readers of files tell them.
            Error::Invalid { kind, reference, faults } => {
                let mut text = match reference.name.as_str() {
                    "" => format!("the {} is not valid", kind.to_lowercase()),
                    name => format!("{} {name} is not valid", kind.to_lowercase()),
                };
                faults.iter().for_each(|fault| text.push_str(&format!("\n  {fault}")));
                text
            }
            // It is not about the object that was asked for, but about the machine that was asked.
            Error::Forbidden { detail, .. }
                if [NO_CLUSTER, NO_MAJORITY, LOCKED].iter().any(|known| detail.starts_with(known))
                    || detail.contains(A_WORKER) =>
            {
                detail.clone()
            }
            Error::NotFound { kind, reference } => format!("there is no {} {}", kind.to_lowercase(), reference.name),
            Error::AlreadyExists { kind, reference } => {
                format!("{} {} exists already", kind.to_lowercase(), reference.name)
            }
            Error::Unavailable { detail } => format!("cannot reach the cluster: {detail}"),
            other => chain(other),
        };
        let advice = match &error {
            // What etcd says while its members agree on another leader.
            Error::Unavailable { detail } if detail.contains("etcdserver") => {
                Some("a manager has gone and the others agree on what follows; again in a moment")
            }
            // What rustls says of a certificate whose signer is not known.
            Error::Unavailable { detail } if detail.contains("UnknownIssuer") => Some(
                "another authority signs for that cluster than when these credentials were made; new ones, on a manager: applyctl user credentials NAME",
            ),
            Error::Unavailable { .. } => Some(IS_IT_RUNNING),
            Error::UnknownOutcome { .. } => Some("look with applyctl get before you repeat it"),
            Error::Conflict { .. } => Some("read it again and repeat"),
            Error::Full { .. } => Some("delete something: deletions are still taken"),
            _ => None,
        };
        Self { exit, message, advice: advice.map(str::to_owned) }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(Exit::Failed, format!("cannot write the output: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_exit_codes_is_up_to_date() {
        let rows: String = EXITS.iter().map(|(code, meaning)| format!("| {code} | {meaning} |\n")).collect();
        let page = format!(
            "# Exit codes of applyctl\n\nThey are part of the interface: a script may rely on them. `exec` ends with the code of the command that it ran, with 127 if that is not in the image, with 126 if it cannot be run.\n\n| code | meaning |\n| --- | --- |\n{rows}"
        );
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/exit-codes.md");
        if std::env::var_os("APPLY_WRITE").is_some() {
            std::fs::write(path, &page).unwrap();
        }
        assert_eq!(
            std::fs::read_to_string(path).unwrap_or_default(),
            page,
            "APPLY_WRITE=1 cargo test -p cli page_of_exit_codes writes it anew"
        );
    }

    #[test]
    fn every_fault_has_a_line() {
        let error = objects::Error::Invalid {
            kind: "Service".into(),
            reference: reconciler::ObjectRef::new("default", "web"),
            faults: vec![
                schemas::Fault::new("spec.replicas", "is wrong"),
                schemas::Fault::new("spec.mode", "is wrong too"),
            ],
        };
        let failure = Failure::from(error);
        assert_eq!(failure.exit, Exit::Refused);
        assert_eq!(
            failure.to_string(),
            "service web is not valid\n  spec.replicas: is wrong\n  spec.mode: is wrong too"
        );
    }
}
