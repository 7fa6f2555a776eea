//! The daemon. All of it is in [`cli::daemon`].

fn main() -> std::process::ExitCode {
    cli::daemon::main()
}
