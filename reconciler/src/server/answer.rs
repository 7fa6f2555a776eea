//! Answers that are no objects: Kubernetes' `Status`, with what went wrong in words, in codes and field by field.

use std::fmt;

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::objects::Error;
use crate::objects::wire::ErrorForm;

use super::Reason;

/// Why there is no other answer.
#[derive(Debug)]
pub(super) enum Problem {
    /// What the objects layer said.
    Objects(Error),
    /// What never came so far.
    Request { code: StatusCode, reason: &'static str, message: String },
}

impl Problem {
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::Request { code: StatusCode::BAD_REQUEST, reason: "BadRequest", message: message.into() }
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::Request { code: StatusCode::NOT_FOUND, reason: "NotFound", message: message.into() }
    }

    pub fn too_many(message: impl Into<String>) -> Self {
        Self::Request { code: StatusCode::TOO_MANY_REQUESTS, reason: "TooManyRequests", message: message.into() }
    }

    pub fn code(&self) -> StatusCode {
        match self {
            Self::Request { code, .. } => *code,
            Self::Objects(error) => code_and_reason(error).0,
        }
    }

    /// As a `Status` object.
    pub fn status(&self) -> Value {
        let (code, reason, message, details) = match self {
            Self::Request { code, reason, message } => (*code, *reason, message.clone(), json!({})),
            Self::Objects(error) => {
                let (code, reason) = code_and_reason(error);
                (code, reason, error.to_string(), details(error))
            }
        };
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "details": details, "code": code.as_u16(),
        })
    }

    pub fn into_response(self) -> Response<Body> {
        let mut response = json_response(self.code(), &self.status());
        if [StatusCode::FORBIDDEN, StatusCode::UNAUTHORIZED].contains(&self.code()) {
            response.extensions_mut().insert(Reason(self.to_string().into()));
        }
        response
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::Objects(error)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Objects(error) => error.fmt(f),
            Self::Request { message, .. } => f.write_str(message),
        }
    }
}

/// Kubernetes' code and reason where there is one that means the same.
fn code_and_reason(error: &Error) -> (StatusCode, &'static str) {
    match error {
        Error::NotFound { .. } | Error::UnknownKind { .. } => (StatusCode::NOT_FOUND, "NotFound"),
        Error::AlreadyExists { .. } => (StatusCode::CONFLICT, "AlreadyExists"),
        Error::Conflict { .. } | Error::Fenced => (StatusCode::CONFLICT, "Conflict"),
        Error::Invalid { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "Invalid"),
        Error::Forbidden { .. } => (StatusCode::FORBIDDEN, "Forbidden"),
        Error::Expired { .. } => (StatusCode::GONE, "Expired"),
        Error::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge"),
        Error::Full { .. } => (StatusCode::INSUFFICIENT_STORAGE, "InsufficientStorage"),
        Error::UnknownOutcome { .. } => (StatusCode::GATEWAY_TIMEOUT, "Timeout"),
        Error::Unavailable { .. } => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
        Error::Unreadable { .. } | Error::Damaged { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
    }
}

fn details(error: &Error) -> Value {
    let form = ErrorForm::from(error);
    let causes: Vec<Value> = form
        .faults
        .iter()
        .map(|fault| json!({"reason": "FieldValueInvalid", "message": fault.message, "field": fault.path}))
        .collect();
    let mut details = json!({"error": form});
    for (name, value) in [("kind", &form.kind), ("name", &form.reference.name)] {
        if !value.is_empty() {
            details[name] = value.as_str().into();
        }
    }
    if !causes.is_empty() {
        details["causes"] = causes.into();
    }
    details
}

/// Kubernetes' word for "it is done".
pub(super) fn success(details: Value) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

pub(super) fn json_response(code: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if code == StatusCode::TOO_MANY_REQUESTS || code == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

pub(super) fn text_response(code: StatusCode, content_type: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use reconciler_api::{Fault, ObjectRef};

    use super::*;

    #[test]
    fn every_fault_is_a_cause() {
        let faults = vec![Fault::new("spec.replicas", "-1 is less than 0"), Fault::new("spec.image", "is needed")];
        let error = Error::Invalid { kind: "Service".into(), reference: ObjectRef::new("default", "vote"), faults };
        let status = Problem::from(error).status();
        assert_eq!((status["code"].as_u64(), &status["reason"]), (Some(422), &json!("Invalid")));
        let causes = status["details"]["causes"].as_array().unwrap();
        assert_eq!(causes.len(), 2);
        assert_eq!(causes[0]["field"], "spec.replicas");
        assert_eq!(status["details"]["name"], "vote");
    }
}
