//! One test's containerd, the runtime under test on it, and a look from outside.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use containerd_client::services::v1::snapshots::ListSnapshotsRequest;
use containerd_client::services::v1::{ListContainersRequest, ListRequest, ListTasksRequest};
use controllers::node::containerd::runtime::{Exec, ExecBounds, ExecEnd};
use controllers::node::containerd::{
    Config, Connection, Container, ContainerId, ContainerSpec, Containerd, DEFAULT_NAMESPACE, Error, ImageRoot,
    Runtime, State,
};
use controllers::node::spec::Signal;

use crate::containerd::{Options, PrivateContainerd};
use crate::image;

pub struct Scene {
    pub containerd: PrivateContainerd,
    pub runtime: Containerd,
    pub image: ImageRoot,
    config: Config,
}

/// containerd 1.6 answers a creation that follows on one that was cut off in its middle only when the call's own deadline
/// of a minute has passed, about once in a hundred.
const STUCK: Duration = Duration::from_secs(150);
/// For what takes milliseconds, on a machine that others use too.
const PATIENCE: Duration = Duration::from_secs(20);

impl Scene {
    pub async fn start(name: &str) -> Scene {
        Self::start_with(name, "runc").await
    }

    pub async fn start_with(name: &str, oci_runtime: &str) -> Scene {
        let options = Options { cgroup_v1_only: oci_runtime == "crun", ..Options::default() };
        let containerd = PrivateContainerd::start_with(name, options).unwrap();
        let config = Config {
            oci_runtime: Some(oci_runtime.to_owned()),
            oci_runtime_root: containerd.runtime_root(),
            state_dir: containerd.state_dir(),
            cgroup_parent: containerd.cgroup_parent(),
            exec_dir: containerd.directory().join("exec"),
            ..Config::default()
        };
        let connection = Connection::new(containerd.socket(), DEFAULT_NAMESPACE).unwrap();
        let image = image::unpack(&connection).await;
        let runtime = Containerd::new(connection, config.clone()).unwrap();
        Scene { containerd, runtime, image, config }
    }

    /// A runtime that knows nothing, as after a crash of the process.
    pub fn successor(&self) -> Containerd {
        let connection = Connection::new(self.containerd.socket(), DEFAULT_NAMESPACE).unwrap();
        Containerd::new(connection, self.config.clone()).unwrap()
    }

    /// A container that runs `script` in a shell.
    pub fn spec(&self, name: &str, script: &str) -> ContainerSpec {
        let mut spec = ContainerSpec::new(id(name), self.image.clone());
        spec.process.command = Some(["sh", "-c", script].map(str::to_owned).to_vec());
        spec.labels.insert("apply/task".to_owned(), name.to_owned());
        spec
    }

    pub async fn run(&self, spec: &ContainerSpec) {
        self.runtime.create(spec).await.unwrap();
        self.runtime.start(&spec.id).await.unwrap();
    }

    /// Runs a script to its end: its exit code and all that it said.
    pub async fn output(&self, mut spec: ContainerSpec) -> (u32, String) {
        let path = self.fifo(spec.id.as_str());
        spec.stdio.stdout = Some(path.clone());
        // What `keep` does: both ends, so that nothing is lost before the shim has its own.
        let mut pipe = fs::File::options().read(true).write(true).custom_flags(0o4000).open(&path).unwrap();
        self.run(&spec).await;
        let code = self.exit_code(&spec.id).await;
        let mut said = Vec::new();
        // The shim has copied everything once the task is deleted.
        self.runtime.remove(&spec.id).await.unwrap();
        _ = std::io::Read::read_to_end(&mut pipe, &mut said);
        (code, String::from_utf8(said).unwrap())
    }

    pub fn fifo(&self, name: &str) -> PathBuf {
        let path = self.containerd.directory().join(format!("{name}.fifo"));
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        path
    }

    pub async fn state(&self, id: &ContainerId) -> Option<State> {
        self.runtime.inspect(id).await.unwrap().map(|container| container.state)
    }

    pub async fn listed(&self) -> Vec<Container> {
        self.runtime.list().await.unwrap()
    }

    pub async fn exit_code(&self, id: &ContainerId) -> u32 {
        let stopped = self.until(id, "stopped", |state| matches!(state, Some(State::Stopped { .. }))).await;
        let Some(State::Stopped { exit_code, .. }) = stopped else { unreachable!("checked just now") };
        exit_code
    }

