//! What is typed and must not be seen: passwords and passphrases.

use std::io::{self, Read};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use super::failure::{Exit, Failure};
use super::session::Session;

/// Longer ones are none.
const BYTES_MAX: u64 = 64 << 10;

/// From the standard input, or asked for. `what` it is, in a word, as the flag `--WHAT-stdin` has it.
pub fn read(session: &mut Session, what: &str, question: &str, from_stdin: bool) -> Result<String, Failure> {
    let unread = |error: io::Error| Failure::new(Exit::Failed, format!("cannot read the {what}: {error}"));
    let mut text = String::new();
    if from_stdin {
        io::stdin().lock().take(BYTES_MAX).read_to_string(&mut text).map_err(unread)?;
    } else if session.can_ask {
        session.screen.fail(question)?;
        let _unseen = Unseen::begin();
        io::stdin().read_line(&mut text).map_err(unread)?;
    } else {
        let failure = Failure::new(Exit::Usage, format!("there is nobody to ask for the {what}"));
        return Err(failure.advise(format!("pass it on the standard input: --{what}-stdin < FILE")));
    }
    let text = text.trim_end_matches(['\r', '\n']).to_owned();
    if text.is_empty() { Err(Failure::new(Exit::Usage, format!("the {what} is empty"))) } else { Ok(text) }
}

/// The terminal shows nothing of what is typed.
struct Unseen {
    before: Option<Termios>,
}

impl Unseen {
    fn begin() -> Self {
        let before = tcgetattr(io::stdin()).ok();
        if let Some(mut unseen) = before.clone() {
            unseen.local_modes.remove(LocalModes::ECHO);
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &unseen);
        }
        Self { before }
    }
}

impl Drop for Unseen {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // If the terminal is gone there is nobody to give it back to.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}
