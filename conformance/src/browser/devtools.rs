//! Chromium's DevTools protocol over `--remote-debugging-pipe`: JSON messages that end in a zero byte, commands into the
//! browser's descriptor 3, answers and events out of 4.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine;
use serde_json::{Value, json};

/// A running browser. Dropping it ends it and removes its profile.
pub struct Browser {
    process: Child,
    commands: Option<ChildStdin>,
    messages: Receiver<Value>,
    profile: PathBuf,
    last_id: u64,
}

/// A tab.
pub struct Page {
    session: String,
}

impl Browser {
    /// Starts Chromium with an empty profile below `scratch`.
    pub fn start(scratch: &Path, netns: Option<&Path>) -> Result<Browser> {
        let profile = scratch.join(format!("chromium-{}", std::process::id()));
        fs::create_dir_all(&profile).with_context(|| format!("could not create {}", profile.display()))?;
        let log = fs::File::create(scratch.join("chromium.log")).context("could not create the browser's log")?;

        let mut command = match netns {
            Some(path) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", path.display())).arg("sh");
                command
            }
            None => Command::new("sh"),
        };
        // The shell puts our two pipes where Chromium looks for them.
        command.args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >&2", "sh", "chromium"]).args(FLAGS);
        command.arg(format!("--user-data-dir={}", profile.display())).arg("about:blank");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).process_group(0);
        let mut process = command.spawn().context("could not start chromium")?;

        let commands = process.stdin.take();
        let mut output = BufReader::new(process.stdout.take().expect("its output is piped"));
        // Bounded: a page that talks more than is listened to waits, like a writer to any pipe.
        let (sender, messages) = sync_channel(1024);
        thread::spawn(move || {
            let mut bytes = Vec::new();
            while output.read_until(0, &mut bytes).is_ok_and(|count| count > 0) {
                bytes.pop();
                let message = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
                if sender.send(message).is_err() {
                    break;
                }
                bytes.clear();
            }
        });
        let mut browser = Browser { process, commands, messages, profile, last_id: 0 };
        browser
            .command(None, "Browser.getVersion", json!({}), START_MAX)
            .with_context(|| format!("chromium did not start; see {}", scratch.join("chromium.log").display()))?;
        Ok(browser)
    }

    /// Opens a tab and begins to load a page.
    pub fn open(&mut self, url: &str) -> Result<Page> {
        let window = json!({ "url": url, "width": 1000, "height": 700, "newWindow": true });
        let target = self.command(None, "Target.createTarget", window, COMMAND_MAX)?;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = self.command(None, "Target.attachToTarget", attach, COMMAND_MAX)?;
        let session = attached["sessionId"].as_str().context("chromium named no session")?.to_owned();
        Ok(Page { session })
    }

    /// The value of an expression once it is neither false, null nor empty. Faults count as "not yet": pages come and go.
    pub fn wait(&mut self, page: &Page, expression: &str, patience: Duration) -> Result<Value> {
        let deadline = Deadline::after(patience);
        loop {
            let looked = self.evaluate(page, expression);
            match looked {
                Ok(value) if ![json!(false), json!(null), json!("")].contains(&value) => return Ok(value),
                _ if deadline.left().is_zero() => {
                    let text = self.evaluate(page, "location.href + ': ' + document.body.innerText");
                    let fault = looked.err().map(|fault| format!(" ({fault:#})")).unwrap_or_default();
                    bail!("{expression} did not come true within {patience:?}{fault}; the page: {text:?}");
                }
                _ => self.pause(LOOK_EVERY)?,
            }
        }
    }

    /// Presses the mouse button in the middle of an element.
    pub fn click(&mut self, page: &Page, selector: &str) -> Result<()> {
        let place = format!(
            "(() => {{
                const element = document.querySelector({selector:?});
                element.scrollIntoView({{block: 'center'}});
                const box = element.getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"
        );
        let place = self.evaluate(page, &place).with_context(|| format!("there is no {selector} to click"))?;
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({ "type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1 });
            self.command(Some(page), "Input.dispatchMouseEvent", event, COMMAND_MAX)?;
        }
        Ok(())
    }

    /// Writes what is to be seen of a page as PNG.
    pub fn picture(&mut self, page: &Page, path: &Path) -> Result<()> {
        let shot = self.command(Some(page), "Page.captureScreenshot", json!({ "format": "png" }), COMMAND_MAX)?;
        let png = base64::engine::general_purpose::STANDARD.decode(shot["data"].as_str().unwrap_or_default())?;
        fs::write(path, png).with_context(|| format!("could not write {}", path.display()))
    }

    fn evaluate(&mut self, page: &Page, expression: &str) -> Result<Value> {
        // An element would come back as an empty object: it is wrapped into whether it is there.
        let wrapped = format!("(value => value instanceof Node ? true : value)({expression})");
        let ask = json!({ "expression": wrapped, "returnByValue": true });
        let answer = self.command(Some(page), "Runtime.evaluate", ask, COMMAND_MAX)?;
        match answer.get("exceptionDetails") {
            None => Ok(answer["result"]["value"].clone()),
            Some(fault) => Err(anyhow!("{}", fault["exception"]["description"])),
        }
    }

    fn command(&mut self, page: Option<&Page>, method: &str, params: Value, patience: Duration) -> Result<Value> {
        self.last_id += 1;
        let mut message = json!({ "id": self.last_id, "method": method, "params": params });
        if let Some(page) = page {
            message["sessionId"] = json!(page.session);
        }
        let mut bytes = serde_json::to_vec(&message)?;
        bytes.push(0);
        let commands = self.commands.as_mut().expect("open until the browser is dropped");
        commands.write_all(&bytes).context("chromium is gone")?;

        let deadline = Deadline::after(patience);
        loop {
            match self.messages.recv_timeout(deadline.left()) {
                Ok(message) if message["id"] == self.last_id => match message.get("error") {
                    None => return Ok(message["result"].clone()),
                    Some(fault) => bail!("{method}: {}", fault["message"]),
                },
                // An event, or an answer that came too late for who asked.
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => bail!("chromium did not answer {method} within {patience:?}"),
                Err(RecvTimeoutError::Disconnected) => bail!("chromium is gone"),
            }
        }
    }

    /// Waits, reading on meanwhile.
    fn pause(&mut self, time: Duration) -> Result<()> {
        let deadline = Deadline::after(time);
        loop {
            match self.messages.recv_timeout(deadline.left()) {
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => bail!("chromium is gone"),
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.command(None, "Browser.close", json!({}), COMMAND_MAX);
        self.commands = None;
        // Whatever of its processes is left: they share its group, which is theirs alone.
        let group = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.process.wait();
        // Its sockets have a folder of their own in /tmp, which only a link in the profile tells.
        if let Ok(socket) = fs::read_link(self.profile.join("SingletonSocket"))
            && let Some(folder) = socket.parent().filter(|folder| folder.starts_with("/tmp/"))
        {
            let _ = fs::remove_dir_all(folder);
        }
        let _ = fs::remove_dir_all(&self.profile);
    }
}

/// A moment until which is waited.
struct Deadline(Instant);

#[expect(clippy::disallowed_methods, reason = "a browser is outside of every seam")]
impl Deadline {
    fn after(time: Duration) -> Deadline {
        Deadline(Instant::now() + time)
    }

    fn left(&self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

/// As root in a container-like machine: no sandbox, no GPU, no little /dev/shm; and no talk with anybody but the page.
const FLAGS: &[&str] = &[
    "--remote-debugging-pipe",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--mute-audio",
];
const START_MAX: Duration = Duration::from_secs(60);
const COMMAND_MAX: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(50);
