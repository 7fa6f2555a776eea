//! Where a command's words go: data to one side, talk to the other; colour and redrawing only for a terminal.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use unicode_width::UnicodeWidthChar;

use super::args::ColorChoice;
use super::table::Look;

/// Both outputs of a command and what they can show.
pub struct Screen {
    out: Box<dyn Write>,
    talk: Box<dyn Write>,
    /// Characters in a line, where the talk goes to a terminal: then things are redrawn in place.
    pub width: Option<usize>,
    pub color: bool,
    /// The same of the data, where that goes to a terminal.
    pub columns: Option<usize>,
    /// Only data and failures.
    pub quiet: bool,
    /// How wide the lines are that [`Screen::redraw`] drew last.
    drawn: Vec<usize>,
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
        let columns = out.is_terminal().then(|| size(&out).columns);
        let width = (talk.is_terminal() && !plain_terminal()).then(|| size(&talk).columns);
        Self {
            out: Box::new(io::BufWriter::new(out)),
            talk: Box::new(talk),
            width,
            color,
            columns,
            quiet,
            drawn: Vec::new(),
        }
    }

    /// Into the hands of a test, or of another program.
    pub fn into_writers(out: Box<dyn Write>, talk: Box<dyn Write>) -> Self {
        Self { out, talk, width: None, color: false, columns: None, quiet: false, drawn: Vec::new() }
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

    /// Draws a block in place of the one that was drawn before, as much of it as there is room for. Only on a terminal.
    pub fn redraw(&mut self, lines: &[String]) -> io::Result<()> {
        if self.width.is_none() {
            return Ok(());
        }
        // It may have another size by now.
        let size = size(io::stderr());
        self.width = Some(size.columns);
        let text = block(lines, &mut self.drawn, size);
        self.talk.write_all(text.as_bytes())?;
        self.talk.flush()
    }

    /// What was drawn stays, and the next block begins below.
    pub fn keep(&mut self) {
        self.drawn.clear();
    }

    /// How tables are printed here.
    pub fn look(&self) -> Look {
        Look { color: self.color, columns: self.columns }
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

/// Of a terminal.
#[derive(Clone, Copy, Debug)]
struct Size {
    columns: usize,
    rows: usize,
}

fn size(terminal: impl std::os::fd::AsFd) -> Size {
    let found = rustix::termios::tcgetwinsize(terminal).ok();
    let said = |of: fn(&rustix::termios::Winsize) -> u16, otherwise: usize| {
        // A terminal that does not know its size says 0.
        found.as_ref().map(of).filter(|number| *number > 0).map_or(otherwise, usize::from)
    };
    Size { columns: said(|size| size.ws_col, 80).max(8), rows: said(|size| size.ws_row, 24).max(2) }
}

/// What a terminal has to be sent to show these lines where it shows those drawn before.
fn block(lines: &[String], drawn: &mut Vec<usize>, size: Size) -> String {
    let mut text = String::new();
    // Lines that were drawn on a wider terminal now take several.
    let before: usize = drawn.iter().map(|width| width.div_ceil(size.columns).max(1)).sum();
    if before > 0 {
        let _ = write!(text, "\x1b[{}A", before.min(size.rows - 1));
    }
    let mut shown: Vec<String> = lines.iter().map(|line| cut(line, size.columns)).collect();
    if shown.len() >= size.rows {
        let more = shown.len() - (size.rows - 2);
        shown.truncate(size.rows - 2);
        shown.push(cut(&format!("… {more} more lines"), size.columns));
    }
    for line in &shown {
        let _ = writeln!(text, "\x1b[2K{line}");
    }
    // What is left of a longer block before.
    text.push_str("\x1b[J");
    *drawn = shown.iter().map(|line| seen_width(line)).collect();
    text
}

/// A text's letters that are seen, each with its width; what sets colours takes no room.
fn letters(line: &str) -> impl Iterator<Item = (char, usize)> {
    let mut in_escape = false;
    line.chars().map(move |c| match c {
        '\x1b' => {
            in_escape = true;
            (c, 0)
        }
        _ if in_escape => {
            in_escape = c != 'm';
            (c, 0)
        }
        _ => (c, UnicodeWidthChar::width(c).unwrap_or(0)),
    })
}

fn seen_width(line: &str) -> usize {
    letters(line).map(|(_, width)| width).sum()
}

/// As much of a line as fits into so many columns.
pub fn cut(line: &str, columns: usize) -> String {
    if seen_width(line) <= columns {
        return line.to_owned();
    }
    let (mut room, mut is_cut, mut text) = (columns.saturating_sub(1), false, String::new());
    for (c, width) in letters(line) {
        if width == 0 {
            text.push(c);
        } else if !is_cut && width <= room {
            room -= width;
            text.push(c);
        } else if !is_cut {
            is_cut = true;
            text.push('…');
        }
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
        assert_eq!(cut(&paint(true, Tone::Bad, "abcd"), 4), "\x1b[31mabcd\x1b[0m", "colours take no room");
        assert_eq!(cut("東京都庁", 6), "東京…", "a wide letter does not stand half");
    }

    #[test]
    fn a_block_is_drawn_where_the_last_one_was_whatever_became_of_the_terminal() {
        let (mut drawn, lines) = (Vec::new(), ["a".repeat(30), "b".to_owned()]);
        let wide = Size { columns: 40, rows: 10 };
        assert!(!block(&lines, &mut drawn, wide).contains('A'), "there is nothing above yet");
        assert!(block(&lines, &mut drawn, wide).starts_with("\x1b[2A"));
        // The first line now takes three.
        let narrow = Size { columns: 12, ..wide };
        assert!(block(&lines, &mut drawn, narrow).starts_with("\x1b[4A"));
        let low = Size { columns: 40, rows: 3 };
        let many: Vec<String> = (1..=9).map(|n| n.to_string()).collect();
        let text = block(&many, &mut drawn, low);
        assert_eq!(text.matches('\n').count(), 2, "{text:?}");
        assert!(text.contains("… 8 more lines"), "{text:?}");
    }

    #[test]
    fn nothing_is_painted_where_colour_is_not_wanted() {
        assert_eq!(paint(false, Tone::Bad, "x"), "x");
        assert_eq!(paint(true, Tone::Plain, "x"), "x");
    }
}
