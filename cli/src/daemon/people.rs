//! Credentials of people and programs: a certificate that names their User.
//!
//! | call | body | answer |
//! | --- | --- | --- |
//! | `POST /apis/apply/v1/users/NAME/certificate` | `{request, seconds}` | `{certificate, authorities, addresses, cluster}` |

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use controllers::identity::{Subject, Who};
use reconciler::ObjectRef;
use schemas::kinds::user::User;
use serde::{Deserialize, Serialize};

use super::answer::{Refusal, Short, bad};
use super::joining::Registrar;

/// Longer ones would outlive what anybody remembers of them.
const LIFE_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const LIFE_MIN: Duration = Duration::from_secs(300);

/// Where a user's certificate is made.
pub fn path(user: &str) -> String {
    format!("/apis/apply/v1/users/{user}/certificate")
}

/// What is asked for.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ask {
    /// PKCS#10 in PEM; only the public key is taken from it.
    pub request: String,
    /// How long it shall hold.
    pub seconds: u64,
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    /// In PEM, and that of who signed it; as are `authorities`.
    pub certificate: String,
    pub authorities: String,
    /// The managers, as others reach them.
    pub addresses: Vec<SocketAddr>,
    /// What people call the cluster.
    pub cluster: String,
}

/// To be asked by administrators only: whoever may, may become anybody.
pub fn routes(registrar: Registrar) -> Router {
    Router::new().route(&path("{name}"), post(certify)).with_state(registrar)
}

async fn certify(
    State(registrar): State<Registrar>,
    Path(name): Path<String>,
    Short(ask): Short<Ask>,
) -> Result<Json<Answer>, Refusal> {
    let life = Duration::from_secs(ask.seconds);
    if !(LIFE_MIN..=LIFE_MAX).contains(&life) {
        return Err(Refusal(StatusCode::BAD_REQUEST, "credentials live from 5 minutes to 10 years".to_owned()));
    }
    let user = registrar.client.get::<User>(&ObjectRef::cluster(&name)).await?;
    let who = Who::User { name, uid: user.metadata.uid.clone() };
    let subject = Subject { cluster: registrar.cluster.clone(), who };
    let issued =
        registrar.authorities.signing().issue(&subject, &ask.request, registrar.seams.now(), life).map_err(bad)?;
    Ok(Json(Answer {
        certificate: issued.chain,
        authorities: registrar.authorities.believed(),
        addresses: registrar.managers(),
        cluster: registrar.title().await?,
    }))
}
