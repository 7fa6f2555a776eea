use controllers::identity::{Authority, Request, Subject, Who};
use reconciler::api::Uid;
use reconciler::seams::Shifted;
use schemas::kinds::node::Role;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A cluster's authority, and machines whose clocks can be wrong.
struct Cluster {
    authority: Authority,
    id: &'static str,
}

struct Member {
    ring: Keyring,
    clock: Arc<Shifted>,
}

impl Member {
    fn clock_is_off_by(&self, days: i64) {
        self.clock.shift(days * 86_400 * 1_000_000);
    }
}

fn seams() -> (Seams, Arc<Shifted>) {
    let real = Seams::real();
    let clock = Arc::new(Shifted::new(real.clock.clone()));
    (Seams { clock: clock.clone(), ..real }, clock)
}

impl Cluster {
    fn new(id: &'static str) -> Self {
        Self { authority: Authority::make(id, Seams::real().now()).unwrap(), id }
    }

    fn credentials(&self, name: &str, role: Role) -> Credentials {
        let request = Request::make().unwrap();
        let who = Who::Node { name: name.into(), uid: Uid::new(format!("uid-of-{name}")), role };
        let subject = Subject { cluster: self.id.into(), who };
        let issued = self.authority.issue(&subject, &request.request, Seams::real().now(), DAY).unwrap();
        let authority = self.authority.certificate().to_owned();
        Credentials { chain: issued.pem + &authority, key: request.key, authorities: authority }
    }

    fn member(&self, name: &str, role: Role) -> Member {
        let (seams, clock) = seams();
        Member { ring: Keyring::new(self.credentials(name, role), &seams).unwrap(), clock }
    }
}

async fn port(member: &Member) -> (TlsPort, SocketAddr) {
    let port = TlsPort::bind("127.0.0.1:0".parse().unwrap(), member.ring.clone()).await.unwrap();
    let address = port.address().unwrap();
    (port, address)
}

/// Whom the port takes `connect` for, once a word went both ways.
async fn meet(port: &mut TlsPort, connect: &dyn Connect) -> Result<Peer, io::Error> {
    let calling = async {
        let mut io = connect.connect().await?;
        io.write_all(b"hello").await?;
        let mut answer = [0; 2];
        io.read_exact(&mut answer).await?;
        Ok::<_, io::Error>(answer)
    };
    let answering = async {
        let (mut io, peer) = port.accept().await?;
        let mut word = [0; 5];
        io.read_exact(&mut word).await?;
        io.write_all(b"hi").await?;
        io.flush().await?;
        Ok::<_, io::Error>(peer)
    };
    // Who is turned away never comes out of the port, which goes on listening.
    let mut answering = std::pin::pin!(answering);
    let mut calling = std::pin::pin!(calling);
    tokio::select! {
        called = &mut calling => { called?; answering.await }
        peer = &mut answering => { let peer = peer?; calling.await?; Ok(peer) }
    }
}

fn to(address: SocketAddr, member: &Member) -> Managers {
    Managers::new(vec![address], member.ring.clone())
}

#[tokio::test]
async fn members_know_each_other() {
    let cluster = Cluster::new("c1");
    let (n1, n2) = (cluster.member("n1", Role::Manager), cluster.member("n2", Role::Worker));
    let (mut port, address) = port(&n1).await;
    let peer = meet(&mut port, &to(address, &n2)).await.unwrap();
    let from = peer.address.unwrap();
    assert!(from.ip().is_loopback(), "{from}");
    assert_eq!(peer, Peer::new("node:n2").of("uid-of-n2").at(from));
    assert!(!peer.trusted);
    // The first that answers is taken.
    let nobody = "127.0.0.1:1".parse().unwrap();
    let several = Managers::new(vec![nobody, address], n2.ring.clone());
    assert_eq!(meet(&mut port, &several).await.unwrap().identity.as_ref(), "node:n2");
}

#[tokio::test]
async fn who_has_no_certificate_finds_the_authority_of_its_token_and_is_nobody() {
    let (cluster, other) = (Cluster::new("c1"), Cluster::new("c2"));
    let n1 = cluster.member("n1", Role::Manager);
    let (mut port, address) = port(&n1).await;
    let (right, clock) = seams();
    let pinned = |authority: &Authority| Pinned::new(address, authority.fingerprint(), &right);
    let nobody = meet(&mut port, &pinned(&cluster.authority)).await.unwrap();
    assert_eq!((&*nobody.identity, &*nobody.uid, nobody.trusted), (ANONYMOUS, "", false));
    let told = meet(&mut port, &pinned(&other.authority)).await.unwrap_err().to_string();
    assert!(told.contains(ANOTHER_CLUSTER), "{told}");
    for (days, word) in [(3, "expired"), (-3, "not valid yet")] {
        clock.shift(days * 86_400 * 1_000_000);
        let told = meet(&mut port, &pinned(&cluster.authority)).await.unwrap_err().to_string();
        assert!(told.contains(word), "{told}");
    }
}

