//! The README's pictures: a terminal in which the demo's commands are typed, and the page of its result.
//!
//! All of it happens: a machine of its own (`parts::machine`) with containerd and applyd, the example's images, commands on
//! a pseudo-terminal. A terminal emulator makes cells of what they print, live views included, and the cells become an SVG.

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vt100::{Cell, Color, Parser};

use crate::browser;
use crate::demo::BUNDLE;
use crate::images::workspace;
use crate::parts::installation::{fetch, program};
use crate::parts::machine::{Machine, Options, PATIENCE};
use crate::parts::process::wait_until;

/// A README is some 830 pixels wide: with so many columns letters are as large there as the text around them.
const COLUMNS: u16 = 92;
/// More than are ever written: nothing scrolls away.
const ROWS: u16 = 200;
const ADDRESS: &str = "10.0.0.1";
/// Who voted for what before the picture of the result is taken.
const VOTES: &str = "aabababaabba";

/// Makes `demo.svg` and `result.png` in a folder. Takes a minute; needs root.
pub fn make(out: &Path) -> Result<()> {
    let mut machine = Machine::new("picture", &Options::default())?;
    machine.boot()?;
    let link =
        format!("ip link add eth0 type veth peer eth1 && ip addr add {ADDRESS}/24 dev eth0 && ip link set eth0 up");
    ensure!(machine.inside("sh").args(["-c", &link]).status()?.success(), "the machine has no address");
    machine.tell_applyd(&["--advertise", ADDRESS]);
    machine.start_containerd()?;
    machine.start_applyd()?;
    machine.load(BUNDLE)?;

    let mut terminal = Terminal { machine: &machine, emulator: Parser::new(ROWS, COLUMNS, 0) };
    terminal.runs("applyctl deploy voting-app voting-app.dab --with voting-app.yaml")?;
    terminal.runs("applyctl service ls")?;
    let [pid, restarts] = first_vote(&machine)?;
    terminal.shows(&format!("kill -9 {pid}\x1b[0;2m        # the first container of voting-app-vote"));
    ensure!(machine.inside("kill").args(["-9", &pid.to_string()]).status()?.success(), "could not kill {pid}");
    wait_until("the container to come back", PATIENCE, || {
        first_vote(&machine).is_ok_and(|[other, again]| other != pid && again > restarts)
    })?;
    terminal.runs("applyctl ps voting-app-vote")?;
    terminal.runs("applyctl scale voting-app-vote=6")?;
    fs::create_dir_all(out)?;
    fs::write(out.join("demo.svg"), svg(&terminal.emulator))?;

    for vote in VOTES.chars() {
        let form = format!("vote={vote}");
        fetch(machine.inside("curl"), &["-o", "/dev/null", "-d", &form, "http://127.0.0.1:5000/"])?;
    }
    let scratch = machine.folder().join("browser");
    fs::create_dir_all(&scratch)?;
    let [vote, result] = [5000, 5001].map(|port| format!("http://{ADDRESS}:{port}/"));
    browser::vote_and_see(&vote, &result, &scratch, Some(&machine.netns()))?;
    fs::copy(scratch.join("result.png"), out.join("result.png"))?;
    Ok(())
}

/// Process and restarts of the running task in the first slot of `vote`.
fn first_vote(machine: &Machine) -> Result<[u64; 2]> {
    let tasks = machine.person().list("task")?;
    let is_first = |task: &&Value| task["spec"]["service"] == "voting-app-vote" && task["spec"]["slot"] == 1;
    let status = &tasks.iter().find(is_first).context("no task of vote")?["status"];
    ensure!(status["state"] == "Running", "it does not run");
    Ok([status["pid"].as_u64().context("no process")?, status["restarts"].as_u64().unwrap_or(0)])
}

struct Terminal<'m> {
    machine: &'m Machine,
    emulator: Parser,
}

