//! From what is where to who is told what. Pure: the same input, in any order, gives the same table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use schemas::kinds::endpoints::{Backend, EndpointsSpec, TaskAddress};
use schemas::kinds::network::Cidr;

use super::{Answer, Client, Scope, Table};

/// A virtual address stays with its service, so this bounds only how long a change of the endpoint mode, or a service
/// made anew, goes unnoticed; it also carries resolvers in between over a restart of the name server.
const VIRTUAL_TTL_SECONDS: u32 = 5;
/// Tasks come and go, and one that leaves is stopped once its drain is over: who caches must not cache for longer.
const TASK_TTL_SECONDS: u32 = 1;

/// A network that this machine has tasks on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    pub namespace: String,
    pub name: String,
    pub subnets: Vec<Cidr>,
}

/// A service, as its Endpoints object describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    pub namespace: String,
    /// The bundle that owns it.
    pub bundle: Option<String>,
    pub endpoints: EndpointsSpec,
}

/// A task of this machine: one who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    pub namespace: String,
    pub name: String,
    pub bundle: Option<String>,
    /// In the order of its networks, which is the order of preference.
    pub addresses: Vec<TaskAddress>,
    /// Its own choice of resolvers; empty: the host's.
    pub resolvers: Vec<IpAddr>,
}

/// The table for the tasks of this machine, answered at `listen`.
///
/// Services and networks that no task of this machine is attached to do no harm, but are better left out: their names
/// take memory and are seen by nobody.
pub fn compile(listen: &[SocketAddr], networks: &[Network], services: &[Service], tasks: &[Task]) -> Table {
    let mut names = Names::default();
    for service in services {
        names.add_service(service);
    }
    for task in tasks {
        for TaskAddress { network, address } in &task.addresses {
            names.add_task(&scope_id(&task.namespace, network), &task.name, *address);
        }
    }
    let pools: BTreeSet<Cidr> =
        networks.iter().flat_map(|network| &network.subnets).copied().chain(names.virtual_addresses()).collect();
    let mut table = Table {
        listen: listen.iter().copied().collect::<BTreeSet<_>>().into_iter().collect(),
        pools: pools.into_iter().collect(),
        scopes: names.scopes(),
        clients: BTreeMap::new(),
    };
    for task in tasks {
        let client = Client { scopes: scopes_of(task, &table.scopes), resolvers: task.resolvers.clone() };
        for TaskAddress { address, .. } in &task.addresses {
            table.clients.insert(*address, client.clone());
        }
    }
    table
}

fn scope_id(namespace: &str, network: &str) -> String {
    format!("{namespace}/{network}")
}

/// In a scope of this name stand the names that a task of the bundle sees otherwise than the others in the network.
fn bundle_scope_id(scope: &str, bundle: &str) -> String {
    format!("{scope}/{bundle}")
}

fn scopes_of(task: &Task, scopes: &BTreeMap<String, Scope>) -> Vec<String> {
    let mut ids = Vec::new();
    for TaskAddress { network, .. } in &task.addresses {
        let id = scope_id(&task.namespace, network);
        let own = task.bundle.as_ref().map(|bundle| bundle_scope_id(&id, bundle));
        for id in own.into_iter().chain([id]) {
            if scopes.contains_key(&id) && !ids.contains(&id) {
                ids.push(id);
            }
        }
    }
    ids
}

/// Per network and name, all that claim it.
#[derive(Default)]
struct Names<'a> {
    claims: BTreeMap<String, BTreeMap<String, BTreeSet<Claim<'a>>>>,
    reverse: BTreeMap<String, BTreeMap<IpAddr, String>>,
    virtual_addresses: BTreeSet<IpAddr>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Claim<'a> {
    strength: Strength,
    bundle: Option<&'a str>,
    addresses: BTreeSet<IpAddr>,
    ttl_seconds: u32,
}

/// A name that someone owns is not diluted by an alias that somebody else chose.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Strength {
    Alias,
    OwnName,
}

