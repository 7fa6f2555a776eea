//! What became of a call to etcd that did not succeed.
//!
//! The one question that matters for a commit is whether it may have happened; so everything that is not known to
//! have been refused is [`Failure::Lost`].

use tonic::Code;

use crate::store::{BYTES_PER_COMMIT, CommitError, StoreError};

#[derive(Debug)]
pub(super) enum Failure {
    /// The member did nothing: it is not there, or has no leader to ask.
    NotSent(String),
    /// It may have done what was asked.
    Lost(String),
    /// It refused, and did nothing.
    Refused(String),
    Compacted,
    Future,
    /// The database's quota is used up.
    NoSpace(String),
    /// The request as a whole is over the server's limit.
    RequestTooLarge,
    ReplyTooLarge,
}

impl From<etcd_client::Error> for Failure {
    fn from(error: etcd_client::Error) -> Self {
        let etcd_client::Error::GRpcStatus(status) = &error else { return Self::Lost(error.to_string()) };
        let message = status.message();
        let says = |words: &str| message.contains(words);
        // By message: etcd's codes are too coarse. All of them are in api/v3rpc/rpctypes/error.go and have not
        // changed since 3.0.
        match status.code() {
            Code::OutOfRange if says("required revision has been compacted") => Self::Compacted,
            Code::OutOfRange if says("required revision is a future revision") => Self::Future,
            Code::OutOfRange if says("message length too large") => Self::ReplyTooLarge,
            Code::ResourceExhausted if says("database space exceeded") => Self::NoSpace(message.into()),
            Code::InvalidArgument if says("request is too large") => Self::RequestTooLarge,
            Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated | Code::FailedPrecondition => {
                Self::Refused(message.into())
            }
            // Asked before anything is proposed.
            Code::ResourceExhausted if says("too many requests") => Self::NotSent(message.into()),
            Code::Unavailable if says("etcdserver: no leader") => Self::NotSent(message.into()),
            _ if never_connected(status) => Self::NotSent(told(status)),
            _ => Self::Lost(told(status)),
        }
    }
}

/// Nobody listened there.
fn never_connected(status: &tonic::Status) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, NotFound};
    causes(status).any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|error| {
            matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable | NotFound)
        })
    })
}

/// tonic says "transport error" and keeps the reason to itself.
fn told(status: &tonic::Status) -> String {
    let mut told = status.message().to_owned();
    for cause in causes(status) {
        let cause = cause.to_string();
        if !told.contains(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    told
}

fn causes(status: &tonic::Status) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(status), |cause| cause.source())
}

impl Failure {
    fn detail(self) -> String {
        match self {
            Self::NotSent(detail) | Self::Lost(detail) | Self::Refused(detail) | Self::NoSpace(detail) => detail,
            Self::Compacted => "the revision is compacted away".into(),
            Self::Future => "the revision lies in the future".into(),
            Self::RequestTooLarge => "the request is too large".into(),
            Self::ReplyTooLarge => "one value is larger than any reply may be".into(),
        }
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        Self::Unavailable { detail: failure.detail() }
    }
}

impl From<Failure> for CommitError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Lost(detail) => Self::Unknown { detail },
            Failure::NoSpace(detail) => Self::Full { detail },
            // Long keys are sent more than once.
            Failure::RequestTooLarge => {
                Self::TooLarge { what: "bytes", asked: BYTES_PER_COMMIT + 1, limit: BYTES_PER_COMMIT }
            }
            failure => Self::Unavailable { detail: failure.detail() },
        }
    }
}
