//! A right controller passes every schedule; one with a planted bug does not, and is told so in a short story.
//!
//! The bugs are one line each: of the controllers here, or of the library where that is what makes a kind of bug
//! impossible for them. Beside every schedule that is tried on a bug, the same without it is run, and must pass.

mod site;

use reconciler::controller::planted::Planted;
use reconciler::sim::{Scene, check};

use site::{Bug, Setup, leaders, pools, scene};

const SCHEDULES: usize = 500;
/// Planted bugs are found within so many, with default settings.
const AT_MOST: usize = 5_000;

const RIGHT: Setup = Setup { bug: None, planted: &[], unguarded: false, sweeper: false, held: false, in_time: false };

fn passes(name: &str, build: impl Fn(Scene) -> Scene) {
    let report = check(name, build).schedules(SCHEDULES);
    println!("{report}");
    assert!(report.contents > 30, "{report}");
}

fn found(name: &str, promises: &[&str], wrong: impl Fn(Scene) -> Scene, right: impl Fn(Scene) -> Scene) {
    match check(name, wrong).beside(right).search(AT_MOST) {
        Ok(report) => panic!("it was not found:\n{report}"),
        Err(failure) => {
            println!("{failure}");
            assert!(promises.contains(&&*failure.broken.promise), "{failure}");
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
    passes("sites with new names", |given| scene(given, NEW_NAMES_IN_TIME));
}

#[test]
fn leaders_pass() {
    passes("leaders", |given| leaders::scene(given, &[]));
}

#[test]
fn pools_pass() {
    passes("pools", |given| pools::scene(given, &[]));
}

const SETTLED: &str = "every site has its pages, and says so";
const RECORDS: &str = "a record for every site, and no other";
const WANTED: &str = "no page is deleted that is wanted";

const NEW_NAMES_IN_TIME: Setup = Setup { bug: Some(Bug::NewNames), in_time: true, ..RIGHT };
const HELD: Setup = Setup { held: true, ..RIGHT };
const SWEPT: Setup = Setup { sweeper: true, ..RIGHT };

/// The numbers are those of the kinds of published bugs that the project keeps a list of.
macro_rules! planted {
    ($($name:ident: $wrong:expr, not $right:expr => $($promise:expr),+;)*) => {$(
        #[test]
        fn $name() {
            found(stringify!($name), &[$($promise),+], |given| scene(given, $wrong), |given| scene(given, $right));
        }
    )*};
}

const fn with(bug: Bug) -> Setup {
    Setup { bug: Some(bug), ..RIGHT }
}

planted! {
    kind_01_half_done_work: with(Bug::HalfDone), not RIGHT => SETTLED;
    kind_04_a_new_name_for_every_try: with(Bug::NewNames), not RIGHT => "no page twice";
    kind_05_an_effect_on_behalf_of_an_old_view: Setup { planted: &[Planted::NoBarrier], ..RIGHT }, not RIGHT => RECORDS;
    kind_07_acting_on_an_old_incarnation:
        Setup { planted: &[Planted::NoBarrier], unguarded: true, ..with(Bug::CleansByName) }, not RIGHT => WANTED;
    kind_08_acting_on_an_old_spec:
        Setup { planted: &[Planted::NoBarrier], unguarded: true, ..RIGHT }, not RIGHT => WANTED;
    kind_11_creating_twice_on_a_lagging_cache:
        Setup { planted: &[Planted::NoReadYourWrites], ..NEW_NAMES_IN_TIME }, not NEW_NAMES_IN_TIME => "no page twice";
    kind_13_waiting_to_see_what_goes: Setup { held: true, ..with(Bug::WaitsToSeeItGo) }, not HELD => SETTLED;
    kind_14_not_noticing_what_vanished:
        Setup { planted: &[Planted::NothingVanishes], ..RIGHT }, not RIGHT => "the workload ends";
    kind_16_a_memory_of_names: with(Bug::RemembersNames), not RIGHT => SETTLED;
    kind_18_acting_before_the_cache_is_full:
        Setup { planted: &[Planted::PartialListing], ..SWEPT }, not SWEPT => WANTED, RECORDS;
    kind_25_a_finalizer_that_comes_late: with(Bug::FinalizerLate), not RIGHT => RECORDS;
    kind_30_a_status_that_tells_the_time: with(Bug::TellsTime), not RIGHT => "it comes to rest";
    kind_31_the_order_of_a_hash_map: with(Bug::HashOrder), not RIGHT => "it comes to rest";
    kind_33_two_writers_of_one_field: with(Bug::TwoWriters), not RIGHT => "it comes to rest";
    kind_37_an_error_taken_for_success: with(Bug::SwallowsErrors), not RIGHT => SETTLED;
}

#[test]
fn kind_12_a_budget_overrun() {
    let wrong = |given| pools::scene(given, &[Planted::NoReadYourWrites]);
    found("kind_12_a_budget_overrun", &["at most one member is away"], wrong, |given| pools::scene(given, &[]));
}

#[test]
fn kind_41_two_leaders() {
    let wrong = |given| leaders::scene(given, &[Planted::NoFence]);
    found("kind_41_two_leaders", &["only who leads writes"], wrong, |given| leaders::scene(given, &[]));
}
