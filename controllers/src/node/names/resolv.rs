//! resolv.conf(5): the host's, which says whom to ask for names outside; and a task's, which says to ask us.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};

use schemas::kinds::template::Dns;

/// What a resolv.conf says. Lines that are not understood are passed over, as the C libraries do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolv {
    /// Not to be reached from inside a container when they are loopback addresses; the machine reaches them.
    pub nameservers: Vec<SocketAddr>,
    pub search: Vec<String>,
    pub options: Vec<String>,
}

/// The file's name. Often a link into /run, replaced or rewritten when the machine changes its network.
pub const HOST: &str = "/etc/resolv.conf";

/// `interface` gives the index of a network interface: IPv6 link-local resolvers are written `fe80::1%eth0`.
pub fn parse(text: &str, interface: impl Fn(&str) -> Option<u32>) -> Resolv {
    let mut resolv = Resolv::default();
    let mut any = false;
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                any = true;
                resolv.nameservers.extend(words.next().and_then(|word| nameserver(word, &interface)));
            }
            // The last one of these lines counts; `domain` is the older word.
            Some("search") => resolv.search = words.map(str::to_owned).collect(),
            Some("domain") => resolv.search = words.take(1).map(str::to_owned).collect(),
            Some("options") => resolv.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    if !any {
        // What the C libraries do.
        resolv.nameservers.push((Ipv4Addr::LOCALHOST, 53).into());
    }
    resolv
}

fn nameserver(word: &str, interface: impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    let (address, zone) = word.split_once('%').map_or((word, None), |(address, zone)| (address, Some(zone)));
    match (address.parse().ok()?, zone) {
        (IpAddr::V6(v6), Some(zone)) => {
            Some(SocketAddrV6::new(v6, 53, 0, zone.parse().ok().or_else(|| interface(zone))?).into())
        }
        (address, _) => Some((address, 53).into()),
    }
}

/// The resolv.conf of a task: `server` answers, and takes the task's own or the host's resolvers for names outside.
///
/// `ndots:0` unless the task says otherwise: `db` is then looked up as it is before the search list is tried, so that a
/// service's name needs no answer from outside. A search list of one `.` is none (Docker's way to say so).
pub fn for_task(host: &Resolv, task: &Dns, server: IpAddr) -> String {
    let mut text = format!("nameserver {server}\n");
    let search = if task.search.is_empty() { &host.search } else { &task.search };
    if !search.is_empty() && search.as_slice() != ["."] {
        text += &format!("search {}\n", search.join(" "));
    }
    let is_ndots = |option: &&String| option.starts_with("ndots:");
    let mut options: Vec<&str> = match task.options.is_empty() {
        true => host.options.iter().filter(|option| !is_ndots(option)).map(String::as_str).collect(),
        false => task.options.iter().map(String::as_str).collect(),
    };
    if !task.options.iter().any(|option| is_ndots(&option)) {
        options.push("ndots:0");
    }
    text += &format!("options {}\n", options.join(" "));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Resolv {
        parse(text, |name| (name == "eth0").then_some(7))
    }

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn what_the_c_libraries_understand_is_understood() {
        let resolv = read(
            "# made by hand\n; another\nnameserver 127.0.0.53\n\tnameserver  ::1 # near\nnameserver fe80::1%eth0\n\
             nameserver fe80::1%gone\nnameserver nonsense\ndomain old\nsearch corp.example lab.example\n\
             options edns0 ndots:3\noptions timeout:1\nsortlist 1.2.3.4\nnameserver\n",
        );
        let expected = ["127.0.0.53:53", "[::1]:53", "[fe80::1%7]:53"].map(|text| text.parse().unwrap());
        assert_eq!(resolv.nameservers, expected);
        assert_eq!(resolv.search, ["corp.example", "lab.example"]);
        assert_eq!(resolv.options, ["edns0", "ndots:3", "timeout:1"]);
        assert_eq!(read("search x\n").nameservers, ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn a_task_asks_its_machine_and_names_without_dots_first_as_they_are() {
        let host = read("nameserver 1.1.1.1\nsearch corp.example\noptions ndots:3 timeout:1\n");
        let server = "169.254.1.1".parse().unwrap();
        let own = Dns { search: words("a b"), options: words("ndots:2"), ..Default::default() };
        let none = Dns { search: words("."), ..Default::default() };
        assert_eq!(
            for_task(&host, &Dns::default(), server),
            "nameserver 169.254.1.1\nsearch corp.example\noptions timeout:1 ndots:0\n"
        );
        assert_eq!(for_task(&host, &own, server), "nameserver 169.254.1.1\nsearch a b\noptions ndots:2\n");
        assert_eq!(for_task(&host, &none, server), "nameserver 169.254.1.1\noptions timeout:1 ndots:0\n");
    }
}
