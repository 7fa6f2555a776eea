//! A machine with tasks and a client outside it, all of them network namespaces of one test.
//!
//! Everything hangs on namespaces that are mounted below one directory: when these go, links, rules and routes go with
//! them. A directory says by its name which process made it, so that the next run finds what a killed one left.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, BufRead, BufReader, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{self, Command},
    sync::{
        Arc, Mutex, Once,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use controllers::node::{
    links::{Attachment, KernelLinks, LinkPrefix, Links, MachineLink},
    mesh::{
        Changed, Converged, Converger, KernelMesh, LocalTask, Machine, Mesh, MeshState, Network, Protocol,
        PublishedPort,
    },
    sys::netns::{self, Netns},
};
use reconciler::seams::Seams;

pub const MACHINE: &str = "192.0.2.1";
pub const MACHINE6: &str = "2001:db8::1";
pub const OUTSIDE: &str = "192.0.2.9";
pub const OUTSIDE6: &str = "2001:db8::9";
/// The machine's overlay addresses.
pub const OVERLAY: &str = "10.128.0.1";
pub const OVERLAY6: &str = "fd0a:1::1";

/// What a client gives up after. A machine of tests may be busy.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long nothing must come before a test says that nothing comes.
pub const SILENCE: Duration = Duration::from_millis(400);

const ROOT: &str = "/run/apply-real-mesh";

pub struct Lab {
    directory: PathBuf,
    pub machine: Netns,
    pub outside: Netns,
    pub links: KernelLinks,
    pub mesh: Arc<dyn Mesh>,
    pub converger: Converger,
    pub state: MeshState,
    servers: BTreeMap<String, Server>,
    runtime: tokio::runtime::Runtime,
}

impl Lab {
    pub fn new(name: &str) -> Lab {
        static SWEPT: Once = Once::new();
        SWEPT.call_once(sweep);
        let directory = Path::new(ROOT).join(format!("{}-{name}", process::id()));
        let (machine, ()) =
            netns::ensure(&directory.join("machine"), || ()).expect("a network namespace: are you root?");
        let (outside, ()) = netns::ensure(&directory.join("outside"), || ()).unwrap();
        let far = directory.join("outside");
        ip(&machine, &format!("link add up0 type veth peer name eth0 netns {}", far.display()));
        for (netns, link, addresses) in
            [(&machine, "up0", [MACHINE, MACHINE6]), (&outside, "eth0", [OUTSIDE, OUTSIDE6])]
        {
            ip(netns, "link set lo up");
            ip(netns, &format!("addr add {}/24 dev {link}", addresses[0]));
            ip(netns, &format!("addr add {}/64 dev {link} nodad", addresses[1]));
            ip(netns, &format!("link set {link} up"));
        }
        // As many distributions have it: what comes by a link must have its way back there.
        let strict = machine.run(|| fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1"));
        strict.flatten().unwrap();
        let prefix = LinkPrefix::default();
        let again = |netns: &str| Netns::open(&directory.join(netns)).unwrap();
        let links = KernelLinks::open(directory.join("tasks"), prefix.clone(), Some(again("machine"))).unwrap();
        let mesh: Arc<dyn Mesh> = Arc::new(KernelMesh::open("apply", prefix.clone(), Some(again("machine"))).unwrap());
        let state = MeshState {
            networks: [
                network("one", "10.192.1.0/24", "fd0a:2:1::/64"),
                network("two", "10.192.2.0/24", "fd0a:2:2::/64"),
            ]
            .into(),
            nodes: [MACHINE, MACHINE6].map(ip_of).into(),
            ..MeshState::new(Machine {
                links: prefix,
                pools: ["10.128.0.0/9", "10.96.0.0/16", "fd0a::/16"].map(|it| it.parse().unwrap()).into(),
                address4: OVERLAY.parse().unwrap(),
                address6: Some(OVERLAY6.parse().unwrap()),
                machines: ["10.128.0.0/16", "fd0a:1::/32"].map(|it| it.parse().unwrap()).into(),
                tunnel: None,
            })
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let converger = Converger::new(mesh.clone(), Seams::real());
        let lab = Lab { directory, machine, outside, links, mesh, converger, state, servers: BTreeMap::new(), runtime };
        lab.ensure_machine();
        lab
    }

    pub fn ensure_machine(&self) {
        let wanted = MachineLink {
            address4: self.state.machine.address4,
            address6: self.state.machine.address6,
            ranges: self.state.overlay(),
            overlay: None,
        };
        self.block_on(self.links.ensure_machine(&wanted)).unwrap();
    }

    /// Attaches a task, has it answer on port 80 of both protocols, and puts it into the state.
    pub fn task(&mut self, id: &str, addresses: &[&str]) {
        self.attach(id, addresses);
        self.servers.insert(id.to_owned(), Server::start(id, self.netns(id)));
    }

    /// Attaches a task without a server.
    pub fn attach(&mut self, id: &str, addresses: &[&str]) {
        let addresses: BTreeSet<IpAddr> = addresses.iter().map(|it| ip_of(it)).collect();
        let wanted = Attachment { id: id.to_owned(), addresses: addresses.clone(), mtu: 1500 };
        let attached = self.block_on(self.links.ensure(&wanted)).unwrap();
        assert_eq!(attached.netns, self.directory.join("tasks").join(id));
        self.state.tasks.insert(id.to_owned(), LocalTask { link: attached.link, addresses });
    }

    /// Ends a task: its server, its namespace; from the state it goes too.
    pub fn end(&mut self, id: &str) {
        self.servers.remove(id);
        self.state.tasks.remove(id);
        self.block_on(self.links.remove(id)).unwrap();
    }

    /// Who has sent datagrams to the server of this task, whether or not answers came back.
    pub fn heard(&self, task: &str) -> BTreeSet<IpAddr> {
        self.servers[task].heard.lock().unwrap().clone()
    }

    pub fn vip(&mut self, vip: &str, backends: &[&str]) {
        self.state.vips.insert(ip_of(vip), backends.iter().map(|it| ip_of(it)).collect());
    }

    /// Both protocols.
    pub fn publish(&mut self, port: u16, backends: &[&str]) {
        let backends: BTreeSet<SocketAddr> = backends.iter().map(|it| SocketAddr::new(ip_of(it), 80)).collect();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            self.state.ports.insert(PublishedPort { protocol, port }, backends.clone());
        }
    }

    pub fn converge(&mut self) -> Converged {
        let done = self.runtime.block_on(self.converger.converge(&self.state, Changed::Anything)).unwrap();
        assert_eq!(done.faults, []);
        done
    }

    /// As after a restart of the daemon: nothing is remembered.
    pub fn forget_everything(&mut self) {
        self.mesh = Arc::new(KernelMesh::open("apply", LinkPrefix::default(), Some(self.open("machine"))).unwrap());
        self.converger = Converger::new(self.mesh.clone(), Seams::real());
    }

    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub fn netns(&self, task: &str) -> Netns {
        Netns::open(&self.tasks().join(task)).unwrap()
    }

    pub fn tasks(&self) -> PathBuf {
        self.directory.join("tasks")
    }

    pub fn open(&self, netns: &str) -> Netns {
        Netns::open(&self.directory.join(netns)).unwrap()
    }

    /// A server of the machine itself, or outside: no task's.
    pub fn serve(&mut self, netns: &str) {
        self.servers.insert(netns.to_owned(), Server::start(netns, self.open(netns)));
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.servers.clear();
        clear(&self.directory);
    }
}

/// Removes what runs that were killed have left.
fn sweep() {
    for entry in fs::read_dir(ROOT).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let maker = name.split('-').next().and_then(|pid| pid.parse::<u32>().ok());
        if !maker.is_some_and(is_alive) {
            clear(&entry.path());
        }
    }
}

fn is_alive(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

fn clear(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() { clear(&entry.path()) } else { netns::remove(&entry.path()).unwrap() }
    }
    let _ = fs::remove_dir(directory);
}

fn network(id: &str, subnet: &str, subnet6: &str) -> (String, Network) {
    let subnets = [subnet, subnet6].map(|it| it.parse().unwrap()).into();
    (id.to_owned(), Network { subnets, internal: false })
}

pub fn ip_of(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Runs `ip` in a namespace.
pub fn ip(netns: &Netns, arguments: &str) -> String {
    run(netns, "ip", &arguments.split(' ').collect::<Vec<_>>())
}

pub fn run(netns: &Netns, program: &str, arguments: &[&str]) -> String {
    let output = netns.run(|| Command::new(program).args(arguments).output()).flatten().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {stdout}{stderr}");
    stdout.into_owned()
}

/// Who answered, and who it saw.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Answer {
    pub server: String,
    pub client: IpAddr,
}

fn read_answer(text: &str) -> io::Result<Answer> {
    let (server, client) = text.trim_end().split_once(' ').ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(Answer { server: server.to_owned(), client: client.parse().map_err(io::Error::other)? })
}

/// A new connection or flow, one question, one answer.
pub fn ask(from: &Netns, protocol: Protocol, to: SocketAddr) -> io::Result<Answer> {
    ask_within(from, protocol, to, PATIENCE)
}

pub fn ask_within(from: &Netns, protocol: Protocol, to: SocketAddr, patience: Duration) -> io::Result<Answer> {
    from.run(|| match protocol {
        Protocol::Tcp => Conversation::begin_here(to, patience)?.ask(),
        Protocol::Udp => Flow::begin_here(to, None, patience)?.ask(),
    })
    .flatten()
}

/// A TCP connection that stays open between questions.
pub struct Conversation(BufReader<TcpStream>);

impl Conversation {
    pub fn begin(from: &Netns, to: SocketAddr) -> io::Result<Conversation> {
        from.run(|| Conversation::begin_here(to, PATIENCE)).flatten()
    }

    fn begin_here(to: SocketAddr, patience: Duration) -> io::Result<Conversation> {
        let stream = TcpStream::connect_timeout(&to, patience)?;
        stream.set_read_timeout(Some(patience))?;
        Ok(Conversation(BufReader::new(stream)))
    }

    pub fn ask(&mut self) -> io::Result<Answer> {
        self.0.get_mut().write_all(b"?\n")?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        read_answer(&line)
    }
}

/// A UDP flow that goes on from one port.
pub struct Flow(UdpSocket);

impl Flow {
    pub fn begin(from: &Netns, to: SocketAddr) -> io::Result<Flow> {
        from.run(|| Flow::begin_here(to, None, PATIENCE)).flatten()
    }

    pub fn begin_from(from: &Netns, source: IpAddr, to: SocketAddr, patience: Duration) -> io::Result<Flow> {
        from.run(|| Flow::begin_here(to, Some(source), patience)).flatten()
    }

    fn begin_here(to: SocketAddr, source: Option<IpAddr>, patience: Duration) -> io::Result<Flow> {
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((source.unwrap_or(any), 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(patience))?;
        Ok(Flow(socket))
    }

    pub fn ask(&mut self) -> io::Result<Answer> {
        self.0.send(b"?")?;
        let mut buffer = [0; 256];
        let length = self.0.recv(&mut buffer)?;
        read_answer(&String::from_utf8_lossy(&buffer[..length]))
    }
}

/// Answers each line (TCP) and each datagram (UDP) on port 80 with its name and the client's address.
struct Server {
    stop: Arc<AtomicBool>,
    listener: TcpListener,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    /// Senders of all datagrams so far.
    heard: Arc<Mutex<BTreeSet<IpAddr>>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Server {
    fn start(name: &str, netns: Netns) -> Server {
        let bound = netns.run(|| {
            let all = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 80);
            // The standard library leaves IPV6_V6ONLY off: these hear both families.
            Ok::<_, io::Error>((TcpListener::bind(all)?, UdpSocket::bind(all)?))
        });
        let (listener, socket) = bound.flatten().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let connections = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::new(Mutex::new(BTreeSet::new()));
        let accepting = {
            let (listener, name, connections) = (listener.try_clone().unwrap(), name.to_owned(), connections.clone());
            thread::spawn(move || {
                let mut talking = Vec::new();
                while let Ok((stream, client)) = listener.accept() {
                    connections.lock().unwrap().push(stream.try_clone().unwrap());
                    let name = name.clone();
                    talking.push(thread::spawn(move || talk(&stream, &name, client)));
                }
                talking.into_iter().for_each(|it| it.join().unwrap());
            })
        };
        let answering = {
            let (stop, name, heard) = (stop.clone(), name.to_owned(), heard.clone());
            socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 16];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((_, client)) = socket.recv_from(&mut buffer) {
                        heard.lock().unwrap().insert(client.ip().to_canonical());
                        let _ = socket.send_to(format!("{name} {}", client.ip().to_canonical()).as_bytes(), client);
                    }
                }
            })
        };
        Server { stop, listener, connections, heard, threads: vec![accepting, answering] }
    }
}

fn talk(stream: &TcpStream, name: &str, client: SocketAddr) {
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    while lines.read_line(&mut line).is_ok_and(|length| length > 0) {
        if writeln!(&*stream, "{name} {}", client.ip().to_canonical()).is_err() {
            return;
        }
        line.clear();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        for connection in self.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
        self.threads.drain(..).for_each(|it| it.join().unwrap());
    }
}

/// Has something done meanwhile, on a thread of its own.
pub fn meanwhile<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> mpsc::Receiver<T> {
    let (tell, done) = mpsc::channel();
    thread::spawn(move || tell.send(work()));
    done
}
