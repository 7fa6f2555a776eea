//! What a [`Remote`](super::remote) and a server say to each other beside Kubernetes' own verbs. JSON throughout; numbers
//! that are versions are strings, as in Kubernetes.
//!
//! | call | body or query | answer |
//! | --- | --- | --- |
//! | `POST` [`COMMITS`] | [`CommitRequest`]: writes on objects of any kinds, all or nothing | [`CommitAnswer`] |
//! | `GET` [`STREAM`] | `selections` (JSON list of [`SelectionForm`]), and `epoch` with `resourceVersion` to go on after | one [`EventForm`] a line |
//!
//! Whatever fails is answered as a Kubernetes `Status` whose `details.error` is an [`ErrorForm`]: it names the variant of
//! [`Error`], so that an error means the same on both sides.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use reconciler_api::{Fault, Kind, ObjectRef, ResourceVersion, Uid};

use super::{
    Change, Committed, Continue, Epoch, Error, Event, Outcome, Part, Patch, Precondition, Propagation, Selection,
    Selector, Stored, Term, Write, Writer,
};

/// Where a commit of several writes goes.
pub const COMMITS: &str = "/apis/apply/v1/commits";
/// Where the changes of several kinds come from.
pub const STREAM: &str = "/apis/apply/v1/stream";
/// The annotation of the bookmark that ends the initial events of a watch (Kubernetes KEP-3157).
pub const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// Finds the kind that a qualified name stands for.
pub type FindKind<'a> = &'a dyn Fn(&str) -> Result<Arc<Kind>, Error>;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CommitRequest {
    /// In whose name. Believed only from a peer that may speak for others; everybody else writes in their own.
    #[serde(default)]
    pub identity: String,
    pub manager: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<TermForm>,
    #[serde(default)]
    pub dry_run: bool,
    /// Why, in a person's words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    pub writes: Vec<WriteForm>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TermForm {
    pub kind: String,
    pub lease: ObjectRef,
    pub began: ResourceVersion,
}

