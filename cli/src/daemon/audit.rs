//! Who changed what, and who was refused: one line of JSON each, in files that only root reads.
//!
//! Two files, each with the ones before it: whoever is refused without end writes over other refusals, and not over what was
//! changed. Lines go through a thread of their own, because a full or busy disk must not hold up whoever is answered; what
//! that thread cannot take is counted, and the file says how much it was. What objects hold is never in there.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use controllers::admission::Admit;
use controllers::level::Machines;
use reconciler::cache::Cache;
use reconciler::objects::{Admission, Committed, Error, Part, Refusal, Write, Writer};
use reconciler::seams::Seams;
use reconciler::server::Refused;
use reconciler::{Kind, Resource};
use schemas::kinds::Lease;
use serde::Serialize;
use serde_json::Value;

use super::rights::Rights;

/// Of one file; with the ones before it there are [`FILES`] of them.
const BYTES: u64 = 16 << 20;
const FILES: usize = 4;
/// Lines on their way to a file.
const WAITING: usize = 8_192;
/// Of whatever is partly what a peer made up.
const CHARS: usize = 500;
/// How long the end of applyd waits for the last lines.
const PATIENCE: Duration = Duration::from_secs(2);

/// The audit log of a manager. Clones share it.
#[derive(Clone, Debug)]
pub struct Audit {
    writes: Journal,
    refusals: Journal,
    seams: Seams,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WriteLine<'a> {
    time: String,
    identity: &'a str,
    /// The field manager: a controller, or the tool of a person.
    by: &'a str,
    verb: &'static str,
    kind: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    namespace: &'a str,
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    subresource: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_version: Option<u64>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    message: &'a str,
}

#[derive(Serialize)]
struct RefusalLine<'a> {
    time: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    identity: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<SocketAddr>,
    #[serde(skip_serializing_if = "str::is_empty")]
    method: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    path: &'a str,
    outcome: &'static str,
    reason: &'a str,
}

impl Audit {
    /// Goes on with the files in `folder`.
    ///
    /// # Errors
    /// The folder or the files in it cannot be made.
    pub fn open(folder: &Path, seams: &Seams) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let journal = |name: &str| Journal::open(&folder.join(name), BYTES);
        Ok(Self { writes: journal("writes.jsonl")?, refusals: journal("refusals.jsonl")?, seams: seams.clone() })
    }

    /// A request that was refused.
    pub fn refused(&self, refused: &Refused<'_>) {
        let (identity, address) = refused.peer.map_or(("", None), |peer| (&*peer.identity, peer.address));
        self.refusals.say(&RefusalLine {
            time: self.now(),
            identity,
            address,
            method: refused.method.as_str(),
            path: beginning(refused.path),
            outcome: "refused",
            reason: beginning(refused.reason),
        });
    }

    /// Somebody who never came so far as to ask.
    pub fn turned_away(&self, address: SocketAddr, reason: &str) {
        let (time, reason, address) = (self.now(), beginning(reason), Some(address));
        let (identity, method, path, outcome) = ("", "", "", "refused");
        self.refusals.say(&RefusalLine { time, identity, address, method, path, outcome, reason });
    }

    /// All that was said so far is in the files, unless the disk takes too long.
    pub fn flush(&self) {
        self.writes.flush();
        self.refusals.flush();
    }

    fn now(&self) -> String {
        self.seams.now().to_string()
    }
}

/// The admission of applyd's objects, which is audited.
#[derive(Debug)]
pub struct Audited {
    audit: Audit,
    machines: Machines,
    rights: Arc<OnceLock<Rights>>,
}

impl Audited {
    /// For as long as applyd alone writes.
    pub fn new(audit: Audit) -> Self {
        Self { audit, machines: Machines::default(), rights: Arc::default() }
    }

    /// Before anybody else writes: asks the machines what they run, and what people may.
    pub fn follow(&self, cache: &Cache, rights: &Rights) {
        self.machines.follow(cache.clone());
        let _ = self.rights.set(rights.clone());
    }
}