    /// Waits until the first process of a container handles SIGTERM: before, the kernel keeps the signal from it.
    pub async fn answers_to_term(&self, pid: u32) {
        let deadline = Instant::now() + PATIENCE;
        let catches = |status: &str| {
            let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
            let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
            Some(mask & 1 << (Signal::TERM.number() - 1) != 0)
        };
        while std::fs::read_to_string(format!("/proc/{pid}/status")).ok().and_then(|status| catches(&status))
            != Some(true)
        {
            assert!(Instant::now() < deadline, "process {pid} does not catch SIGTERM");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn until(&self, id: &ContainerId, what: &str, wanted: impl Fn(&Option<State>) -> bool) -> Option<State> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let state = self.runtime.inspect(id).await.map(|found| found.map(|container| container.state));
            match state {
                Ok(state) if wanted(&state) => return state,
                seen if Instant::now() > deadline => panic!("{id} is not {what}: {seen:?}\n{}", self.containerd.log()),
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    /// A program in a container: its exit code (`None`: timed out) and what it said.
    pub async fn exec(&self, id: &ContainerId, script: &str) -> (Option<u32>, String) {
        self.exec_as(id, script, None, Duration::from_secs(20)).await
    }

    pub async fn exec_as(
        &self,
        id: &ContainerId,
        script: &str,
        user: Option<&str>,
        deadline: Duration,
    ) -> (Option<u32>, String) {
        let args = ["sh", "-c", script].map(str::to_owned).to_vec();
        let exec = Exec { args, user: user.map(str::to_owned), ..Exec::default() };
        let bounds = ExecBounds { deadline, output_bytes_max: 4096 };
        let outcome = self.runtime.exec(id, &exec, bounds).await.unwrap();
        let code = match outcome.end {
            ExecEnd::Exited { code } => Some(code),
            ExecEnd::TimedOut => None,
        };
        (code, String::from_utf8_lossy(&outcome.output).trim_end().to_owned())
    }

    /// The command lines of a container's processes, as the kernel shows them. One that is dead and only waited for has none,
    /// and does not run.
    pub fn processes(&self, id: &ContainerId) -> Vec<String> {
        let group = format!("/sys/fs/cgroup/pids{}/{id}/cgroup.procs", self.config.cgroup_parent);
        let unified = format!("/sys/fs/cgroup{}/{id}/cgroup.procs", self.config.cgroup_parent);
        let listed = fs::read_to_string(group).or_else(|_| fs::read_to_string(unified)).unwrap_or_default();
        let lines = listed.lines().filter_map(|pid| fs::read(format!("/proc/{pid}/cmdline")).ok());
        let words = |line: Vec<u8>| String::from_utf8_lossy(&line).replace('\0', " ").trim_end().to_owned();
        // The kernel's order is that of numbers, which begin anew when they are used up.
        let mut found: Vec<String> = lines.map(words).filter(|line| !line.is_empty()).collect();
        found.sort();
        found
    }

    /// Waits until exactly these run: a program that was just started still has another's command line, or none.
    pub async fn runs(&self, id: &ContainerId, expected: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        loop {
            let seen = self.processes(id);
            if seen == expected {
                return;
            }
            assert!(Instant::now() < deadline, "{id} runs {seen:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Nothing is left of any container: not in containerd, not in the kernel, not on the disk.
    #[track_caller]
    pub fn assert_clean(&self) -> impl Future<Output = ()> {
        let place = std::panic::Location::caller();
        async move {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let remains = self.remains().await;
                if remains.is_empty() {
                    return;
                }
                assert!(Instant::now() < deadline, "{place}: left are {remains:#?}\n{}", self.containerd.log());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    async fn remains(&self) -> Vec<String> {
        let connection = self.runtime.connection();
        let mut found = self.containerd.remains();
        let containers = connection.containers().list(ListContainersRequest::default()).await.unwrap().into_inner();
        found.extend(containers.containers.into_iter().map(|c| format!("container {}", c.id)));
        let tasks = connection.tasks().list(ListTasksRequest::default()).await.unwrap().into_inner();
        found.extend(tasks.tasks.into_iter().map(|t| format!("task {}", t.id)));
        let leases = connection.leases().list(ListRequest::default()).await.unwrap().into_inner();
        found.extend(leases.leases.into_iter().map(|l| format!("lease {}", l.id)));
        let request = ListSnapshotsRequest { snapshotter: "overlayfs".to_owned(), filters: vec![] };
        let mut snapshots = connection.snapshots().list(request).await.unwrap().into_inner();
        while let Some(page) = snapshots.message().await.unwrap() {
            let ours = page.info.into_iter().filter(|info| !info.name.starts_with("sha256:"));
            found.extend(ours.map(|info| format!("snapshot {}", info.name)));
        }
        found
    }
}

pub fn id(name: &str) -> ContainerId {
    ContainerId::new(name).unwrap()
}

/// Creates a container as the tasks controller does: what stays in the way of its creation is removed. containerd 1.6
/// itself never ends a shim that it has lost sight of.
pub async fn create(runtime: &Containerd, spec: &ContainerSpec) {
    const BUSY_MAX: Duration = Duration::from_secs(2);
    let begun = Instant::now();
    let mut busy = None;
    loop {
        match runtime.create(spec).await {
            Ok(()) => return,
            Err(Error::Busy { .. }) => {
                if busy.get_or_insert_with(Instant::now).elapsed() > BUSY_MAX {
                    insist("remove", || runtime.remove(&spec.id)).await;
                    busy = None;
                }
            }
            Err(Error::Unavailable { .. }) if begun.elapsed() < STUCK => {}
            Err(error) => panic!("create: {error:?}"),
        }
        assert!(begun.elapsed() < STUCK, "{} is never made", spec.id);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Calls again while another call is at it or containerd is away, as a queue would.
pub async fn insist<T, F: Future<Output = Result<T, Error>>>(what: &str, mut call: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + STUCK;
    loop {
        match call().await {
            Ok(done) => return done,
            Err(Error::Busy { .. } | Error::Unavailable { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(error) => panic!("{what}: {error:?}"),
        }
    }
}
