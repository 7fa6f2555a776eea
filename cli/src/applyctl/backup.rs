//! `backup`: the whole store at one revision, in a file.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use hyper::Method;
use reconciler::causes::chain;
use reconciler::objects::remote::connection::Answer;
use reconciler::store::embedded::Embedded;
use serde_json::json;

use super::args::Backup;
use super::failure::{Exit, Failure};
use super::session::Session;
use super::words;
use crate::daemon::backup::KEY_HEADER;
use crate::daemon::restore::DEFAULT_DATA;

/// The file has its name only once it is whole, was read back, and is on the disk.
pub async fn run(session: &mut Session, backup: &Backup) -> Result<(), Failure> {
    let answer = session.remote()?.call(Method::GET, "/apis/apply/v1/backup", Bytes::new()).await;
    let answer = answer.map_err(Failure::beside_objects)?;
    let key = answer.header(KEY_HEADER).unwrap_or("its data directory").to_owned();
    let partial = Partial::new(&backup.file);
    let bytes = partial.fill(answer).await?;
    let path = partial.path.clone();
    let (revision, keys) = Embedded::verify(&path)
        .map_err(|error| Failure::new(Exit::Failed, format!("the backup is not whole: {}", chain(&error))))?;
    partial.adopt().map_err(|error| unwritten(&backup.file, &error))?;
    let value = json!({"file": backup.file, "bytes": bytes, "revision": revision.0, "keys": keys, "key": key});
    if session.print_value(&value)? {
        return Ok(());
    }
    let line = format!("{}: {}, {keys} keys, revision {revision}", backup.file.display(), words::bytes(bytes));
    session.screen.say(&line)?;
    Ok(session.screen.say(&format!(
        "  secrets in it are sealed: another machine also needs {key}\n  put it back with: applyctl restore {}{}",
        data_flag(&key),
        backup.file.display()
    ))?)
}

/// The data directory that the key lies in, as `restore` is told of it where it is not its default.
fn data_flag(key: &str) -> String {
    match Path::new(key).parent() {
        Some(data) if data.is_absolute() && data != Path::new(DEFAULT_DATA) => format!("--data {} ", data.display()),
        _ => String::new(),
    }
}

fn unwritten(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("cannot write {}: {error}", path.display()))
}

/// What there is of the file so far; it goes unless it is adopted.
struct Partial {
    path: PathBuf,
    target: PathBuf,
}

impl Partial {
    fn new(target: &Path) -> Self {
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.partial", std::process::id()));
        Self { path: target.with_file_name(name), target: target.to_owned() }
    }

    async fn fill(&self, answer: Answer) -> Result<u64, Failure> {
        let failed = |error: io::Error| unwritten(&self.target, &error);
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&self.path);
        let file = file.as_mut().map_err(|error| unwritten(&self.target, error))?;
        let mut lines = answer.lines();
        let mut bytes = 0;
        while let Some(chunk) = lines.chunk().await? {
            file.write_all(&chunk).map_err(failed)?;
            bytes += chunk.len() as u64;
        }
        file.sync_all().map_err(failed)?;
        Ok(bytes)
    }

    fn adopt(self) -> io::Result<()> {
        fs::rename(&self.path, &self.target)?;
        let folder = self.target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // It has another name by then if all went well.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_back_leads_to_where_it_came_from() {
        assert_eq!(data_flag("/srv/apply/key"), "--data /srv/apply ");
        assert_eq!(data_flag("/var/lib/apply/key"), "");
        assert_eq!(data_flag("its data directory"), "");
    }
}