#[tokio::test]
async fn members_of_another_cluster_are_turned_away_at_both_ends() {
    let (cluster, other) = (Cluster::new("c1"), Cluster::new("c2"));
    let (n1, stranger) = (cluster.member("n1", Role::Manager), other.member("n1", Role::Manager));
    let (mut port, address) = port(&n1).await;
    assert!(meet(&mut port, &to(address, &stranger)).await.is_err());
    // Believes the right authority, and shows a certificate of the wrong one.
    let mut forged = other.credentials("n2", Role::Worker);
    forged.authorities = cluster.authority.certificate().to_owned();
    let forger = Member { ring: Keyring::new(forged, &seams().0).unwrap(), clock: seams().1 };
    assert!(meet(&mut port, &to(address, &forger)).await.is_err());
    // The port lives on.
    let n2 = cluster.member("n2", Role::Worker);
    assert_eq!(meet(&mut port, &to(address, &n2)).await.unwrap().identity.as_ref(), "node:n2");
}

#[tokio::test]
async fn a_worker_is_no_manager() {
    let cluster = Cluster::new("c1");
    let (n2, n3) = (cluster.member("n2", Role::Worker), cluster.member("n3", Role::Worker));
    let (mut port, address) = port(&n2).await;
    let told = meet(&mut port, &to(address, &n3)).await.unwrap_err().to_string();
    assert!(told.contains("certificate"), "{told}");
}

#[tokio::test]
async fn a_certificate_that_ended_proves_who_asks_for_a_new_one_for_thirty_days() {
    let cluster = Cluster::new("c1");
    let (n1, n2) = (cluster.member("n1", Role::Manager), cluster.member("n2", Role::Worker));
    let (mut port, address) = port(&n1).await;
    for (days, known_as) in
        [(0, Some("node:n2")), (2, Some("renewing:node:n2")), (30, Some("renewing:node:n2")), (32, None)]
    {
        n1.clock_is_off_by(days);
        let met = meet(&mut port, &to(address, &n2)).await;
        assert_eq!(met.as_ref().ok().map(|peer| &*peer.identity), known_as, "after {days} days: {met:?}");
    }
}

#[tokio::test]
async fn exchanged_credentials_hold_from_the_next_connection_on_and_no_open_one_drops() {
    let cluster = Cluster::new("c1");
    let (n1, n2) = (cluster.member("n1", Role::Manager), cluster.member("n2", Role::Worker));
    let (mut port, address) = port(&n1).await;
    let managers = to(address, &n2);
    let (client, accepted) = tokio::join!(managers.connect(), port.accept());
    let (mut client, (mut server, _)) = (client.unwrap(), accepted.unwrap());
    // Another authority altogether: nobody of before could begin a connection now.
    let next = Cluster::new("c1");
    n1.ring.exchange(next.credentials("n1", Role::Manager)).unwrap();
    client.write_all(b"still here").await.unwrap();
    client.flush().await.unwrap();
    let mut said = [0; 10];
    server.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"still here");
    assert!(meet(&mut port, &managers).await.is_err());
    n2.ring.exchange(next.credentials("n2", Role::Worker)).unwrap();
    assert_eq!(meet(&mut port, &managers).await.unwrap().identity.as_ref(), "node:n2");
    // What is of no use changes nothing.
    let broken = Credentials { key: "no key".into(), ..n1.ring.credentials() };
    assert!(n1.ring.exchange(broken).is_err());
    assert_eq!(meet(&mut port, &managers).await.unwrap().identity.as_ref(), "node:n2");
}

#[tokio::test]
async fn whoever_says_nothing_or_rubbish_is_in_nobodys_way() {
    let cluster = Cluster::new("c1");
    let (n1, n2) = (cluster.member("n1", Role::Manager), cluster.member("n2", Role::Worker));
    let (mut port, address) = port(&n1).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let mut rude = TcpStream::connect(address).await.unwrap();
    rude.write_all(&[0xff; 4096]).await.unwrap();
    assert_eq!(meet(&mut port, &to(address, &n2)).await.unwrap().identity.as_ref(), "node:n2");
}

/// Lets one user do everything.
#[derive(Debug)]
struct OnlyW;

