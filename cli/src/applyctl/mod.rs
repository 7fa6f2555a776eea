//! `applyctl`: parse, call the API, print.
//!
//! Every command is a function of a [`Session`] (a client, a namespace, two outputs), so that tests run it over a store
//! in memory. Data goes to stdout, talk to stderr; how a command ends is a [`Failure`] with a documented code.
//!
//! Reading order: [`args`] (what can be typed), [`session`], [`failure`], [`find`] (what names mean), [`converge`]
//! (waiting with a view), then one module for each verb; [`rows`], [`table`], [`screen`] and [`words`] for how it looks.

pub mod apply;
pub mod args;
pub mod backup;
pub mod bundle;
mod ca;
pub mod changes;
pub mod complete;
pub mod connect;
mod context;
pub(crate) mod controller;
pub mod converge;
pub mod data;
pub mod delete;
pub mod deploy;
pub mod describe;
pub mod events;
pub mod exec;
pub mod explain;
pub mod failure;
pub mod find;
pub mod get;
pub mod image;
pub mod init;
pub mod join;
pub mod kubeconfig;
mod leave;
pub mod logs;
pub mod network;
pub mod node;
mod probe;
pub mod proxy;
pub mod ps;
mod rebalance;
pub mod registry;
pub mod restore;
pub mod rollout;
pub mod rows;
pub mod scale;
pub mod screen;
mod served;
pub mod service;
pub mod session;
pub mod system;
pub mod table;
pub mod token;
mod unseen;
mod user;
pub mod version;
pub mod volume;
pub mod wait;
pub mod words;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use reconciler::seams::Seams;

use crate::usage;
use args::{Args, Command};
pub use failure::{Exit, Failure};
use screen::Screen;
pub use session::Session;

/// The whole process.
pub fn main() -> ExitCode {
    if complete::answered() {
        return ExitCode::SUCCESS;
    }
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return usage::tell(Args::command(), &std::env::args_os().collect::<Vec<_>>(), error),
    };
    let mut screen = Screen::of_process(args.global.color, args.global.quiet);
    // One thread is enough for one command, and is there at once.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = screen.fail(&format!("applyctl: the runtime cannot start: {error}"));
            return ExitCode::from(Exit::Failed.code());
        }
    };
    let seams = Seams::real();
    if let Command::Context(context) = &args.command {
        return match context::run(&mut screen, context) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => end(&mut screen, &failure),
        };
    }
    let way = match connect::way(&args.global, args.command.is_of_this_machine(), &seams) {
        Ok(way) => way,
        Err(failure) => return end(&mut screen, &failure),
    };
    let client = connect::client(way.remote.clone());
    let session = Session::new(client, &args.global, screen, seams).with_server(way.remote);
    let mut session = session.in_namespace(way.namespace);
    let done = runtime.block_on(run(&mut session, &args.command));
    // A read of the standard input cannot be called off, and nobody waits for it.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => end(&mut session.screen, &failure.by_way_of(way.context.as_deref())),
    }
}

fn end(screen: &mut Screen, failure: &Failure) -> ExitCode {
    if !failure.message.is_empty() {
        let tone = if failure.exit == Exit::Interrupted { screen::Tone::Plain } else { screen::Tone::Bad };
        let (first, rest) = match failure.to_string().split_once('\n') {
            Some((first, rest)) => (first.to_owned(), format!("\n{rest}")),
            None => (failure.to_string(), String::new()),
        };
        let first = screen.paint(tone, &first);
        // Nobody is left to tell when that fails.
        let _ = screen.fail(&format!("{first}{rest}"));
    }
    ExitCode::from(failure.exit.code())
}

/// One command.
pub async fn run(session: &mut Session, command: &Command) -> Result<(), Failure> {
    match command {
        Command::Deploy(deploy) => deploy::run(session, deploy).await,
        Command::Diff(diff) => deploy::diff(session, diff).await,
        Command::Apply(apply) => apply::run(session, apply).await,
        Command::Get(get) => get::run(session, get).await,
        Command::Describe(describe) => describe::run(session, describe).await,
        Command::Delete(delete) => delete::run(session, delete).await,
        Command::Explain(explain) => explain::run(session, explain).await,
        Command::Rollout(rollout) => rollout::run(session, rollout).await,
        Command::Scale(scale) => scale::run(session, scale).await,
        Command::Service(service) => service::run(session, service).await,
        Command::Bundle(bundle) => bundle::run(session, bundle).await,
        Command::Ps(ps) => ps::run(session, ps).await,
        Command::Logs(logs) => logs::run(session, logs).await,
        Command::Exec(exec) => exec::run(session, exec).await,
        Command::Volume(volume) => volume::run(session, volume).await,
        Command::Secret(secret) => data::secret(session, secret).await,
        Command::Config(config) => data::config(session, config).await,
        Command::Network(network) => network::run(session, network).await,
        Command::Node(node) => node::run(session, node).await,
        Command::Registry(registry) => registry::run(session, registry).await,
        Command::Init(init) => init::run(session, init).await,
        Command::Unlock(unlock) => init::unlock(session, unlock).await,
        Command::Join(join) => join::run(session, join).await,
        Command::Leave(leave) => leave::run(session, leave).await,
        Command::User(user) => user::run(session, user).await,
        Command::Controller(controller) => controller::run(session, controller).await,
        Command::Context(context) => context::run(&mut session.screen, context),
        Command::Token(token) => token::run(session, token).await,
        Command::Ca(ca) => ca::run(session, ca).await,
        Command::Login(login) => registry::login(session, login).await,
        Command::Logout(logout) => registry::logout(session, logout).await,
        Command::Image(image) => image::run(session, image).await,
        Command::Backup(backup) => backup::run(session, backup).await,
        Command::Restore(restore) => restore::run(session, restore).await,
        Command::Proxy(proxy) => proxy::run(session, proxy).await,
        Command::Events(events) => events::run(session, events).await,
        Command::Wait(wait) => wait::run(session, wait).await,
        Command::System(system) => system::run(session, system).await,
        Command::Version => version::run(session).await,
        Command::Completion { shell } => Ok(session.screen.bytes(&complete::script(shell)?)?),
    }
}
