//! How routes beside objects refuse: in Kubernetes' form, as the routes of objects do.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use reconciler::objects::Error;
use reconciler::server::Peer;
use serde_json::json;

/// A Status as Kubernetes has it.
#[derive(Debug)]
pub struct Refusal(pub StatusCode, pub String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Refusal(code, message) = self;
        let body = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(), "message": message,
            "reason": code.canonical_reason().unwrap_or("Unknown").replace(' ', ""),
        });
        (code, Json(body)).into_response()
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let code = if error.is_not_found() { StatusCode::NOT_FOUND } else { StatusCode::SERVICE_UNAVAILABLE };
        Refusal(code, error.to_string())
    }
}

pub fn bad(error: impl ToString) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, error.to_string())
}

/// These do what no object's verb stands for: for the machine's administrator so far.
pub fn trusted(peer: &Peer) -> Result<(), Refusal> {
    match peer.trusted {
        true => Ok(()),
        false => Err(Refusal(StatusCode::FORBIDDEN, "only the administrator of this machine may".to_owned())),
    }
}

/// An error and all that lies behind it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}