impl reconciler::server::Access for OnlyW {
    fn allow(&self, peer: &Peer, _: &reconciler::server::Ask<'_>) -> Result<(), String> {
        if *peer.identity == *"user:w" { Ok(()) } else { Err(format!("{} is not w", peer.identity)) }
    }
}

/// A manager with one Namespace, of its own name, to be told by.
async fn serving(cluster: &Cluster, name: &str) -> (SocketAddr, tokio::task::AbortHandle) {
    use reconciler::Resource;
    use reconciler::objects::{Client, Kinds, StoreObjects, Writer};
    use reconciler::store::Memory;
    use schemas::kinds::Namespace;
    let kinds = Kinds::new().with::<Namespace>();
    let store = Arc::new(Memory::new());
    let objects = Arc::new(StoreObjects::open(store, "/apply", kinds.clone(), Seams::real()).await.unwrap());
    let client = Client::new(objects.clone(), Writer::new("applyd", "tests"));
    client.create(&Namespace::new(name, Default::default())).await.unwrap();
    let (port, address) = port(&cluster.member(name, Role::Manager)).await;
    let server = reconciler::server::Server::new(objects, kinds, Seams::real()).access(Arc::new(OnlyW));
    (address, tokio::spawn(async move { server.serve(port).await }).abort_handle())
}

#[tokio::test]
async fn a_program_outside_meets_the_manager_that_answers_and_takes_what_its_file_says_now() {
    use crate::applyctl::kubeconfig::Kubeconfig;
    use reconciler::objects::{Client, Writer};
    use schemas::kinds::Namespace;
    let (cluster, other) = (Cluster::new("c1"), Cluster::new("c2"));
    let credentials = |cluster: &Cluster, name: &str| {
        let request = Request::make().unwrap();
        let who = Who::User { name: name.into(), uid: Uid::new("uid") };
        let subject = Subject { cluster: cluster.id.into(), who };
        let issued = cluster.authority.issue(&subject, &request.request, Seams::real().now(), DAY).unwrap();
        let authority = cluster.authority.certificate().to_owned();
        Credentials { chain: issued.pem + &authority, key: request.key, authorities: authority }
    };
    let path = std::env::temp_dir().join(format!("apply-client-{}.yaml", std::process::id()));
    let write = |servers: &[SocketAddr], credentials: &Credentials| {
        let _ = std::fs::remove_file(&path);
        let servers: Vec<String> = servers.iter().map(|address| format!("https://{address}")).collect();
        Kubeconfig::of("otter", "w", &servers, credentials, Some("shop")).write(&path).unwrap();
    };
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = nobody.local_addr().unwrap();
    drop(nobody);
    let ((first, first_task), (second, second_task)) = (serving(&cluster, "m1").await, serving(&cluster, "m2").await);

    write(&[dead, first], &credentials(&cluster, "w"));
    let met = ::client::Cluster::open(&path, &Seams::real()).unwrap();
    assert_eq!((met.user(), met.namespace()), ("w", Some("shop")));
    let writer = Client::new(met.objects(), Writer::new("anybody", "tests"));
    let who = async || {
        let found = writer.list::<Namespace>(None).await?;
        Ok::<_, reconciler::objects::Error>(found.into_iter().map(|it| it.metadata.name).collect::<Vec<_>>())
    };
    assert_eq!(who().await.unwrap(), ["m1"]);
    // The file is written anew; then the manager goes.
    write(&[dead, second], &credentials(&cluster, "w"));
    first_task.abort();
    let found = async {
        loop {
            match who().await {
                Ok(found) if found == ["m2"] => return,
                _ => Seams::real().sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), found).await.expect("the other one answers");

    // Who is somebody else, or of another cluster, is not let.
    write(&[second], &credentials(&cluster, "v"));
    let stranger = ::client::Cluster::open(&path, &Seams::real()).unwrap();
    let refused = Client::new(stranger.objects(), Writer::new("user:w", "tests")).list::<Namespace>(None).await;
    assert!(matches!(refused, Err(reconciler::objects::Error::Forbidden { .. })), "{refused:?}");
    write(&[second], &credentials(&other, "w"));
    let stranger = ::client::Cluster::open(&path, &Seams::real()).unwrap();
    let refused = Client::new(stranger.objects(), Writer::new("user:w", "tests")).list::<Namespace>(None).await;
    assert!(matches!(refused, Err(reconciler::objects::Error::Unavailable { .. })), "{refused:?}");
    second_task.abort();
    std::fs::remove_file(&path).unwrap();
}
