//! The small files of a container: who it is, whom it knows, whom it asks.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use crate::node::links::GATEWAY;
use crate::node::tasks::Place;

/// Names and contents, to be seen below `/etc`. Pure.
pub(super) fn contents(place: &Place) -> [(&'static str, String); 3] {
    [("hosts", hosts(place)), ("hostname", format!("{}\n", place.hostname)), ("resolv.conf", resolv_conf(place))]
}

/// As Docker writes it: the loopbacks, the task itself at its first address, then what the service adds.
fn hosts(place: &Place) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for entry in &place.hosts {
        let _ = writeln!(text, "{}\t{}", entry.ip, entry.name);
    }
    if let Some(address) = place.addresses.first() {
        let _ = writeln!(text, "{address}\t{}", place.hostname);
    }
    text
}

/// Names are asked of the machine, which knows the tasks' networks and passes the rest on.
fn resolv_conf(place: &Place) -> String {
    let mut text = format!("nameserver {GATEWAY}\n");
    if !place.dns.search.is_empty() {
        let _ = writeln!(text, "search {}", place.dns.search.join(" "));
    }
    let options = if place.dns.options.is_empty() { "ndots:0".to_owned() } else { place.dns.options.join(" ") };
    let _ = writeln!(text, "options {options}");
    text
}

/// In place, as containers have the file mounted and would not see another; and only when it differs.
pub(super) fn write(path: &Path, content: &str) -> io::Result<()> {
    match fs::read(path) {
        Ok(there) if there == content.as_bytes() => Ok(()),
        _ => fs::write(path, content),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::containerd::ContainerId;
    use reconciler::api::Uid;
    use schemas::kinds::template::{Dns, HostEntry};

    #[test]
    fn a_container_knows_itself_and_asks_its_machine() {
        let place = Place {
            uid: Uid::new("u1"),
            namespace: "default".into(),
            container: ContainerId::new("u1.1").unwrap(),
            addresses: vec!["10.192.0.7".parse().unwrap()],
            mtu: None,
            hostname: "web-1".into(),
            hosts: vec![HostEntry { name: "old-db".into(), ip: "192.0.2.7".parse().unwrap() }],
            dns: Dns { search: vec!["example.com".into()], ..Dns::default() },
            volumes: vec![],
            files: vec![],
            image_layers: String::new(),
        };
        let [(_, hosts), (_, hostname), (_, resolv)] = contents(&place);
        assert!(hosts.contains("192.0.2.7\told-db\n") && hosts.ends_with("10.192.0.7\tweb-1\n"), "{hosts}");
        assert_eq!(hostname, "web-1\n");
        assert_eq!(resolv, "nameserver 169.254.1.1\nsearch example.com\noptions ndots:0\n");
    }
}