impl Admission for Audited {
    fn review(
        &self,
        writer: &Writer,
        kind: &Kind,
        current: Option<&Value>,
        desired: Option<&mut Value>,
    ) -> Result<(), Refusal> {
        self.machines.review(writer, kind, current, desired.as_deref())?;
        if let (Some(rights), Some(desired)) = (self.rights.get(), desired.as_deref()) {
            rights.may_take(&writer.identity, kind, current, desired).map_err(Refusal::Forbidden)?;
        }
        Admit.review(writer, kind, current, desired)
    }

    fn record(&self, writer: &Writer, writes: &[Write], result: Result<&Committed, &Error>) {
        let (outcome, reason, version) = match result {
            Ok(committed) => ("done", String::new(), Some(committed.resource_version.0)),
            Err(Error::UnknownOutcome { .. }) => ("unknown", "the store did not say".to_owned(), None),
            Err(error) => (if is_refusal(error) { "refused" } else { "failed" }, reason(error), None),
        };
        let time = self.audit.now();
        for (place, write) in writes.iter().enumerate() {
            let outcome_of_it = result.ok().and_then(|committed| committed.outcomes.get(place));
            let Some((verb, kind, namespace, name, subresource)) = said(write) else { continue };
            // A Lease is written again and again by whoever holds it: that would be most of all lines.
            let is_renewal = outcome == "done" && verb == "update" && kind == Lease::kind();
            if is_renewal || outcome_of_it.is_some_and(|outcome| !outcome.changed) {
                continue;
            }
            self.audit.writes.say(&WriteLine {
                time: time.clone(),
                identity: beginning(&writer.identity),
                by: beginning(&writer.manager),
                verb,
                kind: kind.qualified(),
                namespace: beginning(namespace),
                name: beginning(name),
                subresource,
                resource_version: version,
                outcome,
                reason: reason.clone(),
                message: beginning(&writer.message),
            });
        }
    }
}

/// Verb, kind, namespace, name and subresource. `None`: it only looks.
fn said(write: &Write) -> Option<(&'static str, &Kind, &str, &str, &'static str)> {
    match write {
        Write::Create { kind, object } => {
            let metadata = &object["metadata"];
            let text = |field: &str| metadata[field].as_str().unwrap_or_default();
            Some(("create", kind, text("namespace"), text("name"), ""))
        }
        Write::Update { kind, reference, part, .. } => {
            let subresource = if *part == Part::Status { "status" } else { "" };
            Some(("update", kind, &reference.namespace, &reference.name, subresource))
        }
        Write::Delete { kind, reference, .. } => Some(("delete", kind, &reference.namespace, &reference.name, "")),
        Write::Check { .. } => None,
    }
}

fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::Forbidden { .. } | Error::Invalid { .. } | Error::Fenced)
}

/// Of what is invalid the places, and not what stands there.
fn reason(error: &Error) -> String {
    match error {
        Error::Invalid { faults, .. } => {
            let paths: Vec<&str> = faults.iter().map(|fault| &*fault.path).collect();
            beginning(&format!("invalid: {}", paths.join(", "))).to_owned()
        }
        error => beginning(&error.to_string()).to_owned(),
    }
}

fn beginning(text: &str) -> &str {
    text.char_indices().nth(CHARS).map_or(text, |(end, _)| &text[..end])
}

/// A file that lines are written to, and is begun anew when it is full.
#[derive(Clone, Debug)]
struct Journal {
    lines: SyncSender<Order>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Order {
    Line(Vec<u8>),
    /// Answered when all before it is written.
    Flush(SyncSender<()>),
}

impl Journal {
    fn open(path: &Path, bytes: u64) -> io::Result<Self> {
        let mut pages = Pages::open(path, bytes)?;
        let (lines, orders) = sync_channel(WAITING);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = lost.clone();
        // Ends with the last of the senders.
        thread::Builder::new().name("audit".into()).spawn(move || pages.follow(&orders, &counted))?;
        Ok(Self { lines, lost })
    }

