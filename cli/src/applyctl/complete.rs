//! Completion: what could be typed next, names of what is there included. Asked by the shell for each press of the key,
//! so a cluster that does not answer in time has no names, and nothing is ever said.

use std::ffi::OsStr;
use std::io;
use std::time::Duration;

use clap::CommandFactory;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::{CompleteEnv, EnvCompleter, Shells};
use reconciler::objects::{PageRequest, Selection};
use reconciler::seams::Seams;
use schemas::kinds::{self, DEFAULT_NAMESPACE};

use super::args::{Args, Global};
use super::failure::{Exit, Failure};
use super::{connect, find, served, session};

/// By which a shell asks.
const VARIABLE: &str = "COMPLETE";
/// Nobody waits longer for a completion.
const WITHIN: Duration = Duration::from_millis(700);

/// Answers a shell, if it is one that asks: then the process is done.
pub fn answered() -> bool {
    let answer = CompleteEnv::with_factory(Args::command).var(VARIABLE).bin("applyctl").completer("applyctl");
    let folder = std::env::current_dir().ok();
    answer.try_complete(std::env::args_os(), folder.as_deref()).unwrap_or_else(|error| error.exit())
}

/// What a shell has to run once, to ask for the rest.
pub fn script(shell: &str) -> Result<Vec<u8>, Failure> {
    let shells = Shells::builtins();
    let mut text = Vec::new();
    let known: Option<&dyn EnvCompleter> = shells.completer(shell);
    let Some(known) = known else {
        let names: Vec<&str> = shells.names().collect();
        return Err(Failure::new(
            Exit::Usage,
            format!("{shell:?} is not a shell that is known; there are {}", names.join(", ")),
        ));
    };
    known
        .write_registration(VARIABLE, "applyctl", "applyctl", "applyctl", &mut text)
        .map_err(|error: io::Error| Failure::new(Exit::Failed, format!("cannot write the script: {error}")))?;
    Ok(text)
}

/// Names of kinds.
pub fn kinds(current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else { return Vec::new() };
    if let Some((word, name)) = current.split_once('/') {
        return objects(word, name).into_iter().map(|name| candidate(format!("{word}/{name}"))).collect();
    }
    let all = kinds::ALL.iter().map(|registered| (registered.kind)());
    let words = all.flat_map(|kind| [kind.plural.to_string(), kind.singular.to_string()]);
    let mut words: Vec<String> = words.filter(|word| word.starts_with(current)).collect();
    // `service` is the beginning of `services`: one of them is enough until more is typed.
    words.sort();
    words.dedup();
    words.into_iter().map(candidate).collect()
}

/// Names of objects of the kind that was typed before.
pub fn names(current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else { return Vec::new() };
    let words = typed();
    // Behind the command where it is no kind of ours.
    let kind = words.iter().find(|word| kinds::find(word).is_some()).or(words.get(2));
    let Some(kind) = kind else { return Vec::new() };
    objects(kind, current).into_iter().map(candidate).collect()
}

/// `KIND/NAME` of what can be waited for and rolled back.
pub fn workloads(current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else { return Vec::new() };
    match current.split_once('/') {
        Some(_) => kinds(OsStr::new(current)),
        None => ["service", "bundle"]
            .iter()
            .flat_map(|word| objects(word, "").into_iter().map(move |name| format!("{word}/{name}")))
            .filter(|text| text.starts_with(current))
            .map(candidate)
            .collect(),
    }
}

pub fn services(current: &OsStr) -> Vec<CompletionCandidate> {
    of(&["service"], current)
}

pub fn bundles(current: &OsStr) -> Vec<CompletionCandidate> {
    of(&["bundle"], current)
}

pub fn nodes(current: &OsStr) -> Vec<CompletionCandidate> {
    of(&["node"], current)
}

pub fn services_and_bundles(current: &OsStr) -> Vec<CompletionCandidate> {
    of(&["service", "bundle"], current)
}

pub fn services_and_tasks(current: &OsStr) -> Vec<CompletionCandidate> {
    of(&["service", "task"], current)
}

fn of(words: &[&str], current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else { return Vec::new() };
    words.iter().flat_map(|word| objects(word, current)).map(candidate).collect()
}

fn candidate(text: String) -> CompletionCandidate {
    CompletionCandidate::new(text)
}

/// What was typed so far: the shell passes it on behind `--`.
fn typed() -> Vec<String> {
    let all = std::env::args_os().filter_map(|word| word.into_string().ok());
    all.skip_while(|word| word != "--").skip(1).collect()
}

/// The value of a flag among the words that were typed.
fn flag(words: &[String], names: &[&str]) -> Option<String> {
    let at = |index: usize, word: &String| {
        let (name, value) = word.split_once('=').map_or((word.as_str(), None), |(name, value)| (name, Some(value)));
        names.contains(&name).then(|| value.map(str::to_owned).or_else(|| words.get(index + 1).cloned())).flatten()
    };
    words.iter().enumerate().find_map(|(index, word)| at(index, word))
}

/// Names of objects of a kind that begin so, in the namespace that was typed.
fn objects(word: &str, begin: &str) -> Vec<String> {
    let words = typed();
    let said = |flags: &[&str], variable: &str| flag(&words, flags).or_else(|| std::env::var(variable).ok());
    let global = Global {
        host: said(&["--host"], "APPLY_HOST"),
        context: said(&["--context"], "APPLY_CONTEXT"),
        namespace: said(&["-n", "--namespace"], "APPLY_NAMESPACE"),
        ..Global::default()
    };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    let asked = async {
        let seams = Seams::real();
        let way = connect::way(&global, false, &seams).ok()?;
        let namespace = global.namespace.clone().or(way.namespace).unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
        let kind = match find::kind(word) {
            Ok(kind) => kind,
            Err(_) => tokio::select! {
                biased;
                others = served::by(&way.remote) => others.ok()?.into_iter().find(|kind| served::answers_to(kind, word))?,
                () = seams.sleep(WITHIN) => return None,
            },
        };
        let client = connect::client(way.remote);
        let mut selection = Selection::all_of(kind.clone());
        let namespace = session::namespace_of(&kind, &namespace);
        selection.namespace = (!namespace.is_empty()).then_some(namespace);
        tokio::select! {
            biased;
            listed = client.objects().list(&selection, PageRequest::default()) => listed.ok(),
            () = seams.sleep(WITHIN) => None,
        }
    };
    let found = runtime.block_on(asked);
    runtime.shutdown_background();
    let items = found.map(|list| list.items).unwrap_or_default();
    items.into_iter().map(|stored| stored.reference.name).filter(|name| name.starts_with(begin)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_to_ask_is_found_in_what_was_typed() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(flag(&words("applyctl get -n shop service"), &["-n", "--namespace"]).as_deref(), Some("shop"));
        assert_eq!(flag(&words("applyctl --namespace=shop get"), &["-n", "--namespace"]).as_deref(), Some("shop"));
        assert_eq!(flag(&words("applyctl get service"), &["-n"]), None);
    }

    #[test]
    fn shells_get_a_script_that_asks() {
        for shell in ["bash", "zsh", "fish"] {
            let text = String::from_utf8(script(shell).unwrap()).unwrap();
            assert!(text.contains("COMPLETE") && text.contains("applyctl"), "{text}");
        }
        assert_eq!(script("command.com").unwrap_err().exit, Exit::Usage);
    }
}
