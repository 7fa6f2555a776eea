//! What is said of a command line that cannot be read. clap's own way shows the arguments that were given, those with
//! defaults among them, as if they were needed; and it lists hidden commands. Here it is the usage that `--help` shows.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Says it, or prints the help or version that was asked for.
pub fn tell(command: Command, typed: &[OsString], error: clap::Error) -> ExitCode {
    let told = match told(command, typed, error) {
        Ok(help) => {
            eprint!("{help}");
            return ExitCode::from(2);
        }
        Err(error) => error,
    };
    // Nobody is left to tell when that fails.
    let _ = told.print();
    ExitCode::from(u8::try_from(told.exit_code()).unwrap_or(1))
}

/// The error with the usage of the command that was typed; where only a command is missing, its help.
fn told(mut command: Command, typed: &[OsString], mut error: clap::Error) -> Result<String, clap::Error> {
    command.build();
    let of = innermost(&mut command, typed);
    if error.kind() == ErrorKind::MissingSubcommand {
        return Ok(of.render_help().to_string());
    }
    if error.get(ContextKind::Usage).is_some() {
        error.insert(ContextKind::Usage, ContextValue::StyledStr(of.render_usage()));
    }
    Err(error)
}

/// The command that the words lead to. An option's value that is called as a command is goes unnoticed: then the usage is
/// that of another command, and what is wrong is still said.
fn innermost<'a>(command: &'a mut Command, typed: &[OsString]) -> &'a mut Command {
    for (at, word) in typed.iter().enumerate().skip(1) {
        let Some(name) = command.find_subcommand(word).map(|found| found.get_name().to_owned()) else { continue };
        let below = command.find_subcommand_mut(&name).expect("it was found a line above");
        return innermost(below, &typed[at..]);
    }
    command
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::applyctl::args::Args;
    use crate::daemon::options::Options;

    fn said(command: Command, line: &str) -> String {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let error = command.clone().try_get_matches_from(&words).unwrap_err();
        told(command, &words, error).unwrap_or_else(|error| error.to_string())
    }

    #[test]
    fn a_usage_has_what_is_needed_and_nothing_that_has_a_default() {
        for (line, usage) in [
            ("applyctl get", "\nUsage: applyctl get [OPTIONS] <KIND> [NAMES]...\n"),
            ("applyctl get --nope", "\nUsage: applyctl get [OPTIONS] <KIND> [NAMES]...\n"),
            ("applyctl -n shop service rm", "\nUsage: applyctl service rm [OPTIONS] <NAMES>...\n"),
            ("applyctl gte", "\nUsage: applyctl [OPTIONS] <COMMAND>\n"),
        ] {
            let text = said(Args::command(), line);
            assert!(text.contains(usage), "{line}: {text}");
        }
        let text = said(Options::command(), "applyd --nope");
        assert!(text.contains("\nUsage: applyd [OPTIONS] [COMMAND]\n"), "{text}");
    }

    #[test]
    fn who_types_no_command_is_shown_them() {
        let text = said(Args::command(), "applyctl --quiet");
        assert!(text.contains("Make an application be as a file says") && !text.contains("subcommands:"), "{text}");
        let text = said(Args::command(), "applyctl --quiet service");
        assert!(text.contains("Start a service"), "{text}");
    }

    #[test]
    fn a_number_that_is_none_is_told_what_is_expected() {
        for (line, expected) in [
            ("applyctl rollout undo web --to abc", "a whole number is expected, such as 2"),
            ("applyctl logs web --tail many", "a whole number is expected, such as 2"),
            ("applyctl service update web --replicas x", "a whole number is expected, such as 2"),
        ] {
            let text = said(Args::command(), line);
            assert!(text.contains(expected), "{line}: {text}");
        }
    }
}
