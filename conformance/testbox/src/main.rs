//! `testbox`: what runs in the containers of the suites. Static, and with no other file beside it.
//!
//! ```text
//! sleep [SECONDS]            until then, or for ever; leaves with 0 at SIGTERM
//! stubborn                   for ever, and SIGTERM changes nothing
//! slow-stop SECONDS          for ever; after SIGTERM takes this long to leave
//! signals                    prints the name of each signal that comes; leaves with 0 at SIGTERM, SIGINT, SIGUSR1
//! exit CODE [SECONDS]        leaves with this code, after this long
//! crash [SECONDS]            aborts
//! print LINES [BYTES [MS]]   numbered lines to stdout and stderr in turn, padded to this many bytes, one each MS
//! partial TEXT               text without an end of line, then for ever
//! serve PORT [SECONDS]       HTTP, listening only after this long; leaves at SIGTERM once nobody is left (see `serve`)
//! echo tcp|udp PORT          gives back what it is sent, after a first line that names this container and the peer
//! get URL                    fetches over HTTP; 0 if the answer was 200
//! say tcp|udp HOST:PORT TEXT sends, and prints what comes back within 2 s
//! names PORT NAME=IPV4...     a name server that knows these and no others
//! resolve NAME               prints its addresses, sorted
//! env | id | limits | list PATH | cat PATH | mounts
//! write PATH TEXT | append PATH TEXT
//! memory MEGABYTES           takes that much, touches it, says so, stays
//! threads COUNT              starts that many, says how many it got, stays
//! spin SECONDS               uses a whole core
//! ```

mod net;
mod serve;

use std::env::args;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};
use std::{fs, process};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

fn main() -> ExitCode {
    let words: Vec<String> = args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(code) => code,
        Err(cause) => {
            eprintln!("testbox {}: {cause}", words.join(" "));
            ExitCode::from(USAGE_OR_FAILURE)
        }
    }
}

fn run(words: &[&str]) -> io::Result<ExitCode> {
    match *words {
        ["sleep"] => leave_at_signal(),
        ["sleep", time] => {
            let time = seconds(time)?;
            thread::spawn(leave_at_signal);
            sleep(time);
        }
        ["stubborn"] => {
            for signal in &mut Signals::new([SIGTERM, SIGINT])? {
                println!("ignoring signal {signal}");
            }
        }
        ["slow-stop", time] => {
            let time = seconds(time)?;
            leave_at_signal_after(time);
        }
        ["signals"] => print_signals()?,
        ["exit", code] => return Ok(ExitCode::from(number(code)? as u8)),
        ["exit", code, time] => {
            let code = number(code)? as u8;
            thread::spawn(leave_at_signal);
            sleep(seconds(time)?);
            return Ok(ExitCode::from(code));
        }
        ["crash"] => process::abort(),
        ["crash", time] => {
            sleep(seconds(time)?);
            process::abort();
        }
        ["print", lines] => print(number(lines)?, 0, 0)?,
        ["print", lines, bytes] => print(number(lines)?, number(bytes)?, 0)?,
        ["print", lines, bytes, pause] => print(number(lines)?, number(bytes)?, number(pause)?)?,
        ["partial", text] => {
            print!("{text}");
            io::stdout().flush()?;
            leave_at_signal();
        }
        ["serve", port] => serve::serve(number(port)? as u16, Duration::ZERO)?,
        ["serve", port, delay] => serve::serve(number(port)? as u16, seconds(delay)?)?,
        ["echo", "tcp", port] => {
            thread::spawn(leave_at_signal);
            net::echo_tcp(number(port)? as u16)?;
        }
        ["echo", "udp", port] => {
            thread::spawn(leave_at_signal);
            net::echo_udp(number(port)? as u16)?;
        }
        ["names", port, ref known @ ..] => {
            thread::spawn(leave_at_signal);
            net::names(number(port)? as u16, known)?;
        }
        ["get", url] => {
            let (ok, answer) = net::get(url)?;
            print!("{answer}");
            return Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        ["say", "tcp", address, text] => print!("{}", net::say_tcp(address, text)?),
        ["say", "udp", address, text] => print!("{}", net::say_udp(address, text)?),
        ["resolve", name] => println!("{}", net::resolve(name)?.join("\n")),
        ["env"] => std::env::vars().for_each(|(name, value)| println!("{name}={value}")),
        ["id"] => print_status(&["Uid", "Gid", "Groups", "CapPrm", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp"])?,
        ["limits"] => print!("{}", fs::read_to_string("/proc/self/limits")?),
        ["mounts"] => print!("{}", fs::read_to_string("/proc/self/mounts")?),
        ["list", path] => list(Path::new(path))?,
        ["cat", path] => io::stdout().write_all(&fs::read(path)?)?,
        ["write", path, text] => fs::write(path, format!("{text}\n"))?,
        ["append", path, text] => {
            fs::OpenOptions::new().create(true).append(true).open(path)?.write_all(format!("{text}\n").as_bytes())?;
        }
        ["memory", megabytes] => {
            // Written to, as memory that was only asked for does not count.
            let taken = vec![1_u8; number(megabytes)? as usize * 1_000_000];
            println!("{} bytes taken", taken.len());
            leave_at_signal();
            drop(taken);
        }
        ["threads", count] => {
            let wanted = number(count)?;
            let got = (0..wanted)
                .take_while(|_| thread::Builder::new().stack_size(64 * 1024).spawn(|| sleep(FOR_EVER)).is_ok())
                .count();
            println!("{got} of {wanted} threads");
            leave_at_signal();
        }
        ["spin", time] => {
            let end = Instant::now() + seconds(time)?;
            while Instant::now() < end {}
        }
        _ => return Err(io::Error::other("there is no such command; they are listed at the top of its source")),
    }
    Ok(ExitCode::SUCCESS)
}

fn leave_at_signal() {
    leave_at_signal_after(Duration::ZERO);
}

fn leave_at_signal_after(time: Duration) {
    let mut signals = Signals::new([SIGTERM, SIGINT]).expect("these two may be caught");
    if let Some(signal) = signals.forever().next() {
        println!("leaving at signal {signal}");
        sleep(time);
        process::exit(0);
    }
}

fn print_signals() -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2])?;
    println!("waiting for signals");
    for signal in signals.forever() {
        let name = signal_hook::low_level::signal_name(signal).unwrap_or("?");
        println!("{name}");
        if [SIGTERM, SIGINT, SIGUSR1].contains(&signal) {
            break;
        }
    }
    Ok(())
}

