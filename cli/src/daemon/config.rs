//! The file of options: YAML, each option by its long name.
//!
//! ```yaml
//! data: /srv/apply
//! log: info,controllers=debug
//! label: [disk=ssd, rack=b]
//! ```
//!
//! It has no parser of its own for values: what it says is put before the command line's reader as if it had been typed,
//! wherever neither the command line nor the environment says anything. Each entry is tried alone first, so that every
//! fault is told at its line and column.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches};
use schemas::source::{Content, Entry, Located, documents};

use super::options::Options;

const DEFAULT: &str = "/etc/apply/applyd.yaml";
/// Names the file, so it cannot stand in it.
const CONFIG: &str = "config";

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The command line, help and version included: clap prints it.
    #[error(transparent)]
    Typed(#[from] clap::Error),
    #[error(
        "--{option} stands before the subcommand, where it says nothing; put the subcommand's own options behind it"
    )]
    Misplaced { option: String },
    #[error("cannot read {path}", path = path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    /// One fault a line, with line and column.
    #[error("{}", said(path, faults))]
    Faults { path: PathBuf, faults: Vec<Located> },
}

fn said(path: &Path, faults: &[Located]) -> String {
    let lines: Vec<String> = faults.iter().map(|fault| format!("{}:{fault}", path.display())).collect();
    lines.join("\n")
}

/// What was typed, what the environment says, and what the file says, in this order.
pub fn read(typed: impl IntoIterator<Item = OsString>) -> Result<Options, ConfigError> {
    let typed: Vec<OsString> = typed.into_iter().collect();
    let matches = Options::command().try_get_matches_from(&typed)?;
    // Subcommands have options of their own, and no daemon.
    if matches.subcommand().is_some() {
        let misplaced = matches.ids().find(|id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine));
        return match misplaced {
            Some(id) => Err(ConfigError::Misplaced { option: id.to_string() }),
            None => Ok(Options::from_arg_matches(&matches)?),
        };
    }
    let named = matches.get_one::<PathBuf>(CONFIG).cloned();
    let path = named.clone().unwrap_or_else(|| DEFAULT.into());
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => Vec::new(),
        Err(source) => return Err(ConfigError::Unreadable { path, source }),
        Ok(bytes) => bytes,
    };
    let words = from_file(&bytes, &typed, &matches).map_err(|faults| ConfigError::Faults { path, faults })?;
    Ok(Options::try_parse_from_both(&typed, words)?)
}

impl Options {
    fn try_parse_from_both(typed: &[OsString], words: Vec<String>) -> Result<Self, clap::Error> {
        let all = typed.iter().take(1).cloned();
        let all = all.chain(words.into_iter().map(OsString::from)).chain(typed.iter().skip(1).cloned());
        Options::from_arg_matches(&Options::command().try_get_matches_from(all)?)
    }
}

/// The words that the file stands for, those left out that something else outranks.
fn from_file(bytes: &[u8], typed: &[OsString], matches: &ArgMatches) -> Result<Vec<String>, Vec<Located>> {
    let (found, mut faults) = documents(bytes);
    let mut words = Vec::new();
    if let Some(second) = found.get(1) {
        faults.push(Located::new(second.at, "", "one document is all that is read"));
    }
    let command = Options::command();
    let known: Vec<(&str, &clap::Arg)> =
        command.get_arguments().filter_map(|arg| Some((arg.get_long()?, arg))).collect();
    for node in found.iter().take(1) {
        if !matches!(node.content, Content::Object(_)) {
            faults.push(Located::new(node.at, "", "expected options with their values, such as data: /srv/apply"));
        }
        for entry in node.entries() {
            let arg = known.iter().find(|(long, _)| *long == entry.key && entry.key != CONFIG);
            let Some((_, arg)) = arg else {
                let near = schemas::advice::nearest(&entry.key, known.iter().map(|(long, _)| *long));
                let advice = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
                faults.push(Located::new(entry.key_at, &*entry.key, format!("unknown option{advice}")));
                continue;
            };
            match entry_words(entry, arg) {
                Err(fault) => faults.push(fault),
                Ok(said) => {
                    let alone = typed.iter().take(1).cloned().chain(said.iter().map(OsString::from));
                    if let Err(error) = Options::command().try_get_matches_from(alone) {
                        faults.push(Located::new(entry.node.at, &*entry.key, reason(&error)));
                    }
                    let outranked = matches!(
                        matches.value_source(arg.get_id().as_str()),
                        Some(ValueSource::CommandLine | ValueSource::EnvVariable)
                    );
                    if !outranked {
                        words.extend(said);
                    }
                }
            }
        }
    }
    faults.sort();
    if faults.is_empty() { Ok(words) } else { Err(faults) }
}

