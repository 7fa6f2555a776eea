//! A right controller passes every schedule; one with a planted bug does not, and is told so in a short story.

mod site;

use reconciler::controller::planted::Planted;
use reconciler::sim::{Fault, Scene, check};

use site::{Bug, Setup, scene};

const SCHEDULES: usize = 500;
/// Planted bugs are found within so many, with default settings.
const AT_MOST: usize = 5_000;

const RIGHT: Setup = Setup { bug: None, planted: &[], unguarded: false, sweeper: false };

fn passes(name: &str, build: impl Fn(Scene) -> Scene) {
    let report = check(name, build).schedules(SCHEDULES);
    println!("{report}");
    assert!(report.contents > 30, "{report}");
}

fn found(name: &str, promise: &str, build: impl Fn(Scene) -> Scene) {
    match check(name, build).search(AT_MOST) {
        Ok(report) => panic!("it was not found:\n{report}"),
        Err(failure) => {
            println!("{failure}");
            assert_eq!(failure.broken.promise, promise, "{failure}");
        }
    }
}

#[test]
fn right_controllers_pass() {
    passes("sites", |given| scene(given, RIGHT));
}

#[test]
fn right_controllers_pass_beside_a_sweeper() {
    passes("sites and sweeper", |given| scene(given, Setup { sweeper: true, ..RIGHT }));
}

/// A new name for every try is safe, because a run waits for what the last one wrote, and finds out what became of a
/// commit whose answer was lost; only a commit that happens later than that is beyond it.
#[test]
fn new_names_pass_where_no_commit_is_late() {
    let setup = Setup { bug: Some(Bug::NewNames), ..RIGHT };
    passes("sites with new names", |given| scene(given, setup).without(Fault::CommitLate));
}

const SETTLED: &str = "every site has its pages, and says so";
const RECORDS: &str = "a record for every site, and no other";
const WANTED: &str = "no page is deleted that is wanted";

macro_rules! planted {
    ($($name:ident: $setup:expr => $promise:expr;)*) => {$(
        #[test]
        fn $name() {
            found(stringify!($name), $promise, |given| scene(given, $setup));
        }
    )*};
}

const fn with(bug: Bug) -> Setup {
    Setup { bug: Some(bug), ..RIGHT }
}

planted! {
    half_done_work_is_found: with(Bug::HalfDone) => SETTLED;
    waiting_to_see_what_goes_is_found: with(Bug::WaitsToSeeItGo) => SETTLED;
    two_leaders_are_found: with(Bug::TwoLeaders) => "no page twice";
    two_writers_of_one_field_are_found: with(Bug::TwoWriters) => "it comes to rest";
    a_new_name_for_every_try_is_found: with(Bug::NewNames) => "no page twice";
    a_memory_of_names_is_found: with(Bug::RemembersNames) => SETTLED;
    a_finalizer_that_comes_late_is_found: with(Bug::FinalizerLate) => RECORDS;
    a_status_that_tells_the_time_is_found: with(Bug::TellsTime) => "it comes to rest";
    the_order_of_a_hash_map_is_found: with(Bug::HashOrder) => "it comes to rest";
    an_error_taken_for_success_is_found: with(Bug::SwallowsErrors) => SETTLED;
    acting_on_an_old_incarnation_is_found:
        Setup { planted: &[Planted::NoBarrier], unguarded: true, ..with(Bug::CleansByName) } => WANTED;
    acting_on_an_old_spec_is_found: Setup { planted: &[Planted::NoBarrier], unguarded: true, ..RIGHT } => WANTED;
    an_effect_on_behalf_of_an_old_view_is_found: Setup { planted: &[Planted::NoBarrier], ..RIGHT } => RECORDS;
    not_noticing_what_vanished_is_found: Setup { planted: &[Planted::NothingVanishes], ..RIGHT } => SETTLED;
}

#[test]
fn creating_twice_on_a_lagging_cache_is_found() {
    let setup = Setup { planted: &[Planted::NoReadYourWrites], ..with(Bug::NewNames) };
    found("no read-your-writes", "no page twice", |given| scene(given, setup).without(Fault::CommitLate));
}
