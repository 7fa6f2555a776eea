//! Links in the kernel: one worker thread with a socket that stays open, and a short-lived socket in each namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    path::PathBuf,
};

use futures::future::BoxFuture;
use ipnet::IpNet;
use sha2::{Digest, Sha256};

use super::{
    Attached, Attachment, GATEWAY, GATEWAY6, LinkName, LinkPrefix, Links, LinksError, MachineLink,
    overlay::Mac,
    route::{self, End, Link, Route, Scope, Settings},
    settings, tunnel,
};
use crate::node::sys::{
    conntrack::{self, Stale},
    netlink::{NetlinkError, Protocol, Socket},
    netns::{self, Netns},
    worker::Worker,
};

/// The link inside a task's namespace.
const INSIDE: &str = "eth0";

/// Every machine's end of every link has this one: nothing but its own task ever sees it.
const MACHINE_MAC: Mac = [0x02, 0x42, 0xa9, 0xfe, 0x01, 0x01];

/// The machine's own link carries nothing but what is refused on it.
const MACHINE_MTU: u32 = 1500;

/// [`Links`] of the kernel that this process runs on.
#[derive(Debug)]
pub struct KernelLinks {
    worker: Worker<Kernel>,
}

impl KernelLinks {
    /// `directory` is where namespaces are mounted (`/run/apply/netns`); made if missing. `machine` is the machine's own
    /// namespace, `None` for the caller's.
    pub fn open(directory: PathBuf, prefix: LinkPrefix, machine: Option<Netns>) -> io::Result<KernelLinks> {
        let worker = Worker::start("links", machine, move || {
            let (host, tracker) = (Socket::open(Protocol::Route)?, Socket::open(Protocol::Netfilter)?);
            Ok(Kernel { directory, prefix, host, tracker, doomed: false, gone: BTreeSet::new() })
        })?;
        Ok(KernelLinks { worker })
    }

    async fn run<T: Send + 'static>(
        &self,
        subject: &str,
        work: impl FnOnce(&mut Kernel) -> Result<T, LinksError> + Send + 'static,
    ) -> Result<T, LinksError> {
        let subject = subject.to_owned();
        let failed = |source| LinksError::System { doing: "work", subject, source };
        self.worker.run(work).await.map_err(failed)?
    }
}

impl Links for KernelLinks {
    fn ensure_machine<'a>(&'a self, wanted: &'a MachineLink) -> BoxFuture<'a, Result<(), LinksError>> {
        let wanted = wanted.clone();
        Box::pin(self.run(MACHINE, move |kernel| kernel.ensure_machine(&wanted)))
    }