fn entry_words(entry: &Entry, arg: &clap::Arg) -> Result<Vec<String>, Located> {
    let repeats = matches!(arg.get_action(), clap::ArgAction::Append);
    let one = |content: &Content| match content {
        Content::Text(text) => Some(format!("--{}={text}", entry.key)),
        Content::Number(number) => Some(format!("--{}={number}", entry.key)),
        Content::Bool(value) => Some(format!("--{}={value}", entry.key)),
        _ => None,
    };
    match &entry.node.content {
        Content::List(items) if repeats => items
            .iter()
            .map(|item| one(&item.content).ok_or_else(|| Located::new(item.at, &*entry.key, "expected a text")))
            .collect(),
        content => {
            let wanted = if repeats { "expected a text, or a list of them" } else { "expected a text" };
            one(content).map(|word| vec![word]).ok_or_else(|| Located::new(entry.node.at, &*entry.key, wanted))
        }
    }
}

/// clap's first line, without what only a command line has.
fn reason(error: &clap::Error) -> String {
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    match lines.next().filter(|line| line.starts_with('[')) {
        Some(values) => format!("{first} {values}"),
        None => first,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(file: &str, typed: &[&str]) -> Result<Options, String> {
        let typed: Vec<OsString> = ["applyd"].iter().chain(typed).map(OsString::from).collect();
        let matches = Options::command().try_get_matches_from(&typed).unwrap();
        let words = from_file(file.as_bytes(), &typed, &matches)
            .map_err(|faults| faults.iter().map(|fault| format!("{fault}\n")).collect::<String>())?;
        Ok(Options::try_parse_from_both(&typed, words).unwrap())
    }

    #[test]
    fn the_command_line_outranks_the_file() {
        let file = "data: /srv/apply\nnode: n7\nlabel: [disk=ssd, rack=b]\nlog-format: json\nadvertise: 10.0.0.1\n";
        let options = words(file, &["--node", "n1"]).unwrap().machine;
        assert_eq!((options.data.to_str(), options.node.as_deref()), (Some("/srv/apply"), Some("n1")));
        assert_eq!(options.labels.len(), 2);
        assert_eq!(options.log_format, super::super::options::LogFormat::Json);
        assert_eq!(options.advertise, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
        let options = words(file, &["--label", "disk=hdd"]).unwrap().machine;
        assert_eq!(options.labels, [("disk".into(), "hdd".into())]);
        assert_eq!(words("", &[]).unwrap().machine.data.to_str(), Some("/var/lib/apply"));
    }

    #[test]
    fn every_fault_has_its_place() {
        let file = "dta: /srv\nadvertise: [10.0.0.1, nowhere]\nlog-format: xml\ndata: [a]\nconfig: x\n";
        let faults = words(file, &[]).unwrap_err();
        let lines: Vec<&str> = faults.lines().collect();
        assert_eq!(lines.len(), 5, "{faults}");
        assert_eq!(lines[0], "1:1  dta: unknown option; did you mean data?");
        assert!(lines[1].starts_with("2:12  advertise: invalid value 'nowhere'"), "{faults}");
        assert!(lines[2].starts_with("3:13  log-format: invalid value 'xml'"), "{faults}");
        assert!(lines[2].contains("text, json"), "{faults}");
        assert_eq!(lines[3], "4:7  data: expected a text");
        assert!(lines[4].starts_with("5:1  config: unknown option"), "{faults}");
        assert!(words("- a\n", &[]).unwrap_err().starts_with("1:1  expected options"));
    }

    #[test]
    fn the_command_line_holds_together() {
        Options::command().debug_assert();
    }
}
