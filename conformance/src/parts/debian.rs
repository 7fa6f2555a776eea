//! Programs of another Debian than the machine's: fetched by apt itself (its keys and checks, lists of its own) and
//! unpacked below `target/debian`, never installed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::images::workspace;

/// kubectl 1.32, of Debian 13; or the one that `KUBECTL` names.
pub fn kubectl() -> Result<PathBuf> {
    match std::env::var_os("KUBECTL") {
        Some(named) => Ok(named.into()),
        None => Ok(unpacked("trixie", "kubectl")?.join("usr/bin/kubectl")),
    }
}

/// The folder of containerd and its shim, of another Debian.
pub fn containerd(suite: &str) -> Result<PathBuf> {
    Ok(unpacked(suite, "containerd")?.join("usr/bin"))
}

/// The files of a package of a suite (`trixie`). Fetched once; two who want one at the same time take turns.
pub fn unpacked(suite: &str, package: &str) -> Result<PathBuf> {
    let folder = workspace().join("target/debian").join(suite);
    fs::create_dir_all(&folder).with_context(|| format!("could not create {}", folder.display()))?;
    let lock = File::create(folder.join("lock"))?;
    lock.lock()?;
    let root = folder.join(package);
    if root.is_dir() {
        return Ok(root);
    }
    let apt = Apt::new(&folder, suite)?;
    // Lists may be there from another package, and too old for what the mirror has by now.
    if apt.download(package).is_err() {
        apt.run(&["update"])?;
        apt.download(package)?;
    }
    let fetched = folder.join("fetched");
    let archives = fs::read_dir(&fetched)?.flatten().map(|entry| entry.path());
    let begins = format!("{package}_");
    let archive = archives.filter(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let mut archive =
        archive.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&begins)));
    let archive = archive.next().with_context(|| format!("apt fetched no {package}"))?;
    let half = folder.join(format!("{package}.half"));
    let _ = fs::remove_dir_all(&half);
    let mut unpack = Command::new("dpkg-deb");
    unpack.arg("-x").arg(&archive).arg(&half);
    said(&mut unpack)?;
    fs::rename(&half, &root)?;
    fs::remove_dir_all(&fetched)?;
    Ok(root)
}

/// apt with everything of its own but the keys.
struct Apt {
    folder: PathBuf,
}

impl Apt {
    fn new(folder: &Path, suite: &str) -> Result<Apt> {
        for name in ["lists/partial", "cache/archives/partial", "fetched"] {
            fs::create_dir_all(folder.join(name))?;
        }
        let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
        fs::write(folder.join("sources.list"), format!("deb [signed-by={keys}] {} {suite} main\n", mirror()?))?;
        fs::write(folder.join("status"), "")?;
        Ok(Apt { folder: folder.to_owned() })
    }

    fn download(&self, package: &str) -> Result<()> {
        self.run(&["download", package])
    }

    fn run(&self, words: &[&str]) -> Result<()> {
        let mut command = Command::new("apt-get");
        let at = |name: &str| self.folder.join(name).display().to_string();
        for (option, value) in [
            ("Dir::Etc::SourceList", at("sources.list")),
            ("Dir::Etc::SourceParts", "/dev/null".to_owned()),
            ("Dir::State::Lists", at("lists")),
            ("Dir::State::Status", at("status")),
            ("Dir::Cache", at("cache")),
            // What is fetched into a folder of root's alone, another user cannot write.
            ("APT::Sandbox::User", "root".to_owned()),
            ("Acquire::Languages", "none".to_owned()),
            ("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false".to_owned()),
        ] {
            command.arg("-o").arg(format!("{option}={value}"));
        }
        said(command.arg("-q").args(words).current_dir(self.folder.join("fetched")))
    }
}

/// Where the machine has its own Debian from; comments in its lists are no mirrors.
fn mirror() -> Result<String> {
    let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path());
    let files = std::iter::once(PathBuf::from("/etc/apt/sources.list")).chain(parts);
    let text: String = files.filter_map(|path| fs::read_to_string(path).ok()).collect::<Vec<_>>().join("\n");
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let mut words = lines.flat_map(str::split_whitespace);
    let found = words.find(|word| word.starts_with("http") && word.trim_end_matches('/').ends_with("/debian"));
    found.map(str::to_owned).context("apt's sources of this machine name no Debian mirror")
}

fn said(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("could not run {}", command.get_program().display()))?;
    ensure!(
        output.status.success(),
        "{} ended with {}: {}",
        command.get_program().display(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