    fn ensure<'a>(&'a self, wanted: &'a Attachment) -> BoxFuture<'a, Result<Attached, LinksError>> {
        let owned = wanted.clone();
        Box::pin(self.run(&wanted.id, move |kernel| kernel.ensure(&owned)))
    }

    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), LinksError>> {
        let owned = id.to_owned();
        Box::pin(async move {
            let doomed = owned.clone();
            self.run(id, move |kernel| kernel.doom(&doomed)).await?;
            self.run(id, move |kernel| kernel.remove(&owned)).await
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Attached>, LinksError>> {
        Box::pin(self.run(MACHINE, Kernel::list))
    }

    fn remove_machine(&self) -> BoxFuture<'_, Result<(), LinksError>> {
        Box::pin(self.run(MACHINE, |kernel| {
            let (near, _) = kernel.prefix.machine();
            let doing = Doing(MACHINE);
            tunnel::remove(&doing, &mut kernel.host, &mut kernel.tracker, &kernel.prefix)?;
            doing.kernel("delete the link", route::delete_link(&mut kernel.host, near.as_str()))
        }))
    }
}

const MACHINE: &str = "this machine";

#[derive(Debug)]
struct Kernel {
    directory: PathBuf,
    prefix: LinkPrefix,
    /// In the machine's namespace, as the thread is.
    host: Socket,
    /// For rules and tracked connections.
    tracker: Socket,
    /// There are links to be deleted, and the connections of these addresses to be forgotten. The kernel takes some 30 ms
    /// for a link as for a hundred, and 10 ms for its walk through the connections, even if there are none: what is
    /// doomed together goes together.
    doomed: bool,
    gone: BTreeSet<Stale>,
}

impl Kernel {
    fn ensure_machine(&mut self, wanted: &MachineLink) -> Result<(), LinksError> {
        let doing = Doing(MACHINE);
        doing.system("have the kernel forward", settings::forward(wanted.address6.is_some()))?;
        let (near, far) = self.prefix.machine();
        let host = &mut self.host;
        if doing.kernel("look at the link", route::link(host, near.as_str()))?.is_none() {
            let end = |name, number| End { name, mac: [0x02, 0x42, 0xa9, 0xfe, 0x02, number], netns: None };
            let made = route::new_veth(host, &end(near.as_str(), 1), &end(far.as_str(), 2), MACHINE_MTU);
            doing.kernel("make the link", made)?;
        }
        for name in [&near, &far] {
            doing.system("set up the link", settings::quiet(name))?;
            let link = existing(&doing, host, name)?;
            let settings = Settings { mtu: MACHINE_MTU, alias: None };
            doing.kernel("set up the link", route::set_up(host, &link, &settings))?;
        }
        let link = existing(&doing, host, &near)?;
        let mut addresses = vec![IpNet::from(IpAddr::from(wanted.address4))];
        addresses.extend(wanted.address6.map(|address| IpNet::from(IpAddr::from(address))));
        doing.kernel("set addresses", set_addresses(host, link.index, &addresses))?;
        let source = |to: &IpNet| addresses.iter().map(IpNet::addr).find(|it| it.is_ipv4() == to.addr().is_ipv4());
        let seen = doing.kernel("list routes", route::routes(host))?;
        for gone in seen.iter().filter(|it| it.link == link.index && !wanted.ranges.contains(&it.to)) {
            doing.kernel("delete a route", route::delete_route(host, link.index, gone.to))?;
        }
        let to_ranges = wanted.ranges.iter().map(|to| (link.index, *to));
        // Tasks that were attached before the machine had its address. Not those of another installation beside this.
        let links = doing.kernel("list links", route::veths(host))?;
        let tasks = links.iter().filter(|it| it.name.starts_with(&self.prefix.tasks())).map(|it| it.index);
        let tasks: BTreeSet<u32> = tasks.collect();
        let to_tasks = seen.iter().filter(|it| tasks.contains(&it.link)).map(|it| (it.link, it.to));
        for (link, to) in to_ranges.chain(to_tasks) {
            let wanted = Route { to, link, gateway: None, source: source(&to) };
            if wanted.source.is_some() && !seen.contains(&wanted) {
                doing.kernel("set a route", route::put_route(host, &wanted))?;
            }
        }
        match &wanted.overlay {
            Some(overlay) => tunnel::ensure(&doing, host, &mut self.tracker, &self.prefix, wanted.address4, overlay),
            None => tunnel::remove(&doing, host, &mut self.tracker, &self.prefix),
        }
    }

    fn ensure(&mut self, wanted: &Attachment) -> Result<Attached, LinksError> {
        let path = self.path(&wanted.id)?;
        let name = self.prefix.task(&wanted.id);
        let doing = Doing(&wanted.id);
        let made = netns::ensure(&path, || {
            settings::inside()?;
            Socket::open(Protocol::Route)
        });
        let (inside, opened) = doing.system("make the network namespace", made)?;
        let ipv6 = wanted.addresses.iter().any(IpAddr::is_ipv6);
        let mut task = doing.system("enter the network namespace", opened)?;
        doing.kernel("set the loopback up", route::set_loopback_up(&mut task))?;

        let mac = mac(&wanted.id);
        self.ensure_pair(&doing, &name, &inside, &mut task, wanted.mtu)?;
        doing.system("set up the link", settings::quiet(&name).and_then(|()| settings::outside(&name)))?;
        let near = existing(&doing, &mut self.host, &name)?;
        let settings = Settings { mtu: wanted.mtu, alias: Some(&wanted.id) };
        doing.kernel("set the link up", route::set_up(&mut self.host, &near, &settings))?;
        let far = existing(&doing, &mut task, &LinkName::seen(INSIDE.into()))?;
        if ipv6 {
            doing
                .system("set up the link", inside.run(|| settings::quiet(&LinkName::seen(INSIDE.into()))).flatten())?;
        }
        let settings = Settings { mtu: wanted.mtu, alias: None };
        doing.kernel("set the link up", route::set_up(&mut task, &far, &settings))?;

        let host = &mut self.host;
        doing.kernel(
            "set the gateway",
            route::put_address(host, near.index, IpAddr::from(GATEWAY).into(), Scope::Link),
        )?;
        let addresses: Vec<IpNet> = wanted.addresses.iter().map(|address| IpNet::from(*address)).collect();
        doing.kernel("set addresses", set_addresses(&mut task, far.index, &addresses))?;
        doing.kernel("set the way out", way_out(&mut task, far.index, GATEWAY.into()))?;
        if ipv6 {
            let gateway = IpNet::new(GATEWAY6.into(), 64).expect("64 fits");
            doing.kernel("set the gateway", route::put_address(host, near.index, gateway, Scope::Link))?;
            doing.kernel("set the way out", way_out(&mut task, far.index, GATEWAY6.into()))?;
        }
        let seen = doing.kernel("list routes", route::routes(host))?;
        let seen = seen.into_iter().filter(|it| it.link == near.index).map(|it| it.to);
        let gone: Vec<IpNet> = seen.filter(|to| !addresses.contains(to)).collect();
        let stale = gone.iter().map(|it| Stale::Address(it.addr())).collect();
        for to in &gone {
            doing.kernel("delete a route", route::delete_route(host, near.index, *to))?;
        }
        doing.kernel("forget connections", conntrack::forget(&mut self.tracker, &stale))?;
        let sources = doing.kernel("look at the machine's link", machine_addresses(host, &self.prefix))?;
        for to in &addresses {
            doing.kernel("set a neighbour", route::put_neighbour(host, near.index, to.addr(), mac))?;
            // Without it the machine would speak to the task from the gateway's address.
            let source = sources.iter().copied().find(|source| source.is_ipv4() == to.addr().is_ipv4());
            let wanted = Route { to: *to, link: near.index, gateway: None, source };
            doing.kernel("set a route", route::put_route(host, &wanted))?;
        }
        Ok(Attached { id: wanted.id.clone(), netns: path, link: name, addresses: wanted.addresses.clone() })
    }

    /// Sees to it that the link of that name leads into that namespace.
    fn ensure_pair(
        &mut self,
        doing: &Doing<'_>,
        name: &LinkName,
        inside: &Netns,
        task: &mut Socket,
        mtu: u32,
    ) -> Result<(), LinksError> {
        let near = doing.kernel("look at the link", route::link(&mut self.host, name.as_str()))?;
        let far = doing.kernel("look at the link", route::link(task, INSIDE))?;
        let mac = mac(doing.0);
        if let (Some(near), Some(far)) = (&near, &far)
            && (near.peer, far.peer) == (far.index, near.index)
            && far.mac == mac
            && near.group != route::DOOMED
        {
            return Ok(());
        }
        // One whose removal was not brought to its end, a namespace that was made anew while a process kept the old one
        // alive, or half of a pair of somebody else.
        doing.kernel("delete the link", route::delete_link(&mut self.host, name.as_str()))?;
        doing.kernel("delete the link", route::delete_link(task, INSIDE))?;
        let near = End { name: name.as_str(), mac: MACHINE_MAC, netns: None };
        let far = End { name: INSIDE, mac, netns: Some(inside) };
        doing.kernel("make the link", route::new_veth(&mut self.host, &near, &far, mtu))
    }

    /// To be followed by [`Self::remove`].
    fn doom(&mut self, id: &str) -> Result<(), LinksError> {
        let name = self.prefix.task(id);
        let doing = Doing(id);
        let link = doing.kernel("look at the link", route::link(&mut self.host, name.as_str()))?;
        if let Some(link) = link {
            let seen = doing.kernel("list routes", route::routes(&mut self.host))?;
            doing.kernel("mark the link as one to delete", route::doom(&mut self.host, &link))?;
            self.doomed = true;
            self.gone.extend(seen.iter().filter(|it| it.link == link.index).map(|it| Stale::Address(it.to.addr())));
        }
        Ok(())
    }

    fn remove(&mut self, id: &str) -> Result<(), LinksError> {
        let path = self.path(id)?;
        let doing = Doing(id);
        if self.doomed {
            doing.kernel("delete the links", route::delete_doomed(&mut self.host))?;
            self.doomed = false;
        }
        if !self.gone.is_empty() {
            doing.kernel("forget connections", conntrack::forget(&mut self.tracker, &self.gone))?;
            self.gone.clear();
        }
        doing.system("remove the network namespace", netns::remove(&path))
    }

    fn list(&mut self) -> Result<Vec<Attached>, LinksError> {
        let doing = Doing(MACHINE);
        let mut ids = doing.system("list network namespaces", settings::files(&self.directory))?;
        let links = doing.kernel("list links", route::veths(&mut self.host))?;
        let routes = doing.kernel("list routes", route::routes(&mut self.host))?;
        // A link whose namespace has lost its name still says whose it was.
        ids.extend(
            links.iter().filter(|it| self.prefix.task(&it.alias).as_str() == it.name).map(|it| it.alias.clone()),
        );
        let by_name: BTreeMap<&str, u32> = links.iter().map(|link| (link.name.as_str(), link.index)).collect();
        let attached = |id: String| {
            let link = self.prefix.task(&id);
            let index = by_name.get(link.as_str());
            let addresses = routes.iter().filter(|it| Some(&it.link) == index).map(|it| it.to.addr()).collect();
            Attached { netns: self.directory.join(&id), link, addresses, id }
        };
        Ok(ids.into_iter().map(attached).collect())
    }

    fn path(&self, id: &str) -> Result<PathBuf, LinksError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let fits = (1..=128).contains(&id.len()) && id.bytes().all(plain) && !id.starts_with('.');
        if fits { Ok(self.directory.join(id)) } else { Err(LinksError::BadId { id: id.to_owned() }) }
    }
}

