//! The benchmark of a manager of many machines, small: fifty of them join, are ready, and stay so. Needs root.

use std::time::Duration;

use conformance::bench::agents::measure;

#[test]
fn fifty_machines_join_are_ready_and_stay_so() {
    let found = measure(50, Duration::from_secs(1), Duration::from_secs(3)).unwrap();
    println!("{found:?}");
    // Each is a connection or two of the manager's, and no more: a debug build takes more than what is measured for.
    let of_each = (found.memory - found.memory_alone) / 50.0;
    assert!(of_each < 2e6, "{of_each} bytes for each of them");
}
