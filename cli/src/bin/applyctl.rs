//! The command. All of it is in [`cli::applyctl`].

fn main() -> std::process::ExitCode {
    cli::applyctl::main()
}
