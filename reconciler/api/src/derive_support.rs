//! What the code written by `#[derive(Resource)]` refers to. Not part of the public surface.

pub use {schemars, serde, serde_json};

/// Refuses an object of another kind: an absent `kind` or `apiVersion` is taken as the right one, as in a typed body.
pub fn check_types(kind: &crate::Kind, api_version: Option<&str>, kind_name: Option<&str>) -> Result<(), String> {
    let expected = kind.api_version();
    match (api_version, kind_name) {
        (Some(version), _) if version != expected => Err(format!("apiVersion is {version:?}, expected {expected:?}")),
        (_, Some(name)) if name != kind.kind => Err(format!("kind is {name:?}, expected {:?}", kind.kind)),
        _ => Ok(()),
    }
}