    fn say(&self, line: &impl Serialize) {
        let Ok(mut bytes) = serde_json::to_vec(line) else { return };
        bytes.push(b'\n');
        if self.lines.try_send(Order::Line(bytes)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {
        let (done, wait) = sync_channel(1);
        // Where there is no room for it the disk has not kept up for long, and will not now.
        if self.lines.try_send(Order::Flush(done)).is_ok() {
            // Whoever waits no more leaves it to the disk.
            let _ = wait.recv_timeout(PATIENCE);
        }
    }
}

struct Pages {
    path: PathBuf,
    file: File,
    size: u64,
    bytes: u64,
    failing: bool,
}

impl Pages {
    fn open(path: &Path, bytes: u64) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, size, bytes, failing: false })
    }

    fn follow(&mut self, orders: &Receiver<Order>, lost: &AtomicU64) {
        for order in orders {
            match order {
                Order::Line(line) => self.take(&line, lost),
                Order::Flush(done) => _ = done.send(()),
            }
        }
    }

    fn take(&mut self, line: &[u8], lost: &AtomicU64) {
        let missing = lost.swap(0, Ordering::Relaxed);
        let mut text = match missing {
            0 => Vec::new(),
            _ => format!("{{\"lost\":{missing}}}\n").into_bytes(),
        };
        text.extend_from_slice(line);
        match self.write(&text) {
            Ok(()) => self.failing = false,
            Err(error) => {
                lost.fetch_add(missing + 1, Ordering::Relaxed);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(path = %self.path.display(), %error, "the audit log cannot be written");
                }
            }
        }
    }

    /// Whole lines: half a line of a disk that filled up is taken back.
    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        let length = u64::try_from(text.len()).unwrap_or(u64::MAX);
        if self.size > 0 && self.size + length > self.bytes {
            self.turn()?;
        }
        if let Err(error) = self.file.write_all(text) {
            self.file.set_len(self.size)?;
            return Err(error);
        }
        self.size += length;
        Ok(())
    }

    fn turn(&mut self) -> io::Result<()> {
        let older = |age: usize| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{age}"));
            PathBuf::from(name)
        };
        // It may be gone already: taken by somebody else, or by a turn whose end failed.
        if self.path.try_exists()? {
            for age in (1..FILES - 1).rev() {
                match fs::rename(older(age), older(age + 1)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            fs::rename(&self.path, older(1))?;
        }
        *self = Self { failing: self.failing, ..Self::open(&self.path, self.bytes)? };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use reconciler::objects::{Outcome, Patch, Precondition};
    use reconciler::server::Peer;
    use reconciler::{ObjectRef, ResourceVersion};
    use schemas::kinds::Service;
    use serde_json::json;

    use super::*;

    fn lines(path: &Path) -> Vec<Value> {
        fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn update(kind: &Kind, name: &str) -> Write {
        Write::Update {
            kind: Arc::new(kind.clone()),
            reference: ObjectRef::new("shop", name),
            part: Part::Main,
            patch: Patch::Merge(json!({"spec": {"env": {"PASSWORD": "planted"}}})),
            precondition: Precondition::default(),
        }
    }

    /// A folder of one test, gone with it.
    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str) -> Self {
            let path = std::env::temp_dir().join(format!("apply-audit-{test}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn each_write_and_each_refusal_is_a_line_without_what_objects_hold() {
        let dir = Folder::new("lines");
        let audit = Audit::open(&dir.0.join("audit"), &Seams::real()).unwrap();
        let audited = Audited::new(audit.clone());
        let ann = Writer::new("user:ann", "applyctl").because("more of it");
        let outcome = |changed| Outcome { object: None, changed };
        let committed =
            Committed { resource_version: ResourceVersion(7), outcomes: vec![outcome(true), outcome(false)] };
        let writes = [update(Service::kind(), "web"), update(Service::kind(), "same")];
        audited.record(&ann, &writes, Ok(&committed));
        audited.record(&ann, &[update(Lease::kind(), "held")], Ok(&committed));
        let faults = vec![reconciler::api::Fault::new("spec.env", "planted is bad")];
        let invalid = Error::Invalid { kind: "Service".into(), reference: ObjectRef::new("shop", "web"), faults };
        audited.record(&ann, &[update(Service::kind(), "web")], Err(&invalid));
        audited.record(&ann, &[update(Service::kind(), "web")], Err(&Error::UnknownOutcome { detail: "gone".into() }));
        let peer = Peer::new("node:n2").at("192.0.2.2:4000".parse().unwrap());
        let path = "/apis/apply/v1/secrets";
        audit.refused(&Refused { peer: Some(&peer), method: &axum::http::Method::GET, path, reason: "a worker" });
        audit.turned_away("192.0.2.3:4000".parse().unwrap(), &"x".repeat(9_000));
        audit.flush();

        let written = lines(&dir.0.join("audit/writes.jsonl"));
        let fields = |line: &Value| (line["outcome"].clone(), line["resourceVersion"].clone(), line["reason"].clone());
        assert_eq!(
            written.iter().map(fields).collect::<Vec<_>>(),
            [
                (json!("done"), json!(7), Value::Null),
                (json!("refused"), Value::Null, json!("invalid: spec.env")),
                (json!("unknown"), Value::Null, json!("the store did not say")),
            ]
        );
        for line in &written {
            let said = ["identity", "by", "verb", "kind", "namespace", "name", "message"].map(|field| &line[field]);
            assert_eq!(said, ["user:ann", "applyctl", "update", "services.apply", "shop", "web", "more of it"]);
            assert!(!line.to_string().contains("planted"), "{line}");
        }
        let refused = lines(&dir.0.join("audit/refusals.jsonl"));
        assert_eq!(refused[0]["identity"], "node:n2");
        assert_eq!(refused[0]["address"], "192.0.2.2:4000");
        assert_eq!((&refused[0]["path"], &refused[0]["reason"]), (&json!(path), &json!("a worker")));
        assert_eq!(refused[1]["reason"].as_str().unwrap().len(), CHARS);
        let mode = |path: &Path| std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).unwrap().permissions());
        assert_eq!(mode(&dir.0.join("audit")) & 0o777, 0o700);
        assert_eq!(mode(&dir.0.join("audit/writes.jsonl")) & 0o777, 0o600);
    }

    #[test]
    fn a_full_file_makes_room_and_the_oldest_goes() {
        let dir = Folder::new("full");
        let path = dir.0.join("x.jsonl");
        let mut pages = Pages::open(&path, 100).unwrap();
        for number in 0..60 {
            pages.take(format!("{{\"number\":{number:>20}}}\n").as_bytes(), &AtomicU64::new(0));
        }
        let kept: Vec<Value> = ["x.jsonl.3", "x.jsonl.2", "x.jsonl.1", "x.jsonl"]
            .iter()
            .flat_map(|name| lines(&dir.0.join(name)))
            .map(|line| line["number"].clone())
            .collect();
        assert_eq!(kept, (48..60).map(Value::from).collect::<Vec<_>>());
        assert_eq!(fs::read_dir(&dir.0).unwrap().count(), FILES);
        // Somebody takes it away: the next turn begins another, and what is older stays.
        fs::remove_file(&path).unwrap();
        for number in 60..64 {
            pages.take(format!("{{\"number\":{number:>20}}}\n").as_bytes(), &AtomicU64::new(0));
        }
        assert!(path.exists() && dir.0.join("x.jsonl.3").exists());
        // What is there goes on.
        assert_eq!(Pages::open(&path, 100).unwrap().size, fs::metadata(&path).unwrap().len());
    }

    #[test]
    fn what_could_not_be_written_is_counted_and_said_when_it_can_again() {
        let dir = Folder::new("lost");
        let path = dir.0.join("x.jsonl");
        let mut pages = Pages::open(&path, 1_000).unwrap();
        let good = std::mem::replace(&mut pages.file, File::open(&path).unwrap());
        let lost = AtomicU64::new(3);
        pages.take(b"{\"a\":1}\n", &lost);
        assert_eq!(lost.load(Ordering::Relaxed), 4);
        pages.file = good;
        pages.take(b"{\"a\":2}\n", &lost);
        assert_eq!(lines(&path), [json!({"lost": 4}), json!({"a": 2})]);
        assert_eq!(lost.load(Ordering::Relaxed), 0);
    }
}
