//! `/scale`: how many of something are wanted and there, in one form for all kinds that can be scaled, so that a tool need
//! not know where each says it (Kubernetes' `autoscaling/v1` `Scale`).

use axum::body::Body;
use axum::http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use reconciler_api::{Fault, Kind, ObjectRef};

use crate::objects::{Error, Part, Patch, Scale, Stored, Write};

use super::answer::{Problem, json_response};
use super::handle::{Call, read_json, seen_in, unsupported};

pub(super) async fn scale(
    call: Call<'_>,
    kind: &Kind,
    scale: &Scale,
    reference: ObjectRef,
    body: Body,
) -> Result<Response<Body>, Problem> {
    let verb = match call.parts.method {
        Method::GET => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        _ => return Err(call.method_not_allowed()),
    };
    call.allow(verb, kind, &reference, "scale")?;
    let stored = call.shared.objects.get(kind, &reference).await?;
    let stands = form(scale, &stored)?;
    if verb == "get" {
        return Ok(json_response(StatusCode::OK, &stands));
    }
    let body = call.body(body).await?;
    let desired = match (verb, call.content_type()) {
        ("update", _) => {
            call.expect_json()?;
            read_json(body.as_ref())?
        }
        (_, "application/merge-patch+json") => {
            let mut desired = stands.clone();
            // What it does not say of versions, it does not ask for.
            without_version(&mut desired);
            json_patch::merge(&mut desired, &read_json(body.as_ref())?);
            desired
        }
        (_, "application/json-patch+json") => {
            let patch: json_patch::Patch = serde_json::from_slice(body.as_ref())
                .map_err(|error| Problem::bad_request(format!("it is no JSON patch: {error}")))?;
            let mut desired = stands.clone();
            json_patch::patch(&mut desired, &patch)
                .map_err(|error| Problem::bad_request(format!("the patch does not apply: {error}")))?;
            without_version(&mut desired);
            desired
        }
        (_, other) => {
            return Err(unsupported(other, "application/merge-patch+json or application/json-patch+json"));
        }
    };
    // A client of Kubernetes leaves a 0 out.
    let wanted = match &desired["spec"]["replicas"] {
        Value::Null => Some(0),
        said => said.as_u64().filter(|count| *count <= u64::from(u32::MAX)),
    };
    let Some(wanted) = wanted else {
        let faults =
            vec![Fault::new("spec.replicas", format!("{} is no number of replicas", desired["spec"]["replicas"]))];
        return Err(Error::Invalid { kind: "Scale".into(), reference, faults }.into());
    };
    let patch = json!([{"op": "add", "path": scale.wanted, "value": wanted}]);
    let write = Write::Update {
        kind: stored.kind.clone(),
        reference,
        part: Part::Main,
        patch: Patch::Json(serde_json::from_value(patch).expect("an operation of RFC 6902")),
        precondition: seen_in(&desired)?,
    };
    let (stored, _) = call.write(write).await?;
    Ok(json_response(StatusCode::OK, &form(scale, &stored)?))
}

fn without_version(scale: &mut Value) {
    if let Some(metadata) = scale["metadata"].as_object_mut() {
        metadata.remove("resourceVersion");
    }
}

fn form(scale: &Scale, stored: &Stored) -> Result<Value, Error> {
    let object = stored.to_value()?;
    let count = |pointer: &str| object.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    Ok(json!({
        "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata,
        "spec": {"replicas": count(&scale.wanted)},
        "status": {"replicas": count(&scale.found), "selector": text(&scale.selector)},
    }))
}
