//! Raw system calls. The only place where `unsafe` may stand.

pub mod cgroup;
pub mod conntrack;
pub mod heap;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod readiness;
pub mod tun;
pub mod view;
pub mod worker;
pub mod xtables;