impl<'a> Names<'a> {
    fn add_service(&mut self, service: &'a Service) {
        let endpoints = &service.endpoints;
        for attached in &endpoints.networks {
            let scope = scope_id(&service.namespace, &attached.network);
            let at = |backend: &'a Backend| {
                backend.addresses.iter().filter(|at| at.network == attached.network).map(|at| at.address)
            };
            let ready: BTreeSet<IpAddr> = endpoints.backends.iter().filter(|b| b.ready).flat_map(at).collect();
            let vips: BTreeSet<IpAddr> = attached.vip.into_iter().chain(attached.vip6).collect();
            let (addresses, ttl) =
                if vips.is_empty() { (&ready, TASK_TTL_SECONDS) } else { (&vips, VIRTUAL_TTL_SECONDS) };
            for (i, name) in attached.names.iter().enumerate() {
                let strength = if i == 0 { Strength::OwnName } else { Strength::Alias };
                let bundle = service.bundle.as_deref();
                self.claim(&scope, name, strength, bundle, addresses, ttl);
                self.claim(&scope, &format!("tasks.{name}"), strength, bundle, &ready, TASK_TTL_SECONDS);
            }
            let reverse = self.reverse.entry(scope.clone()).or_default();
            if let Some(own) = attached.names.first() {
                reverse.extend(vips.iter().map(|&vip| (vip, own.to_ascii_lowercase())));
            }
            self.virtual_addresses.extend(vips);
            for backend in &endpoints.backends {
                for address in at(backend) {
                    self.add_task(&scope, &backend.task, address);
                }
            }
        }
    }

    fn add_task(&mut self, scope: &str, name: &str, address: IpAddr) {
        self.claim(scope, name, Strength::OwnName, None, &BTreeSet::from([address]), TASK_TTL_SECONDS);
        self.reverse.entry(scope.to_owned()).or_default().insert(address, name.to_ascii_lowercase());
    }

    fn claim(
        &mut self,
        scope: &str,
        name: &str,
        strength: Strength,
        bundle: Option<&'a str>,
        addresses: &BTreeSet<IpAddr>,
        ttl_seconds: u32,
    ) {
        let names = self.claims.entry(scope.to_owned()).or_default();
        let claim = Claim { strength, bundle, addresses: addresses.clone(), ttl_seconds };
        names.entry(name.to_ascii_lowercase()).or_default().insert(claim);
    }

    fn virtual_addresses(&self) -> impl Iterator<Item = Cidr> {
        self.virtual_addresses.iter().filter_map(|&vip| Cidr::new(vip, if vip.is_ipv4() { 32 } else { 128 }))
    }

    fn scopes(self) -> BTreeMap<String, Scope> {
        let mut scopes: BTreeMap<String, Scope> = BTreeMap::new();
        for (id, names) in self.claims {
            for (name, claims) in names {
                let Some(strongest) = claims.iter().map(|claim| claim.strength).max() else { continue };
                let heard: Vec<&Claim<'_>> = claims.iter().filter(|claim| claim.strength == strongest).collect();
                let all = merge(&heard);
                let bundles: BTreeSet<&str> = heard.iter().filter_map(|claim| claim.bundle).collect();
                for bundle in bundles {
                    let own: Vec<_> = heard.iter().copied().filter(|claim| claim.bundle == Some(bundle)).collect();
                    let own = merge(&own);
                    if own != all {
                        scopes.entry(bundle_scope_id(&id, bundle)).or_default().names.insert(name.clone(), own);
                    }
                }
                scopes.entry(id.clone()).or_default().names.insert(name, all);
            }
        }
        for (id, reverse) in self.reverse {
            scopes.entry(id).or_default().reverse = reverse;
        }
        scopes
    }
}