fn print(lines: u64, bytes: u64, pause: u64) -> io::Result<()> {
    thread::spawn(leave_at_signal);
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    for line in 1..=lines {
        let text = format!("{line:08} {:.<1$}\n", "", bytes.saturating_sub(10) as usize);
        match line % 2 {
            1 => out.write_all(text.as_bytes())?,
            _ => err.write_all(text.as_bytes())?,
        }
        sleep(Duration::from_millis(pause));
    }
    Ok(())
}

fn print_status(wanted: &[&str]) -> io::Result<()> {
    for line in fs::read_to_string("/proc/self/status")?.lines() {
        if let Some((name, value)) = line.split_once(':')
            && wanted.contains(&name)
        {
            println!("{name} {}", value.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    Ok(())
}

/// Every path below, sorted, with kind, mode, owner, size and what a link points at.
fn list(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let about = fs::symlink_metadata(path)?;
    let kind = match about.file_type() {
        kind if kind.is_dir() => 'd',
        kind if kind.is_symlink() => 'l',
        kind if kind.is_file() => '-',
        _ => '?',
    };
    let size = if kind == '-' { about.size() } else { 0 };
    let target = fs::read_link(path).map(|target| format!(" -> {}", target.display())).unwrap_or_default();
    println!("{kind} {:04o} {}:{} {size} {}{target}", about.mode() & 0o7777, about.uid(), about.gid(), path.display());
    if kind == 'd' {
        let mut inside = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        inside.sort();
        inside.iter().try_for_each(|path| list(path))?;
    }
    Ok(())
}

fn number(word: &str) -> io::Result<u64> {
    word.parse().map_err(|_| io::Error::other(format!("{word} is not a number")))
}

fn seconds(word: &str) -> io::Result<Duration> {
    let seconds = word.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| io::Error::other(format!("{word} is not a number of seconds")))
}

const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);
/// Unlike the codes that tests ask for by `exit`.
const USAGE_OR_FAILURE: u8 = 125;
