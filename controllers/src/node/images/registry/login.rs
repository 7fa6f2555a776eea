//! Whether a registry knows somebody: asked before a login is kept, so that a slip of the pen shows where it is made.

use reqwest::StatusCode;
use reqwest::Url;
use reqwest::header::AUTHORIZATION;
use schemas::image::ImageRef;

use super::auth::{self, Challenge, Credentials};
use super::{Registries, RegistryOptions};
use crate::node::images::Error;

/// How a registry lets somebody in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// By these credentials.
    Known,
    /// It lets everybody in, and was not asked about anybody.
    Open,
}

/// Why a login is not one. The words hold nothing of the password.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoginError {
    #[error("{registry:?} is no registry: say its host, with its port if it has one, as image names do")]
    NoRegistry { registry: String },
    #[error("the registry at {registry} does not know {username} with this password")]
    Unknown { registry: String, username: String },
    /// It may be another time.
    #[error("the registry at {registry} could not be asked ({why})")]
    Unasked { registry: String, why: String },
}

/// Asks a registry whether it knows the credentials, as this machine would when it pulls.
///
/// # Errors
/// [`LoginError::Unknown`] when they are refused; the other two when nobody could be asked.
pub async fn check_login(
    options: RegistryOptions,
    registry: &str,
    credentials: &Credentials,
) -> Result<Door, LoginError> {
    // No image is asked for; whatever speaks with a registry names one.
    let image = format!("{registry}/login:latest").parse::<ImageRef>().ok();
    let Some(image) = image.filter(|image| image.registry() == registry) else {
        return Err(LoginError::NoRegistry { registry: registry.to_owned() });
    };
    let unasked = |why: String| LoginError::Unasked { registry: registry.to_owned(), why };
    let failed = |error: Error| match error {
        Error::Unreachable { why, .. } => unasked(why),
        Error::Overloaded { status, .. } => unasked(format!("it answered {status} again and again")),
        Error::Strange { status, message, .. } => unasked(format!("it answered {status} {message:?}")),
        other => unasked(other.to_string()),
    };
    let unknown = || LoginError::Unknown { registry: registry.to_owned(), username: credentials.username.clone() };
    let registries = Registries::new(options);
    let base = registries.base(&image).await.map_err(failed)?;
    let url = Url::parse(&format!("{base}/v2/")).expect("checked references make URLs");
    let first = registries.exchange(&image, &url, |client| client.get(url.clone())).await.map_err(failed)?;
    let challenge = match first.status() {
        StatusCode::OK => return Ok(Door::Open),
        StatusCode::UNAUTHORIZED => auth::challenge(first.headers()),
        status => return Err(unasked(format!("it answered {status}"))),
    };
    let place = match challenge {
        Some(Challenge::Basic) => url,
        Some(Challenge::Bearer { realm, service, .. }) => {
            registries.token_place(&image, &realm, service.as_deref()).map_err(failed)?
        }
        None => return Err(unasked("it wants to be told in a way that is not known here".to_owned())),
    };
    let ask = |client: &reqwest::Client| client.get(place.clone()).header(AUTHORIZATION, credentials.basic());
    let second = registries.exchange(&image, &place, ask).await.map_err(failed)?;
    match second.status() {
        StatusCode::OK => Ok(Door::Known),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => Err(unknown()),
        status => Err(unasked(format!("it answered {status}"))),
    }
}
