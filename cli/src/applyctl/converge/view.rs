//! Progress as text: a block that is redrawn on a terminal, or one line for each thing that changed.

use std::collections::BTreeMap;
use std::time::Duration;

use super::progress::{Line, Progress};
use crate::applyctl::screen::{Tone, paint};
use crate::applyctl::words;

/// At most so many nodes are named in a line.
const NODES: usize = 3;

/// The whole block.
pub fn block(title: &str, progress: &Progress, note: &str, color: bool) -> Vec<String> {
    let mut lines = vec![format!("{title}   {}{note}", summary(progress))];
    let widths = Widths::of(&progress.lines);
    lines.extend(progress.lines.iter().map(|line| format!("  {}", render(line, &widths, color))));
    if let Some(problem) = &progress.problem {
        lines.push(format!("  {} {}", paint(color, Tone::Bad, "✗"), problem.message));
    }
    lines
}

/// `5 services, 2 networks`.
pub fn summary(progress: &Progress) -> String {
    let mut text = words::count(progress.lines.len(), "service");
    if progress.networks > 0 {
        text.push_str(&format!(", {}", words::count(progress.networks, "network")));
    }
    text
}

#[derive(Default)]
struct Widths {
    name: usize,
    count: usize,
    state: usize,
}

impl Widths {
    fn of(lines: &[Line]) -> Self {
        let widest = |of: fn(&Line) -> usize| lines.iter().map(of).max().unwrap_or(0);
        Self {
            name: widest(|line| words::width(&line.name)),
            count: widest(|line| counted(line).len()),
            state: widest(|line| words::width(&line.state)),
        }
    }
}

fn counted(line: &Line) -> String {
    format!("{}/{}", line.running, line.desired)
}

fn mark(line: &Line) -> (&'static str, Tone) {
    match &line.trouble {
        _ if line.up => ("●", Tone::Good),
        Some(trouble) if trouble.kind.patience().is_some() => ("✗", Tone::Bad),
        _ => ("◐", Tone::Busy),
    }
}

fn render(line: &Line, widths: &Widths, color: bool) -> String {
    let (mark, tone) = mark(line);
    let mark = paint(color, tone, mark);
    let (count, nodes) = (counted(line), nodes(&line.nodes));
    let text = format!(
        "{}  {mark} {count:count_width$}  {}  {nodes}  {}",
        words::padded(&line.name, widths.name),
        words::padded(&line.state, widths.state),
        words::line(&line.detail),
        count_width = widths.count,
    );
    text.trim_end().to_owned()
}

fn nodes(names: &[String]) -> String {
    let mut text = names.iter().take(NODES).map(String::as_str).collect::<Vec<_>>().join(" ");
    if names.len() > NODES {
        text.push_str(&format!(" +{}", names.len() - NODES));
    }
    text
}

/// Lines that say something new since the last call; for outputs that are no terminal.
#[derive(Debug, Default)]
pub struct Journal {
    said: BTreeMap<String, String>,
}

impl Journal {
    pub fn news(&mut self, progress: &Progress) -> Vec<String> {
        let mut news = Vec::new();
        let widths = Widths { name: Widths::of(&progress.lines).name, ..Widths::default() };
        let problem = progress.problem.iter().map(|problem| (String::new(), format!("✗ {}", problem.message)));
        let lines = progress.lines.iter().map(|line| {
            // How much of an image is there changes all the time, and that it is pulled is news once.
            let quiet =
                if line.state == "pulling" { Line { detail: String::new(), ..line.clone() } } else { line.clone() };
            (line.name.clone(), render(&quiet, &widths, false))
        });
        for (key, text) in lines.chain(problem) {
            if self.said.get(&key) != Some(&text) {
                news.push(text.clone());
                self.said.insert(key, text);
            }
        }
        news
    }
}

/// `voting-app is up: 5 services, 5 tasks, 6.2 s`.
pub fn done(title: &str, progress: &Progress, took: Duration) -> String {
    let tasks: u32 = progress.lines.iter().map(|line| line.running).sum();
    let services = words::count(progress.lines.len(), "service");
    let verb = if progress.lines.len() == 1 || !title.contains(", ") { "is" } else { "are" };
    format!("{title} {verb} up: {services}, {}, {}", words::count(tasks as usize, "task"), words::fine(took))
}
