//! What the process is told: arguments, environment, directory. Image and container merged as Docker merges them.

use crate::node::containerd::container_spec::Process;

/// Docker's default search path, for an image that sets none.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The argument vector; empty if neither image nor container names a command.
///
/// An entrypoint of the container drops the image's command, which was written for the image's entrypoint; `[]` and
/// `[""]` clear the image's entrypoint.
pub(super) fn arguments(image: &oci_spec::image::Config, wanted: &Process) -> Vec<String> {
    let image_command = image.cmd().clone().unwrap_or_default();
    let command = wanted.command.clone().filter(|command| !command.is_empty());
    let (entrypoint, command) = match &wanted.entrypoint {
        None => (image.entrypoint().clone().unwrap_or_default(), command.unwrap_or(image_command)),
        Some(none) if none.is_empty() => (Vec::new(), command.unwrap_or(image_command)),
        Some(entrypoint) => (entrypoint.clone(), command.unwrap_or_default()),
    };
    let entrypoint = if entrypoint == [""] { Vec::new() } else { entrypoint };
    entrypoint.into_iter().chain(command).collect()
}

/// `PATH`, `HOSTNAME` and, on a tty, `TERM`; then the image's; then the container's. A later one of the same name takes
/// the place of the earlier; a name without `=` removes it.
pub(super) fn environment(image: &oci_spec::image::Config, wanted: &Process, hostname: &str) -> Vec<String> {
    let mut env = vec![PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if wanted.tty {
        env.push("TERM=xterm".to_owned());
    }
    let image = image.env().clone().unwrap_or_default();
    overlay(&mut env, &image);
    overlay(&mut env, &wanted.env);
    env
}

/// Applies `changes` to `env` by the rule of [`environment`].
pub(crate) fn overlay(env: &mut Vec<String>, changes: &[String]) {
    for change in changes {
        let name = name_of(change);
        let at = env.iter().position(|set| name_of(set) == name);
        match (at, change.contains('=')) {
            (Some(at), true) => env[at] = change.clone(),
            (None, true) => env.push(change.clone()),
            (Some(at), false) => _ = env.remove(at),
            (None, false) => {}
        }
    }
}

/// Where the process starts: the container's, else the image's, else `/`. Relative ones in images count from `/`.
pub(super) fn working_dir(image: &oci_spec::image::Config, wanted: &Process) -> String {
    let said = |dir: &Option<String>| dir.clone().filter(|dir| !dir.is_empty());
    let dir = said(&wanted.working_dir).or_else(|| said(image.working_dir())).unwrap_or_default();
    if dir.starts_with('/') { dir } else { format!("/{dir}") }
}

pub(super) fn name_of(variable: &str) -> &str {
    variable.split_once('=').map_or(variable, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Option<Vec<String>> {
        (text != "-").then(|| text.split_whitespace().map(|w| w.replace('∅', "")).collect())
    }

    /// Entrypoint and command of image and container (`-`: not said; `∅`: the empty string).
    #[track_caller]
    fn check(image: (&str, &str), wanted: (&str, &str), expected: &str) {
        let mut config = oci_spec::image::Config::default();
        config.set_entrypoint(words(image.0)).set_cmd(words(image.1));
        let process = Process { entrypoint: words(wanted.0), command: words(wanted.1), ..Process::default() };
        assert_eq!(arguments(&config, &process).join(" "), expected, "image {image:?}, wanted {wanted:?}");
    }

    #[test]
    fn entrypoint_and_command_are_merged_as_docker_does() {
        check(("-", "-"), ("-", "-"), "");
        check(("-", "sh"), ("-", "-"), "sh");
        check(("e", "c"), ("-", "-"), "e c");
        check(("e", "c"), ("-", "x y"), "e x y");
        check(("e", "c"), ("-", ""), "e c");
        check(("e", "c"), ("n", "-"), "n");
        check(("e", "c"), ("n m", "x"), "n m x");
        check(("e", "c"), ("", "-"), "c");
        check(("e", "c"), ("", "x"), "x");
        check(("e", "c"), ("∅", "-"), "");
        check(("e", "c"), ("∅", "x"), "x");
        check(("∅", "c"), ("-", "-"), "c");
    }

    #[test]
    fn later_variables_replace_earlier_ones_in_place() {
        let mut config = oci_spec::image::Config::default();
        config.set_env(words("PATH=/image A=1 B=2 C="));
        let process =
            Process { env: words("A=9 D=4=4 B HOSTNAME=mine GONE").unwrap(), tty: true, ..Process::default() };
        let env = environment(&config, &process, "box");
        assert_eq!(env.join(" "), "PATH=/image HOSTNAME=mine TERM=xterm A=9 C= D=4=4");
        let bare = environment(&oci_spec::image::Config::default(), &Process::default(), "box");
        assert_eq!(bare, [PATH, "HOSTNAME=box"]);
    }

    #[test]
    fn the_directory_is_the_container_s_else_the_image_s_else_the_root() {
        let dir = |image: Option<&str>, wanted: Option<&str>| {
            let mut config = oci_spec::image::Config::default();
            config.set_working_dir(image.map(str::to_owned));
            working_dir(&config, &Process { working_dir: wanted.map(str::to_owned), ..Process::default() })
        };
        assert_eq!(dir(None, None), "/");
        assert_eq!(dir(Some("/w"), None), "/w");
        assert_eq!(dir(Some("w"), Some("")), "/w");
        assert_eq!(dir(Some("/w"), Some("/x")), "/x");
    }
}