fn merge(claims: &[&Claim<'_>]) -> Answer {
    let addresses: BTreeSet<IpAddr> = claims.iter().flat_map(|claim| claim.addresses.iter().copied()).collect();
    let ttl_seconds = claims.iter().map(|claim| claim.ttl_seconds).min().unwrap_or(TASK_TTL_SECONDS);
    Answer { addresses: addresses.into_iter().collect(), ttl_seconds }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// `bundle names vip : task=address task=address(not ready)`, all in network `n` of namespace `d`.
    fn service(line: &str) -> Service {
        let (head, tasks) = line.split_once(':').unwrap();
        let mut words = head.split_whitespace();
        let bundle = words.next().filter(|&word| word != "-").map(str::to_owned);
        let names = words.next().unwrap().split(',').map(str::to_owned).collect();
        let vip = words.next().map(ip);
        let backends = tasks.split_whitespace().map(|word| {
            let (task, address) = word.split_once('=').unwrap();
            let ready = !address.ends_with('!');
            let addresses = vec![TaskAddress { network: "n".into(), address: ip(address.trim_end_matches('!')) }];
            Backend { task: task.into(), node: "m".into(), ready, addresses }
        });
        let network = schemas::kinds::endpoints::EndpointNetwork { network: "n".into(), vip, vip6: None, names };
        let backends = backends.collect();
        let endpoints = EndpointsSpec { networks: vec![network], backends, ..Default::default() };
        Service { namespace: "d".into(), bundle, endpoints }
    }

    fn task(name: &str, bundle: Option<&str>, addresses: &[(&str, &str)]) -> Task {
        let addresses = addresses.iter().map(|(n, a)| TaskAddress { network: (*n).into(), address: ip(a) }).collect();
        let bundle = bundle.map(str::to_owned);
        Task { namespace: "d".into(), name: name.into(), bundle, addresses, resolvers: vec![] }
    }

    /// What the client sees under the name; `-` for nobody.
    fn asks(table: &Table, client: &str, name: &str) -> String {
        let client = &table.clients[&ip(client)];
        let answer = client.scopes.iter().find_map(|scope| table.scopes[scope].names.get(name));
        answer.map_or("-".into(), |answer| {
            let addresses: Vec<_> = answer.addresses.iter().map(IpAddr::to_string).collect();
            format!("{} {}s", addresses.join(","), answer.ttl_seconds)
        })
    }

    #[test]
    fn a_service_answers_to_all_its_names_and_tasks_to_theirs() {
        let services = [service("app app-vote,vote,app_Vote 10.96.0.5 : vote.1=10.5.0.1 vote.2=10.5.0.2!")];
        let table = compile(&[], &[], &services, &[task("vote.1", Some("app"), &[("n", "10.5.0.1")])]);
        for name in ["vote", "app-vote", "app_vote"] {
            assert_eq!(asks(&table, "10.5.0.1", name), "10.96.0.5 5s");
            assert_eq!(asks(&table, "10.5.0.1", &format!("tasks.{name}")), "10.5.0.1 1s", "only who is ready");
        }
        assert_eq!(asks(&table, "10.5.0.1", "vote.2"), "10.5.0.2 1s", "who leaves keeps its name");
        assert_eq!(asks(&table, "10.5.0.1", "other"), "-");
        let reverse = &table.scopes["d/n"].reverse;
        assert_eq!((&*reverse[&ip("10.96.0.5")], &*reverse[&ip("10.5.0.2")]), ("app-vote", "vote.2"));
        assert_eq!(table.pools, ["10.96.0.5/32".parse().unwrap()]);
    }

    #[test]
    fn without_a_virtual_address_the_name_is_the_tasks_and_none_is_an_answer() {
        let asker = task("x", None, &[("n", "10.5.0.9")]);
        let some = compile(&[], &[], &[service("- db : db.1=10.5.0.1 db.2=10.5.0.2")], std::slice::from_ref(&asker));
        assert_eq!(asks(&some, "10.5.0.9", "db"), "10.5.0.1,10.5.0.2 1s");
        let none = compile(&[], &[], &[service("- db : db.1=10.5.0.1!")], &[asker]);
        assert_eq!(asks(&none, "10.5.0.9", "db"), " 1s");
    }

    #[test]
    fn of_two_bundles_on_one_network_each_finds_its_own() {
        let services = [service("a a-vote,vote 10.96.0.1 :"), service("b b-vote,vote 10.96.0.2 :")];
        let tasks = [
            task("a.1", Some("a"), &[("n", "10.5.0.1")]),
            task("b.1", Some("b"), &[("n", "10.5.0.2")]),
            task("c.1", None, &[("n", "10.5.0.3")]),
        ];
        let table = compile(&[], &[], &services, &tasks);
        assert_eq!(asks(&table, "10.5.0.1", "vote"), "10.96.0.1 5s");
        assert_eq!(asks(&table, "10.5.0.2", "vote"), "10.96.0.2 5s");
        assert_eq!(asks(&table, "10.5.0.3", "vote"), "10.96.0.1,10.96.0.2 5s");
        assert_eq!(asks(&table, "10.5.0.1", "b-vote"), "10.96.0.2 5s");
    }

    #[test]
    fn an_alias_does_not_dilute_the_owner_of_a_name() {
        let services = [service("- db 10.96.0.1 :"), service("- other,db 10.96.0.2 :")];
        let table = compile(&[], &[], &services, &[task("x", None, &[("n", "10.5.0.9")])]);
        assert_eq!(asks(&table, "10.5.0.9", "db"), "10.96.0.1 5s");
    }

    #[test]
    fn a_task_sees_its_networks_in_their_order_and_no_other() {
        let mut far = service("- db 10.96.0.2 :");
        far.endpoints.networks[0].network = "far".into();
        let mut third = service("- hidden 10.96.0.3 :");
        third.endpoints.networks[0].network = "third".into();
        let services = [service("- db 10.96.0.1 :"), far, third];
        let tasks = [
            task("near-first", None, &[("n", "10.5.0.1"), ("far", "10.6.0.1")]),
            task("far-first", None, &[("far", "10.6.0.2"), ("n", "10.5.0.2")]),
        ];
        let table = compile(&[], &[], &services, &tasks);
        assert_eq!(asks(&table, "10.6.0.1", "db"), "10.96.0.1 5s", "whichever of its addresses it asks from");
        assert_eq!(asks(&table, "10.5.0.2", "db"), "10.96.0.2 5s");
        assert_eq!(asks(&table, "10.5.0.1", "hidden"), "-");
    }

    #[test]
    fn the_order_of_the_input_does_not_matter() {
        let mut services =
            vec![service("a a-x,x 10.96.0.1 : x.1=10.5.0.1"), service("b b-x,x : y.1=10.5.0.2 y.2=10.5.0.3")];
        let mut tasks = vec![task("x.1", Some("a"), &[("n", "10.5.0.1")]), task("z", None, &[("n", "10.5.0.4")])];
        let table = compile(&[], &[], &services, &tasks);
        services.reverse();
        tasks.reverse();
        assert_eq!(compile(&[], &[], &services, &tasks), table);
    }
}