/// For whom something is done, for errors.
pub(super) struct Doing<'a>(&'a str);

impl Doing<'_> {
    pub(super) fn kernel<T>(&self, doing: &'static str, outcome: Result<T, NetlinkError>) -> Result<T, LinksError> {
        outcome.map_err(|source| LinksError::Kernel { doing, subject: self.0.to_owned(), source })
    }

    pub(super) fn system<T>(&self, doing: &'static str, outcome: io::Result<T>) -> Result<T, LinksError> {
        outcome.map_err(|source| LinksError::System { doing, subject: self.0.to_owned(), source })
    }
}

pub(super) fn existing(doing: &Doing<'_>, socket: &mut Socket, name: &LinkName) -> Result<Link, LinksError> {
    let found = doing.kernel("look at the link", route::link(socket, name.as_str()))?;
    doing.system("find the link", found.ok_or_else(|| io::ErrorKind::NotFound.into()))
}

fn set_addresses(socket: &mut Socket, link: u32, wanted: &[IpNet]) -> Result<(), NetlinkError> {
    let seen = route::addresses(socket, link)?;
    for gone in seen.iter().filter(|address| !wanted.contains(address)) {
        route::delete_address(socket, link, *gone)?;
    }
    for new in wanted.iter().filter(|address| !seen.contains(address)) {
        route::put_address(socket, link, *new, Scope::Everywhere)?;
    }
    Ok(())
}

/// Of a task: everything goes to its machine.
fn way_out(task: &mut Socket, link: u32, gateway: IpAddr) -> Result<(), NetlinkError> {
    let everywhere = match gateway {
        IpAddr::V4(_) => IpNet::new(std::net::Ipv4Addr::UNSPECIFIED.into(), 0),
        IpAddr::V6(_) => IpNet::new(std::net::Ipv6Addr::UNSPECIFIED.into(), 0),
    };
    route::put_neighbour(task, link, gateway, MACHINE_MAC)?;
    let to = everywhere.expect("0 fits");
    route::put_route(task, &Route { to, link, gateway: Some(gateway), source: None })
}

fn machine_addresses(host: &mut Socket, prefix: &LinkPrefix) -> Result<Vec<IpAddr>, NetlinkError> {
    let (near, _) = prefix.machine();
    let Some(link) = route::link(host, near.as_str())? else { return Ok(Vec::new()) };
    Ok(route::addresses(host, link.index)?.iter().map(IpNet::addr).collect())
}

fn mac(id: &str) -> Mac {
    let digest = Sha256::digest(id.as_bytes());
    // Locally administered, for one receiver.
    [0x02, digest[0], digest[1], digest[2], digest[3], digest[4]]
}
