//! Which limits of setrlimit(2) this machine can give. An OCI runtime that is refused one says `error setting rlimit type
//! 8: operation not permitted`, at every attempt.

use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use crate::node::containerd::container_spec::Rlimit;

/// Says in words why this machine cannot give a limit. What the kernel would say to others who start containers is taken
/// to be what it says to this process.
pub(crate) fn refusal(limit: &Rlimit) -> Option<String> {
    let most = if limit.name == "nofile" { fs_nr_open() } else { None };
    let own = resource(&limit.name).and_then(|resource| getrlimit(resource).maximum).filter(|_| !may_raise());
    let most = [most, own].into_iter().flatten().min()?;
    let over = |bound: Option<u64>| bound.is_none_or(|bound| bound > most);
    let asked = [limit.hard, limit.soft].into_iter().find(|bound| over(*bound))?;
    let asked = asked.map_or_else(|| "unlimited".to_owned(), |asked| asked.to_string());
    Some(format!("ulimit {}: {asked} was asked for, and this machine gives {most} at most", limit.name))
}

/// The most open files that anybody can be allowed (proc_sys_fs(5)).
fn fs_nr_open() -> Option<u64> {
    std::fs::read_to_string("/proc/sys/fs/nr_open").ok()?.trim().parse().ok()
}

/// Whether this process may go over its own limits.
fn may_raise() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE))
}

fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "as" => Resource::As,
        "core" => Resource::Core,
        "cpu" => Resource::Cpu,
        "data" => Resource::Data,
        "fsize" => Resource::Fsize,
        "locks" => Resource::Locks,
        "memlock" => Resource::Memlock,
        "msgqueue" => Resource::Msgqueue,
        "nice" => Resource::Nice,
        "nofile" => Resource::Nofile,
        "nproc" => Resource::Nproc,
        "rss" => Resource::Rss,
        "rtprio" => Resource::Rtprio,
        "rttime" => Resource::Rttime,
        "sigpending" => Resource::Sigpending,
        "stack" => Resource::Stack,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn every_limit_has_its_number() {
        assert_eq!(schemas::ULIMITS.iter().filter(|name| resource(name).is_none()).count(), 0);
    }

    #[test]
    fn what_the_kernel_gives_nobody_is_refused_in_words() {
        let limit = |name: &str, soft, hard| Rlimit { name: name.to_owned(), soft, hard };
        assert_eq!(refusal(&limit("nofile", Some(10), Some(10))), None);
        let said = refusal(&limit("nofile", Some(10), Some(1 << 40))).unwrap();
        assert!(said.starts_with("ulimit nofile: 1099511627776 was asked for, and this machine gives "), "{said}");
        let said = refusal(&limit("nofile", None, None)).unwrap();
        assert!(said.starts_with("ulimit nofile: unlimited was asked for"), "{said}");
    }
}
