//! Logins at registries.

use clap::{Args as ClapArgs, Subcommand};

use super::Ls;

#[derive(Debug, Subcommand)]
pub enum Registry {
    /// Remember who you are for a registry, if it agrees; nodes pull with it
    #[command(before_help = "  applyctl registry login registry.example.com -u ann --password-stdin < password")]
    Login(Login),
    /// Forget who you are for a registry
    #[command(before_help = "  applyctl registry logout registry.example.com")]
    Logout(Logout),
    /// List logins
    #[command(alias = "list", before_help = "  applyctl registry ls")]
    Ls(Ls),
}

#[derive(Debug, ClapArgs)]
#[command(
    before_help = "  applyctl login registry.example.com -u ann --password-stdin < password\n  applyctl login docker.io -u ann"
)]
pub struct Login {
    /// Host and port; docker.io for Docker Hub
    pub registry: String,
    /// Who you are there
    #[arg(short, long)]
    pub username: String,
    /// Read the password from the standard input
    #[arg(long)]
    pub password_stdin: bool,
    /// Store it without asking the registry whether it is right
    #[arg(long)]
    pub no_check: bool,
}

#[derive(Debug, ClapArgs)]
#[command(before_help = "  applyctl logout registry.example.com")]
pub struct Logout {
    /// Host and port; docker.io for Docker Hub
    pub registry: String,
}
