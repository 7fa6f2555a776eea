//! Where one installation of apply keeps its things and what it calls them: the command lines that start it, and what is
//! asked of it once it runs. The demo and the machines of tests are two of them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use controllers::node::surroundings::Paths;
use serde_json::Value;

use crate::images::workspace;

/// One installation. Paths are those that its own processes see.
#[derive(Clone, Debug)]
pub struct Installation {
    /// What outlives a boot: containerd's root, applyd's data, configuration, logs of both.
    pub disk: PathBuf,
    /// What does not, as `/run`.
    pub run: PathBuf,
    /// The control group of its containers, a name below the root.
    pub group: String,
    /// What its links begin with.
    pub links: String,
    /// Its nftables table.
    pub table: String,
    /// The name of its node.
    pub node: String,
    /// The OCI runtime; `None`: runc.
    pub runtime: Option<String>,
    /// Where containerd and its shim are; `None`: those of the machine.
    pub containerd: Option<PathBuf>,
    /// What applyd is told besides.
    pub besides: Vec<String>,
}

impl Installation {
    pub fn containerd_socket(&self) -> PathBuf {
        self.run.join("containerd.sock")
    }

    pub fn socket(&self) -> PathBuf {
        self.run.join("apply.sock")
    }

    /// Where applyd keeps what.
    pub fn paths(&self) -> Paths {
        Paths { data: self.disk.join("apply"), run: self.run.join("apply") }
    }

    /// Where the OCI runtime keeps its state.
    pub fn runtime_root(&self) -> PathBuf {
        self.run.join("runc")
    }

    pub fn containerd_state(&self) -> PathBuf {
        self.run.join("containerd")
    }

    /// containerd, which makes its folders itself.
    pub fn containerd(&self) -> Result<Vec<String>> {
        let config = format!(
            "version = 2\nroot = '{root}'\nstate = '{state}'\n\
             disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.snapshotter.v1.aufs', \
             'io.containerd.snapshotter.v1.btrfs', 'io.containerd.snapshotter.v1.devmapper', \
             'io.containerd.snapshotter.v1.zfs', 'io.containerd.internal.v1.opt']\n\
             [grpc]\naddress = '{socket}'\n[ttrpc]\naddress = '{socket}.ttrpc'\n",
            root = self.disk.join("containerd").display(),
            state = self.containerd_state().display(),
            socket = self.containerd_socket().display(),
        );
        fs::create_dir_all(&self.disk)?;
        let path = self.disk.join("containerd.toml");
        fs::write(&path, config).with_context(|| format!("could not write {}", path.display()))?;
        let config = ["--config".to_owned(), path.display().to_string()];
        let program = match &self.containerd {
            None => vec!["containerd".to_owned()],
            // It looks for its shim by this path.
            Some(folder) => {
                let path =
                    format!("PATH={}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", folder.display());
                vec!["env".to_owned(), path, folder.join("containerd").display().to_string()]
            }
        };
        Ok([program, config.to_vec()].concat())
    }

    pub fn applyd(&self) -> Result<Vec<String>> {
        let path = |path: PathBuf| path.display().to_string();
        let mut words = vec![path(program("applyd")?)];
        let flags = [
            ("--data", path(self.disk.join("apply"))),
            ("--run", path(self.run.join("apply"))),
            ("--socket", path(self.socket())),
            ("--containerd", path(self.containerd_socket())),
            ("--containerd-state", path(self.containerd_state())),
            ("--runtime-root", path(self.runtime_root())),
            ("--cgroup", format!("/{}", self.group)),
            ("--links", self.links.clone()),
            ("--table", self.table.clone()),
            ("--node", self.node.clone()),
        ];
        words.extend(flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
        words.extend(self.besides.iter().cloned());
        words.extend(self.runtime.iter().flat_map(|runtime| ["--runtime".to_owned(), runtime.clone()]));
        Ok(words)
    }

    /// Where the output of one of its programs goes.
    pub fn log(&self, program: &str) -> Result<File> {
        fs::create_dir_all(&self.disk)?;
        let path = self.disk.join(format!("{program}.log"));
        File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("could not open {}", path.display()))
    }

