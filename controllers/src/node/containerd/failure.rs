//! From a gRPC status to what the caller shall do, and to words for people.

use tonic::{Code, Status};

use super::runtime::Error;

/// `doing` says what was tried on which container: "create container a.1".
pub(super) fn error(doing: impl Into<String>, status: Status) -> Error {
    let doing = doing.into();
    if unavailable(&status) {
        return Error::Unavailable { doing, source: words(&status).into() };
    }
    match status.code() {
        Code::NotFound => Error::Absent { doing },
        _ => Error::Failed { doing, message: plain(status.message()) },
    }
}

/// Nobody answered, or not in time: containerd, or the shim behind it.
pub(super) fn unavailable(status: &Status) -> bool {
    use Code::{Aborted, Cancelled, DeadlineExceeded, ResourceExhausted, Unavailable};
    let away = matches!(status.code(), Unavailable | DeadlineExceeded | Cancelled | Aborted | ResourceExhausted);
    away || broken(status) || status.message().contains("ttrpc: closed")
}

/// containerd itself did not answer: a status that is made on this side, out of a broken connection, is the only kind
/// that has a source; its code says little.
pub(super) fn broken(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// What a person can use of a status, told once. Its own text has the reason up to three times over, in the forms of
/// each library that it passed.
pub(in crate::node) fn words(status: &Status) -> String {
    let mut text = plain(status.message());
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    if text.is_empty() { status.code().description().to_owned() } else { text }
}

/// Nobody answers at containerd's socket: said by the connection, and found again by [`words`].
pub(super) fn silent(socket: &std::path::Path, error: &std::io::Error) -> std::io::Error {
    let reason = error.to_string().to_lowercase();
    let reason = reason.split(" (os error").next().unwrap_or_default();
    std::io::Error::new(error.kind(), format!("containerd does not answer at {}: {reason}", socket.display()))
}

/// "Not there" is what was wanted.
pub(super) fn absent_is_done<T: Default>(result: Result<T, Status>) -> Result<T, Status> {
    match result {
        Err(status) if status.code() == Code::NotFound => Ok(T::default()),
        other => other,
    }
}

/// The part of a message that a person can use: each layer that an error passed through has put its own words before
/// it.
fn plain(message: &str) -> String {
    const LAYERS: [&str; 8] = [
        "failed to create shim task: ",
        "OCI runtime create failed: ",
        "OCI runtime start failed: ",
        "OCI runtime exec failed: ",
        "runc create failed: ",
        "exec failed: ",
        "unable to start container process: ",
        "error during container init: ",
    ];
    let mut rest = message.trim();
    while let Some(inner) = LAYERS.iter().find_map(|layer| rest.strip_prefix(layer)) {
        rest = inner;
    }
    rest.strip_suffix(": unknown").unwrap_or(rest).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_lose_the_layers_that_they_passed() {
        let seen = "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container \
            process: exec: \"nope\": executable file not found in $PATH: unknown";
        assert_eq!(plain(seen), "exec: \"nope\": executable file not found in $PATH");
        assert_eq!(plain("plain words"), "plain words");
    }

    #[tokio::test]
    async fn a_containerd_that_is_not_there_is_told_once_with_its_socket() {
        let connection = super::super::Connection::new("/nowhere/containerd.sock", "test").unwrap();
        let status = connection.version().version(()).await.unwrap_err();
        let told = "containerd does not answer at /nowhere/containerd.sock: no such file or directory";
        assert_eq!(words(&status), told);
        let told = format!("containerd cannot list containers now: {told}");
        assert_eq!(reconciler::causes::chain(&error("list containers", status)), told);
        assert_eq!(words(&Status::unknown("ctr: not now: unknown")), "ctr: not now");
        assert_eq!(words(&Status::new(Code::Aborted, "")), Code::Aborted.description());
    }

    #[test]
    fn the_code_decides_what_to_do() {
        let of = |code| error("start x", Status::new(code, "m"));
        assert!(matches!(of(Code::Unavailable), Error::Unavailable { .. }));
        assert!(matches!(of(Code::DeadlineExceeded), Error::Unavailable { .. }));
        assert!(matches!(of(Code::NotFound), Error::Absent { .. }));
        assert!(matches!(of(Code::Unknown), Error::Failed { .. }));
        assert!(matches!(of(Code::InvalidArgument), Error::Failed { .. }));
    }
}
