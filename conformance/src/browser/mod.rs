//! A person at a screen: headless Chromium, spoken to over its own debugging pipe.
//!
//! The pipe needs no library, no port and no driver of a matching version, and a browser whose pipe is closed ends itself:
//! a test that is killed leaves none behind.

mod devtools;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

pub use devtools::{Browser, Page};

/// What was seen.
#[derive(Debug)]
pub struct Seen {
    /// The container that served the page of the vote.
    pub served_by: String,
    /// Votes for A and for B before, after a vote for A, and after a change of mind.
    pub before: [u64; 2],
    pub after_a: [u64; 2],
    pub after_b: [u64; 2],
}

/// Opens both pages of the voting application, votes for A, sees the result change while it is looked at, changes the vote
/// to B, and sees that too. Nobody else may vote meanwhile.
///
/// `scratch` holds the browser's files while it runs and afterwards pictures of both pages (`vote.png`, `result.png`). With
/// `netns` the browser runs in that network namespace (a path such as `/run/netns/x`). Takes a few seconds, at most
/// one and a half minutes.
///
/// # Errors
/// The step that did not happen, with the text of the page as it was instead.
pub fn vote_and_see(vote_url: &str, result_url: &str, scratch: &Path, netns: Option<&Path>) -> Result<Seen> {
    let mut browser = Browser::start(scratch, netns)?;
    let result = browser.open(result_url).context("could not open the result page")?;
    let before = counts(&mut browser, &result, "true").context("the result page shows no counts")?;

    let vote = browser.open(vote_url).context("could not open the voting page")?;
    browser.wait(&vote, "document.querySelector('#vote-a')", PATIENCE).context("the voting page has no button")?;
    let served_by = browser.wait(&vote, "document.querySelector('#served-by').textContent", PATIENCE)?;
    let served_by = served_by.as_str().unwrap_or_default().to_owned();
    ensure!(!served_by.is_empty(), "the voting page does not say which container served it");

    let choose = |browser: &mut Browser, side: char, [a, b]: [u64; 2]| -> Result<[u64; 2]> {
        browser.click(&vote, &format!("#vote-{side}"))?;
        browser
            .wait(&vote, &format!("document.querySelector('#vote-{side}[aria-pressed=true]')"), PATIENCE)
            .with_context(|| format!("the vote for {side} was not taken"))?;
        counts(browser, &result, &format!("a === {a} && b === {b}"))
            .with_context(|| format!("after a vote for {side} the result page should show {a} and {b}"))
    };
    let [a, b] = before;
    let after_a = choose(&mut browser, 'a', [a + 1, b])?;
    let after_b = choose(&mut browser, 'b', [a, b + 1])?;
    browser.wait(&result, "document.getAnimations().length === 0", PATIENCE)?;
    browser.picture(&vote, &scratch.join("vote.png"))?;
    browser.picture(&result, &scratch.join("result.png"))?;
    Ok(Seen { served_by, before, after_a, after_b })
}

/// The counts on the result page, once it shows some for which `condition` (on `a` and `b`) holds.
fn counts(browser: &mut Browser, page: &Page, condition: &str) -> Result<[u64; 2]> {
    let look = format!(
        "(() => {{
            const [a, b] = ['#result-a', '#result-b'].map(id => parseInt(document.querySelector(id).textContent));
            return Number.isInteger(a) && Number.isInteger(b) && {condition} ? [a, b] : null;
        }})()"
    );
    let seen = browser.wait(page, &look, PATIENCE)?;
    serde_json::from_value(seen).context("the counts are not two numbers")
}

/// For each thing that should appear: a busy machine's first page takes seconds.
const PATIENCE: Duration = Duration::from_secs(20);
