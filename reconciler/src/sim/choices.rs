//! A run is a list of choices. Whatever could go one way or another asks here; 0 is always "nothing unusual, oldest
//! first". What is written down is where the answer was not 0, so a script is short, and taking a line out of it
//! makes that one thing ordinary again.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// What is being chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Point {
    /// Which of the runnable tasks goes next.
    Run,
    /// What happens to a commit.
    Commit,
    /// What happens to a read past the cache.
    Read,
    /// What happens to the opening of a stream.
    Open,
    /// What happens to the delivery of a batch.
    Batch,
    /// What happens to a call on an external world.
    Call,
    /// Whether a refused call is done later all the same.
    Late,
    /// How long a crashed process stays down.
    Restart,
    /// Whether, and where to, a process's wall clock jumps.
    Clock,
    /// How long the workload waits before its next step.
    Pause,
    /// Whether the outside world changes by itself.
    Drift,
}

const POINTS: [(Point, &str); 11] = [
    (Point::Run, "run"),
    (Point::Commit, "commit"),
    (Point::Read, "read"),
    (Point::Open, "open"),
    (Point::Batch, "batch"),
    (Point::Call, "call"),
    (Point::Late, "late"),
    (Point::Restart, "restart"),
    (Point::Clock, "clock"),
    (Point::Pause, "pause"),
    (Point::Drift, "drift"),
];

/// Which occasion: the `ordinal`-th time that this point comes up in this lane (a process, or the simulation itself).
/// Lanes keep choices apart: one more commit here does not shift what happens there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Occasion {
    /// What is being chosen.
    pub point: Point,
    /// For whom: a process or the simulation itself.
    pub lane: u16,
    /// Which time, from 0.
    pub ordinal: u32,
}

/// The unusual choices of a run. Its text form replays it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Script(pub BTreeMap<Occasion, u32>);

impl Script {
    /// These choices, and the usual one everywhere else.
    pub fn of(choices: impl IntoIterator<Item = (Occasion, u32)>) -> Self {
        Self(choices.into_iter().collect())
    }

    /// How many choices are unusual.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing unusual is chosen.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, value) in &self.0 {
            let name = POINTS.iter().find(|(point, _)| *point == at.point).map_or("?", |(_, name)| name);
            writeln!(f, "{name} {} {} = {value}", at.lane, at.ordinal)?;
        }
        Ok(())
    }
}

/// A text that is not a script.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {text:?} is not a choice such as \"commit 1 7 = 2\"")]
pub struct ParseScriptError {
    line: usize,
    text: String,
}

impl FromStr for Script {
    type Err = ParseScriptError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut script = Self::default();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let parsed = parse_line(line.trim());
            let (at, value) = parsed.ok_or_else(|| ParseScriptError { line: number + 1, text: line.to_owned() })?;
            script.0.insert(at, value);
        }
        Ok(script)
    }
}

fn parse_line(line: &str) -> Option<(Occasion, u32)> {
    let mut words = line.split_whitespace();
    let name = words.next()?;
    let point = POINTS.iter().find(|(_, known)| *known == name)?.0;
    let (lane, ordinal) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    (words.next()? == "=").then_some(())?;
    let value = words.next()?.parse().ok()?;
    words.next().is_none().then_some((Occasion { point, lane, ordinal }, value))
}

/// How often unusual things happen, in 1/1024 of the occasions, by point.
#[derive(Clone, Debug, Default)]
pub struct Mix(BTreeMap<Point, u32>);

impl Mix {
    /// Something unusual at `point` in so many of 1024 occasions.
    pub fn with(mut self, point: Point, per_1024: u32) -> Self {
        self.0.insert(point, per_1024);
        self
    }

    fn of(&self, point: Point) -> u32 {
        self.0.get(&point).copied().unwrap_or(0)
    }
}

/// Answers every question of one run, and writes the answers down.
#[derive(Debug)]
pub(super) struct Chooser {
    script: Script,
    /// What is not in the script is drawn from this.
    swarm: Option<(Mix, Stream)>,
    counts: BTreeMap<(Point, u16), u32>,
    made: Script,
    /// Nothing unusual happens any more.
    calm: bool,
}

impl Chooser {
    pub(super) fn new(script: Script, swarm: Option<(Mix, u64)>) -> Self {
        let swarm = swarm.map(|(mix, seed)| (mix, Stream::new(seed)));
        Self { script, swarm, counts: BTreeMap::new(), made: Script::default(), calm: false }
    }

    /// One of `options` answers, below that number; 0 is the usual one.
    pub(super) fn choose(&mut self, point: Point, lane: u16, options: u32) -> u32 {
        if options < 2 {
            return 0;
        }
        let count = self.counts.entry((point, lane)).or_default();
        let at = Occasion { point, lane, ordinal: *count };
        *count += 1;
        if self.calm {
            return 0;
        }
        let value = match (self.script.0.get(&at), &mut self.swarm) {
            (Some(value), _) => *value,
            (None, Some((mix, stream))) => {
                // Both are drawn whatever comes of it: one choice, one step of the stream.
                let (draw, which) = (stream.next() % 1024, stream.next());
                if draw < u64::from(mix.of(point)) { 1 + (which % u64::from(options - 1)) as u32 } else { 0 }
            }
            (None, None) => 0,
        };
        let value = if value < options { value } else { 0 };
        if value != 0 {
            self.made.0.insert(at, value);
        }
        value
    }

    pub(super) fn calm_down(&mut self) {
        self.calm = true;
    }

    pub(super) fn is_calm(&self) -> bool {
        self.calm
    }

    pub(super) fn made(&self) -> &Script {
        &self.made
    }

    /// How often each point came up.
    pub(super) fn counts(&self) -> &BTreeMap<(Point, u16), u32> {
        &self.counts
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub(super) struct Stream(u64);

impl Stream {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_read_back() {
        let text = "run 0 3 = 1\ncommit 2 9 = 4\ndrift 0 0 = 2\n";
        let script: Script = text.parse().unwrap();
        assert_eq!(script.to_string(), text);
        assert_eq!("commit 1 = 2".parse::<Script>().unwrap_err().line, 1);
    }

    #[test]
    fn what_a_swarm_chose_replays_as_a_script() {
        let mix = Mix::default().with(Point::Commit, 300);
        let mut first = Chooser::new(Script::default(), Some((mix, 42)));
        let chosen: Vec<u32> = (0..100).map(|n| first.choose(Point::Commit, n % 3, 5)).collect();
        assert!(chosen.iter().any(|value| *value > 0));
        let mut second = Chooser::new(first.made().clone(), None);
        let replayed: Vec<u32> = (0..100).map(|n| second.choose(Point::Commit, n % 3, 5)).collect();
        assert_eq!(chosen, replayed);
    }

    #[test]
    fn a_choice_that_does_not_exist_any_more_is_the_usual_one() {
        let mut chooser = Chooser::new("open 1 0 = 9".parse().unwrap(), None);
        assert_eq!(chooser.choose(Point::Open, 1, 4), 0);
    }
}