impl Terminal<'_> {
    /// A line that somebody types.
    fn shows(&mut self, line: &str) {
        let above = if self.emulator.screen().cursor_position() == (0, 0) { "" } else { "\r\n" };
        self.emulator.process(format!("{above}\x1b[34m$\x1b[0m \x1b[1m{line}\x1b[0m\r\n").as_bytes());
    }

    /// The same, and what comes of it.
    fn runs(&mut self, line: &str) -> Result<()> {
        self.shows(line);
        let programs = program("applyctl")?.parent().context("a program lies in a folder")?.to_owned();
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
        let mut child = Command::new("script")
            .args(["-qec", &format!("stty cols {COLUMNS} rows 50; exec {line}"), "/dev/null"])
            .current_dir(workspace().join("examples/voting-app"))
            .env("PATH", path)
            .env("TERM", "xterm-256color")
            .env("APPLY_HOST", format!("unix://{}", self.machine.person().socket.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("could not start script")?;
        // Held open: at its end `script` would type ^D.
        let stdin = child.stdin.take();
        let mut printed = Vec::new();
        child.stdout.take().context("its output is piped")?.read_to_end(&mut printed)?;
        drop(stdin);
        let status = child.wait()?;
        self.emulator.process(&printed);
        ensure!(status.success(), "{line}: {status}: {}", String::from_utf8_lossy(&printed));
        Ok(())
    }
}

const CELL: f32 = 8.6;
const LINE: f32 = 20.0;
const MARGIN: f32 = 22.0;
const TOP: f32 = 58.0;

/// What is on the screen, as a window. Each run of letters of one look is as wide as its cells, whatever the font is.
fn svg(emulator: &Parser) -> String {
    let screen = emulator.screen();
    let rows = screen.cursor_position().0;
    let (width, height) = (f32::from(COLUMNS) * CELL + 2.0 * MARGIN, TOP + f32::from(rows) * LINE);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\">\n\
         <title>apply: the voting application is deployed, loses a container, is scaled</title>\n<style>\n\
         text {{ font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace; \
         white-space: pre; fill: #d7dee6 }}\n\
         .bold {{ font-weight: 600; fill: #ffffff }} .faint {{ fill: #8b98a5 }} .red {{ fill: #ff7b72 }}\n\
         .green {{ fill: #4ac26b }} .yellow {{ fill: #e3b341 }} .blue {{ fill: #6cb6ff }}\n</style>\n\
         <rect width=\"{width:.0}\" height=\"{height:.0}\" rx=\"10\" fill=\"#12181f\"/>\n"
    );
    for (at, color) in [(24, "#ff5f57"), (44, "#febc2e"), (64, "#28c840")] {
        let _ = writeln!(text, "<circle cx=\"{at}\" cy=\"22\" r=\"6\" fill=\"{color}\"/>");
    }
    for row in 0..rows {
        let cells = (0..COLUMNS).filter_map(|column| screen.cell(row, column)).collect::<Vec<_>>();
        // Letters that a monospaced font may lack stand alone, so that they shift nobody.
        let run = |a: &&Cell, b: &&Cell| look(a) == look(b) && a.contents().is_ascii() && b.contents().is_ascii();
        let mut column = 0;
        for run in cells.chunk_by(run) {
            let letters: String =
                run.iter().map(|cell| if cell.has_contents() { cell.contents() } else { " " }).collect();
            let (from, letters) = (column + letters.len() - letters.trim_start().len(), letters.trim());
            column += run.len();
            if letters.is_empty() {
                continue;
            }
            let (x, y) = (MARGIN + from as f32 * CELL, TOP + f32::from(row) * LINE);
            let length = letters.chars().count() as f32 * CELL;
            let letters = letters.replace('&', "&amp;").replace('<', "&lt;");
            let _ = writeln!(
                text,
                "<text class=\"{}\" x=\"{x:.1}\" y=\"{y:.0}\" textLength=\"{length:.1}\">{letters}</text>",
                look(run[0])
            );
        }
    }
    text + "</svg>\n"
}

/// The class of a cell's letter.
fn look(cell: &Cell) -> &'static str {
    match cell.fgcolor() {
        Color::Idx(1) => "red",
        Color::Idx(2) => "green",
        Color::Idx(3) => "yellow",
        Color::Idx(4) => "blue",
        _ if cell.bold() => "bold",
        _ if cell.dim() => "faint",
        _ => "plain",
    }
}
