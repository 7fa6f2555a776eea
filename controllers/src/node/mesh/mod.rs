//! The nftables ruleset: virtual IPs, published ports, isolation.
