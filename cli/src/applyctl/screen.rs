//! Where a command's words go: data to one side, talk to the other; colour and redrawing only for a terminal.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use super::args::ColorChoice;

/// Both outputs of a command and what they can show.
pub struct Screen {
    out: Box<dyn Write>,
    talk: Box<dyn Write>,
    /// Characters in a line, where the talk goes to a terminal: then things are redrawn in place.
    pub width: Option<usize>,
    pub color: bool,
    /// Only data and failures.
    pub quiet: bool,
    /// Lines of the block that [`Screen::redraw`] drew last.
    drawn: usize,
}

/// How a word is meant. Never the only carrier of a meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    #[default]
    Plain,
    Good,
    Busy,
    Bad,
    Faint,
}

impl Screen {
    /// The process's own outputs.
    pub fn of_process(color: ColorChoice, quiet: bool) -> Self {
        let (out, talk) = (io::stdout(), io::stderr());
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let color = match color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => out.is_terminal() && !plain,
        };
        let width = (talk.is_terminal() && !plain_terminal())
            .then(|| rustix::termios::tcgetwinsize(&talk).map_or(80, |size| usize::from(size.ws_col).max(40)));
        Self { out: Box::new(io::BufWriter::new(out)), talk: Box::new(talk), width, color, quiet, drawn: 0 }
    }

    /// Into the hands of a test, or of another program.
    pub fn into_writers(out: Box<dyn Write>, talk: Box<dyn Write>) -> Self {
        Self { out, talk, width: None, color: false, quiet: false, drawn: 0 }
    }

    /// Data, as it is.
    pub fn data(&mut self, text: &str) -> io::Result<()> {
        self.bytes(text.as_bytes())
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.out.flush()
    }

    /// Bytes that a program wrote to its standard error.
    pub fn error_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.talk.write_all(bytes)?;
        self.talk.flush()
    }

    /// One line of talk.
    pub fn say(&mut self, line: &str) -> io::Result<()> {
        if self.quiet {
            return Ok(());
        }
        writeln!(self.talk, "{line}")?;
        self.talk.flush()
    }

    /// What is said even to whoever wants quiet.
    pub fn fail(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.talk, "{line}")?;
        self.talk.flush()
    }

    /// Draws a block in place of the one that was drawn before. Only on a terminal.
    pub fn redraw(&mut self, lines: &[String]) -> io::Result<()> {
        let Some(width) = self.width else { return Ok(()) };
        let mut text = String::new();
        if self.drawn > 0 {
            let _ = write!(text, "\x1b[{}A", self.drawn);
        }
        for line in lines {
            let _ = writeln!(text, "\x1b[2K{}", cut(line, width));
        }
        // What is left of a longer block before.
        text.push_str("\x1b[J");
        self.drawn = lines.len();
        self.talk.write_all(text.as_bytes())?;
        self.talk.flush()
    }

    /// What was drawn stays, and the next block begins below.
    pub fn keep(&mut self) {
        self.drawn = 0;
    }

    pub fn paint(&self, tone: Tone, text: &str) -> String {
        paint(self.color, tone, text)
    }
}

/// A terminal that cannot go up a line.
fn plain_terminal() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty())
}

pub fn paint(color: bool, tone: Tone, text: &str) -> String {
    let code = match tone {
        Tone::Plain => return text.to_owned(),
        Tone::Good => "32",
        Tone::Busy => "33",
        Tone::Bad => "31",
        Tone::Faint => "2",
    };
    if color && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// The first `width` characters that are seen; what sets colours takes no room.
fn cut(line: &str, width: usize) -> String {
    let (mut seen, mut in_escape, mut text) = (0, false, String::new());
    for c in line.chars() {
        match c {
            '\x1b' => in_escape = true,
            _ if in_escape => in_escape = c != 'm',
            _ if seen + 1 == width && line.chars().count() > width => {
                text.push('…');
                seen += 1;
                continue;
            }
            _ if seen >= width => continue,
            _ => seen += 1,
        }
        text.push(c);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_where_the_terminal_ends_and_keeps_its_colours() {
        assert_eq!(cut("abc", 5), "abc");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut(&paint(true, Tone::Bad, "abcdef"), 4), "\x1b[31mabc…\x1b[0m");
    }

    #[test]
    fn nothing_is_painted_where_colour_is_not_wanted() {
        assert_eq!(paint(false, Tone::Bad, "x"), "x");
        assert_eq!(paint(true, Tone::Plain, "x"), "x");
    }
}
