//! From a run that fails to the few choices that make it fail.

use super::choices::{Occasion, Script};
use super::run::{Plan, Ran, run};
use super::scene::Scene;
use super::universe::Broken;

/// Runs that shrinking may take.
const BUDGET: usize = 800;

/// The smallest script found that breaks the same promise. Delta debugging (Zeller, Hildebrandt 2002): without each
/// half, each quarter, …, each single choice.
pub(super) fn shrink(build: &dyn Fn(Scene) -> Scene, failing: &Script, broken: &Broken) -> Script {
    let mut choices: Vec<(Occasion, u32)> = failing.0.iter().map(|(at, value)| (*at, *value)).collect();
    let mut budget = BUDGET;
    let mut pieces = 2;
    while !choices.is_empty() && budget > 0 {
        let size = choices.len().div_ceil(pieces);
        let mut removed = false;
        let mut start = 0;
        while start < choices.len() && budget > 0 {
            let end = (start + size).min(choices.len());
            let without: Vec<_> = choices[..start].iter().chain(&choices[end..]).copied().collect();
            budget -= 1;
            match fails(build, Script::of(without), broken) {
                // What was chosen beyond the end of the failing run is not in its script: truncated on the way.
                Some(made) => {
                    choices = made.0.into_iter().collect();
                    removed = true;
                }
                None => start = end,
            }
        }
        if !removed && size == 1 {
            break;
        }
        pieces = if removed { pieces.max(2) } else { pieces * 2 }.min(choices.len().max(1));
    }
    Script::of(choices)
}

fn fails(build: &dyn Fn(Scene) -> Scene, script: Script, broken: &Broken) -> Option<Script> {
    let ran: Ran = run(build, Plan { script, ..Plan::default() });
    let same = ran.broken.as_ref().is_some_and(|found| found.promise == broken.promise);
    same.then_some(ran.script)
}