/// A [`Write`]. `kind` is always a qualified name (`services.apply`).
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum WriteForm {
    Create {
        kind: String,
        object: Value,
    },
    Update {
        kind: String,
        #[serde(flatten)]
        reference: ObjectRef,
        part: PartForm,
        patch: PatchForm,
        #[serde(default)]
        precondition: PreconditionForm,
    },
    Delete {
        kind: String,
        #[serde(flatten)]
        reference: ObjectRef,
        #[serde(default)]
        precondition: PreconditionForm,
        #[serde(default)]
        propagation: PropagationForm,
    },
    /// Without a precondition: there is no such object.
    Check {
        kind: String,
        #[serde(flatten)]
        reference: ObjectRef,
        #[serde(default)]
        precondition: Option<PreconditionForm>,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PartForm {
    Main,
    Status,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PatchForm {
    Json(json_patch::Patch),
    Merge(Value),
    Replace(Value),
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PreconditionForm {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<Uid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<ResourceVersion>,
}

/// Kubernetes' words.
#[derive(Debug, Default, Serialize, Deserialize)]
pub enum PropagationForm {
    #[default]
    Background,
    Foreground,
    Orphan,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CommitAnswer {
    pub resource_version: ResourceVersion,
    pub outcomes: Vec<OutcomeForm>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct OutcomeForm {
    pub object: Option<StoredForm>,
    pub changed: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredForm {
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub resource_version: ResourceVersion,
    /// Without `metadata.resourceVersion`.
    pub object: Box<RawValue>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SelectionForm {
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub labels: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fields: String,
}

/// One line of a stream.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum EventForm {
    Initial {
        objects: Vec<StoredForm>,
    },
    InitialDone {
        epoch: String,
        resource_version: ResourceVersion,
    },
    Batch {
        epoch: String,
        resource_version: ResourceVersion,
        changes: Vec<ChangeForm>,
    },
    /// The last line.
    Error(ErrorForm),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ChangeForm {
    Put {
        object: StoredForm,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        previous: Option<StoredForm>,
    },
    Gone {
        kind: String,
        #[serde(flatten)]
        reference: ObjectRef,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        last: Option<StoredForm>,
    },
}

/// An [`Error`]; fields that its variant has not are left out.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ErrorForm {
    /// The name of the variant.
    pub variant: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(flatten)]
    pub reference: ObjectRef,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Fault>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub identity: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub verb: String,
}

impl CommitRequest {
    pub fn new(writer: &Writer, writes: Vec<Write>) -> Self {
        Self {
            identity: writer.identity.clone(),
            manager: writer.manager.clone(),
            fence: writer.fence.clone().map(|term| TermForm { kind: term.kind, lease: term.lease, began: term.began }),
            dry_run: writer.dry_run,
            message: writer.message.clone(),
            writes: writes.into_iter().map(WriteForm::from).collect(),
        }
    }

    /// Who writes, in the name of `identity`, and what.
    pub fn open(self, identity: &str, find: FindKind<'_>) -> Result<(Writer, Vec<Write>), Error> {
        let writer = Writer {
            identity: identity.to_owned(),
            manager: self.manager,
            fence: self.fence.map(|term| Term { kind: term.kind, lease: term.lease, began: term.began }),
            dry_run: self.dry_run,
            message: self.message,
        };
        let writes = self.writes.into_iter().map(|write| write.open(find)).collect::<Result<_, _>>()?;
        Ok((writer, writes))
    }
}

impl From<Write> for WriteForm {
    fn from(write: Write) -> Self {
        match write {
            Write::Create { kind, object } => Self::Create { kind: kind.qualified(), object },
            Write::Update { kind, reference, part, patch, precondition } => Self::Update {
                kind: kind.qualified(),
                reference,
                part: match part {
                    Part::Main => PartForm::Main,
                    Part::Status => PartForm::Status,
                },
                patch: match patch {
                    Patch::Json(patch) => PatchForm::Json(patch),
                    Patch::Merge(patch) => PatchForm::Merge(patch),
                    Patch::Replace(whole) => PatchForm::Replace(whole),
                },
                precondition: precondition.into(),
            },
            Write::Delete { kind, reference, precondition, propagation } => Self::Delete {
                kind: kind.qualified(),
                reference,
                precondition: precondition.into(),
                propagation: match propagation {
                    Propagation::Background => PropagationForm::Background,
                    Propagation::Foreground => PropagationForm::Foreground,
                    Propagation::Orphan => PropagationForm::Orphan,
                },
            },
            Write::Check { kind, reference, precondition } => {
                Self::Check { kind: kind.qualified(), reference, precondition: precondition.map(Into::into) }
            }
        }
    }
}

impl WriteForm {
    fn open(self, find: FindKind<'_>) -> Result<Write, Error> {
        Ok(match self {
            Self::Create { kind, object } => Write::Create { kind: find(&kind)?, object },
            Self::Update { kind, reference, part, patch, precondition } => Write::Update {
                kind: find(&kind)?,
                reference,
                part: match part {
                    PartForm::Main => Part::Main,
                    PartForm::Status => Part::Status,
                },
                patch: match patch {
                    PatchForm::Json(patch) => Patch::Json(patch),
                    PatchForm::Merge(patch) => Patch::Merge(patch),
                    PatchForm::Replace(whole) => Patch::Replace(whole),
                },
                precondition: precondition.into(),
            },
            Self::Delete { kind, reference, precondition, propagation } => Write::Delete {
                kind: find(&kind)?,
                reference,
                precondition: precondition.into(),
                propagation: propagation.into(),
            },
            Self::Check { kind, reference, precondition } => {
                Write::Check { kind: find(&kind)?, reference, precondition: precondition.map(Into::into) }
            }
        })
    }
}

impl From<Precondition> for PreconditionForm {
    fn from(precondition: Precondition) -> Self {
        Self { uid: precondition.uid, resource_version: precondition.resource_version }
    }
}

impl From<PreconditionForm> for Precondition {
    fn from(form: PreconditionForm) -> Self {
        Self { uid: form.uid, resource_version: form.resource_version }
    }
}

impl From<PropagationForm> for Propagation {
    fn from(form: PropagationForm) -> Self {
        match form {
            PropagationForm::Background => Self::Background,
            PropagationForm::Foreground => Self::Foreground,
            PropagationForm::Orphan => Self::Orphan,
        }
    }
}

impl CommitAnswer {
    pub fn new(committed: Committed) -> Result<Self, Error> {
        let outcome = |outcome: Outcome| {
            let object = outcome.object.map(|object| StoredForm::new(&object)).transpose()?;
            Ok(OutcomeForm { object, changed: outcome.changed })
        };
        let outcomes = committed.outcomes.into_iter().map(outcome).collect::<Result<_, Error>>()?;
        Ok(Self { resource_version: committed.resource_version, outcomes })
    }

    pub fn open(self, find: FindKind<'_>) -> Result<Committed, Error> {
        let outcome = |outcome: OutcomeForm| {
            let object = outcome.object.map(|object| object.open(find)).transpose()?;
            Ok(Outcome { object, changed: outcome.changed })
        };
        let outcomes = self.outcomes.into_iter().map(outcome).collect::<Result<_, Error>>()?;
        Ok(Committed { resource_version: self.resource_version, outcomes })
    }
}

impl StoredForm {
    pub fn new(stored: &Stored) -> Result<Self, Error> {
        let object = std::str::from_utf8(&stored.json).map_err(serde::de::Error::custom);
        let object = object.and_then(|text| RawValue::from_string(text.to_owned()));
        Ok(Self {
            kind: stored.kind.qualified(),
            namespace: stored.reference.namespace.clone(),
            name: stored.reference.name.clone(),
            resource_version: stored.resource_version,
            object: object.map_err(|source| Error::Unreadable {
                kind: stored.kind.kind.to_string(),
                reference: stored.reference.clone(),
                source,
            })?,
        })
    }

    pub fn open(self, find: FindKind<'_>) -> Result<Stored, Error> {
        let json: Box<str> = self.object.into();
        let reference = ObjectRef { namespace: self.namespace, name: self.name };
        Ok(Stored::new(find(&self.kind)?, reference, Bytes::from(String::from(json)), self.resource_version))
    }
}

impl SelectionForm {
    pub fn new(selection: &Selection) -> Self {
        Self {
            kind: selection.kind.qualified(),
            namespace: selection.namespace.clone(),
            labels: selection.labels.to_string(),
            fields: selection.fields.to_string(),
        }
    }

    /// The selection, or what is wrong with it.
    pub fn open(self, find: FindKind<'_>) -> Result<Selection, Error> {
        let kind = find(&self.kind)?;
        let (labels, fields) = match (self.labels.parse::<Selector>(), self.fields.parse::<Selector>()) {
            (Ok(labels), Ok(fields)) => (labels, fields),
            (labels, fields) => {
                let faults = [("labels", labels.err()), ("fields", fields.err())];
                return Err(Error::Invalid {
                    kind: kind.kind.to_string(),
                    reference: ObjectRef::default(),
                    faults: faults
                        .into_iter()
                        .filter_map(|(path, error)| Some(Fault::new(path, error?.to_string())))
                        .collect(),
                });
            }
        };
        Ok(Selection { kind, namespace: self.namespace, labels, fields })
    }
}

impl EventForm {
    pub fn new(event: Event) -> Result<Self, Error> {
        let stored = |stored: &Stored| StoredForm::new(stored);
        let maybe = |stored: Option<Stored>| stored.map(|stored| StoredForm::new(&stored)).transpose();
        Ok(match event {
            Event::Initial(objects) => Self::Initial { objects: objects.iter().map(stored).collect::<Result<_, _>>()? },
            Event::InitialDone { epoch, resource_version } => Self::InitialDone { epoch: epoch.0, resource_version },
            Event::Batch { epoch, resource_version, changes } => {
                let change = |change| {
                    Ok(match change {
                        Change::Put { object, previous } => {
                            ChangeForm::Put { object: stored(&object)?, previous: maybe(previous)? }
                        }
                        Change::Gone { kind, reference, last } => {
                            ChangeForm::Gone { kind: kind.qualified(), reference, last: maybe(last)? }
                        }
                    })
                };
                let changes = changes.into_iter().map(change).collect::<Result<_, Error>>()?;
                Self::Batch { epoch: epoch.0, resource_version, changes }
            }
        })
    }

    pub fn open(self, find: FindKind<'_>) -> Result<Event, Error> {
        let maybe = |form: Option<StoredForm>| form.map(|form| form.open(find)).transpose();
        Ok(match self {
            Self::Error(error) => return Err(error.into()),
            Self::Initial { objects } => {
                Event::Initial(objects.into_iter().map(|form| form.open(find)).collect::<Result<_, _>>()?)
            }
            Self::InitialDone { epoch, resource_version } => {
                Event::InitialDone { epoch: Epoch(epoch), resource_version }
            }
            Self::Batch { epoch, resource_version, changes } => {
                let change = |form| {
                    Ok(match form {
                        ChangeForm::Put { object, previous } => {
                            Change::Put { object: object.open(find)?, previous: maybe(previous)? }
                        }
                        ChangeForm::Gone { kind, reference, last } => {
                            Change::Gone { kind: find(&kind)?, reference, last: maybe(last)? }
                        }
                    })
                };
                let changes = changes.into_iter().map(change).collect::<Result<_, Error>>()?;
                Event::Batch { epoch: Epoch(epoch), resource_version, changes }
            }
        })
    }
}

impl From<&Error> for ErrorForm {
    fn from(error: &Error) -> Self {
        let plain = |variant: &str, detail: &str| Self {
            variant: variant.into(),
            detail: detail.to_owned(),
            ..Self::default()
        };
        let about = |variant: &str, kind: &str, reference: &ObjectRef| Self {
            variant: variant.into(),
            kind: kind.to_owned(),
            reference: reference.clone(),
            ..Self::default()
        };
        match error {
            Error::NotFound { kind, reference } => about("NotFound", kind, reference),
            Error::AlreadyExists { kind, reference } => about("AlreadyExists", kind, reference),
            Error::Conflict { kind, reference, detail } => {
                Self { detail: detail.clone(), ..about("Conflict", kind, reference) }
            }
            Error::Fenced => plain("Fenced", ""),
            Error::Invalid { kind, reference, faults } => {
                Self { faults: faults.clone(), ..about("Invalid", kind, reference) }
            }
            Error::Forbidden { identity, verb, kind, reference, detail } => Self {
                identity: identity.clone(),
                verb: verb.clone(),
                detail: detail.clone(),
                ..about("Forbidden", kind, reference)
            },
            Error::UnknownKind { name } => plain("UnknownKind", name),
            Error::Expired { detail } => plain("Expired", detail),
            Error::TooLarge { detail } => plain("TooLarge", detail),
            Error::Full { detail } => plain("Full", detail),
            Error::UnknownOutcome { detail } => plain("UnknownOutcome", detail),
            Error::Unavailable { detail } => plain("Unavailable", detail),
            Error::Unreadable { kind, reference, source } => {
                Self { detail: source.to_string(), ..about("Unreadable", kind, reference) }
            }
            Error::Damaged { detail } => plain("Damaged", detail),
        }
    }
}

impl From<ErrorForm> for Error {
    fn from(form: ErrorForm) -> Self {
        let ErrorForm { variant, kind, reference, detail, faults, identity, verb } = form;
        match variant.as_str() {
            "NotFound" => Self::NotFound { kind, reference },
            "AlreadyExists" => Self::AlreadyExists { kind, reference },
            "Conflict" => Self::Conflict { kind, reference, detail },
            "Fenced" => Self::Fenced,
            "Invalid" => Self::Invalid { kind, reference, faults },
            "Forbidden" => Self::Forbidden { identity, verb, kind, reference, detail },
            "UnknownKind" => Self::UnknownKind { name: detail },
            "Expired" => Self::Expired { detail },
            "TooLarge" => Self::TooLarge { detail },
            "Full" => Self::Full { detail },
            "UnknownOutcome" => Self::UnknownOutcome { detail },
            "Unreadable" => Self::Unreadable { kind, reference, source: serde::de::Error::custom(detail) },
            "Damaged" => Self::Damaged { detail },
            // `Unavailable`, and what a newer server may say: nothing is known to have happened.
            "Unavailable" => Self::Unavailable { detail },
            other => Self::Unavailable { detail: format!("{other}: {detail}") },
        }
    }
}

/// Where a listing goes on, as one opaque word: `<version>.<epoch>.<namespace>/<name>`.
pub fn write_continue(from: &Continue) -> String {
    format!("{}.{}.{}/{}", from.resource_version, from.epoch.0, from.after.namespace, from.after.name)
}

/// `None` when it is no such word.
pub fn read_continue(text: &str) -> Option<Continue> {
    let (version, rest) = text.split_once('.')?;
    let (epoch, reference) = rest.split_once('.')?;
    let (namespace, name) = reference.split_once('/')?;
    Some(Continue {
        epoch: Epoch(epoch.to_owned()),
        resource_version: version.parse().ok()?,
        after: ObjectRef::new(namespace, name),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_error() -> Vec<Error> {
        let (kind, reference, detail) = ("Site".to_owned(), ObjectRef::new("a", "b"), "because".to_owned());
        vec![
            Error::NotFound { kind: kind.clone(), reference: reference.clone() },
            Error::AlreadyExists { kind: kind.clone(), reference: reference.clone() },
            Error::Conflict { kind: kind.clone(), reference: reference.clone(), detail: detail.clone() },
            Error::Fenced,
            Error::Invalid {
                kind: kind.clone(),
                reference: reference.clone(),
                faults: vec![Fault::new("spec.a", "x"), Fault::new("spec.b", "y")],
            },
            Error::Forbidden {
                identity: "user:ann".into(),
                verb: "get".into(),
                kind: kind.clone(),
                reference: reference.clone(),
                detail: detail.clone(),
            },
            Error::UnknownKind { name: "cows.farm".into() },
            Error::Expired { detail: detail.clone() },
            Error::TooLarge { detail: detail.clone() },
            Error::Full { detail: detail.clone() },
            Error::UnknownOutcome { detail: detail.clone() },
            Error::Unavailable { detail: detail.clone() },
            Error::Unreadable { kind, reference, source: serde::de::Error::custom("because") },
            Error::Damaged { detail },
        ]
    }

    #[test]
    fn every_error_means_the_same_on_both_sides() {
        for error in every_error() {
            let sent = serde_json::to_string(&ErrorForm::from(&error)).unwrap();
            let received: Error = serde_json::from_str::<ErrorForm>(&sent).unwrap().into();
            assert_eq!(format!("{received:?}"), format!("{error:?}"), "{sent}");
        }
    }

    #[test]
    fn where_a_listing_goes_on_is_read_as_it_is_written() {
        for after in [ObjectRef::new("default", "a.b-c"), ObjectRef::cluster("n1.example")] {
            let from = Continue { epoch: Epoch("e-1".into()), resource_version: ResourceVersion(77), after };
            assert_eq!(read_continue(&write_continue(&from)), Some(from));
        }
        assert_eq!(read_continue("1.e"), None);
    }
}