    /// The end of what one of its programs said, for a failure's message.
    pub fn log_end(&self, program: &str) -> String {
        let text = fs::read(self.disk.join(format!("{program}.log"))).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        format!("the end of {program}'s log:\n{}", lines[lines.len().saturating_sub(25)..].join("\n"))
    }
}

/// One of the project's programs, of the same build as this one.
pub fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("could not find this program's own file")?;
    let mut folder = own.parent().context("a program lies in a folder")?;
    if folder.ends_with("deps") {
        folder = folder.parent().context("deps lies in a folder")?;
    }
    let found = folder.join(name);
    ensure!(found.is_file(), "{} is not there: cargo build -p cli -p conformance --bins", found.display());
    Ok(found)
}

/// The applyd of the version before this one: the same code, which knows no field that came with this version.
pub fn previous() -> Result<PathBuf> {
    let found = workspace().join("target/previous/applyd");
    ensure!(found.is_file(), "{} is not there: make previous", found.display());
    Ok(found)
}

/// Somebody who talks to an applyd, through its socket as seen from here.
#[derive(Clone, Debug)]
pub struct Person {
    pub socket: PathBuf,
}

impl Person {
    pub fn applyctl(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(program("applyctl")?);
        command.env("APPLY_HOST", format!("unix://{}", self.socket.display())).args(args).stdin(Stdio::null());
        Ok(command)
    }

    /// Runs applyctl and hands out what it printed; a failure says what it said.
    pub fn ctl(&self, args: &[&str]) -> Result<String> {
        let Output { status, stdout, stderr } = self.applyctl(args)?.output()?;
        let said = String::from_utf8_lossy(&stderr);
        ensure!(status.success(), "applyctl {} ended with {status}: {said}", args.join(" "));
        Ok(String::from_utf8_lossy(&stdout).into_owned())
    }

    /// What `get … -o json` gives.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.ctl(&[args, &["-o", "json"]].concat())?)?)
    }

    /// The objects of a kind.
    pub fn list(&self, kind: &str) -> Result<Vec<Value>> {
        Ok(self.json(&["get", kind])?["items"].as_array().cloned().unwrap_or_default())
    }

    /// The nodes of a service's tasks that are said to run, and shall, in order.
    pub fn nodes_of(&self, service: &str) -> Result<Vec<String>> {
        let tasks = self.list("task")?;
        let runs = |task: &&Value| {
            task["spec"]["service"] == service
                && task["spec"]["desired"] != "Stopped"
                && task["status"]["state"] == "Running"
        };
        let node = |task: &Value| task["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
        let mut nodes: Vec<String> = tasks.iter().filter(runs).map(node).collect();
        nodes.sort();
        Ok(nodes)
    }

    /// Whether applyd answers; one that is in no cluster yet is told to found one.
    pub fn has_cluster(&self) -> Result<bool> {
        let Ok(version) = self.json(&["version"]) else { return Ok(false) };
        if version["applyd"]["cluster"].is_null() {
            self.ctl(&["init", "--title", "brave-otter"])?;
        }
        Ok(true)
    }

    /// Whether the API answers and the node is ready.
    pub fn is_ready(&self, node: &str) -> bool {
        let ready = |node: Value| {
            let node = node["items"].get(0).cloned().unwrap_or(node);
            node["status"]["state"] == "Ready"
        };
        self.json(&["get", "node", node]).is_ok_and(ready)
    }

    /// Has the images of an OCI or docker archive.
    pub fn load(&self, archive: &Path) -> Result<()> {
        self.ctl(&["image", "import", &archive.to_string_lossy()]).map(drop)
    }
}

/// `curl`, perhaps started in another place: the body of an answer that is no failure.
pub fn fetch(mut curl: Command, args: &[&str]) -> Result<String> {
    let output = curl.args(["-sSf", "-m", "60"]).args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|error| io::Error::new(error.kind(), format!("curl: {error}")))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
