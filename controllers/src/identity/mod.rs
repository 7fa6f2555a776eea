//! Who is who between machines: the cluster's authority, the certificates that it signs, and the tokens that machines join
//! with. Nothing here waits or touches a disk; the time is passed in.
//!
//! Reading order: `subject` (whom a certificate names), `token` (what is typed once), `authority` (what signs).

mod authority;
mod subject;
mod token;

pub use authority::{Authority, IdentityError, Issued, MAY_RENEW_FOR, Request, key_of_request};
pub use subject::{Certified, InPem, Subject, Who, authorities_in, key_of};
pub use token::{Fingerprint, Secret, Token, TokenError};

/// The name that every manager's certificate answers to, whatever address it is reached at.
pub const MANAGER_NAME: &str = "manager.apply.internal";
