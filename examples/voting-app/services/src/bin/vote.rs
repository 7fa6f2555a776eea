//! `vote`: a page with two choices. Each vote goes to the end of a Redis list, and who voted is thanked only after Redis
//! has it.

use std::fs::File;
use std::io::{self, Read};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use voting_app::http::{self, Request, Response};
use voting_app::page::fill;
use voting_app::stop::Stop;
use voting_app::vote::{Choice, QUEUE, Vote, is_voter};
use voting_app::{redis, settings};

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let port = settings::port("PORT", 80)?;
    if std::env::args().nth(1).as_deref() == Some("healthcheck") {
        return Ok(http::check(port));
    }
    let booth = Booth {
        options: settings::options(),
        served_by: settings::served_by(),
        redis: format!("{}:{}", settings::var("REDIS_HOST", "redis"), settings::port("REDIS_PORT", 6379)?),
        connection: Mutex::default(),
    };
    let stop = Stop::on_signal()?;
    println!("vote: {} or {}? on port {port}", booth.options[0], booth.options[1]);
    http::serve(port, &stop, move |request| booth.answer(request))?;
    println!("vote: everybody is served, goodbye");
    Ok(ExitCode::SUCCESS)
}

struct Booth {
    options: [String; 2],
    served_by: String,
    redis: String,
    /// Made when first needed, dropped at its first fault.
    connection: Mutex<Option<redis::Client>>,
}

impl Booth {
    fn answer(&self, request: &Request) -> Response {
        match (request.method.as_str(), request.path.as_str()) {
            ("GET" | "HEAD", "/") => {
                let chosen = request.cookie("vote").and_then(|choice| choice.parse().ok());
                self.page(chosen, "")
            }
            ("POST", "/") => self.take_vote(request),
            (_, "/") => Response::text("405 Method Not Allowed", "GET or POST").header("Allow", "GET, POST".into()),
            _ => Response::text("404 Not Found", "there is only /"),
        }
    }

    fn take_vote(&self, request: &Request) -> Response {
        let Some(choice) = request.field("vote").and_then(|choice| choice.parse::<Choice>().ok()) else {
            return self.page(None, "That was neither of the two.").status("400 Bad Request");
        };
        let known = request.cookie("voter_id").filter(|id| is_voter(id)).map(str::to_owned);
        let Some(voter) = known.or_else(|| new_voter().ok()) else {
            return Response::text("500 Internal Server Error", "no randomness");
        };
        let vote = Vote { voter, choice, cast_at: now() };
        match self.push(&vote) {
            Ok(()) => Response::see_other("/")
                .header(
                    "Set-Cookie",
                    format!("voter_id={}; Path=/; Max-Age=31536000; HttpOnly; SameSite=Lax", vote.voter),
                )
                .header("Set-Cookie", format!("vote={choice}; Path=/; Max-Age=31536000; HttpOnly; SameSite=Lax")),
            Err(cause) => {
                eprintln!("vote: a vote could not be stored: {cause}");
                let words = "Your vote could not be stored just now. Please vote again in a moment.";
                self.page(None, words).status("503 Service Unavailable")
            }
        }
    }

    /// Stores a vote. A second attempt, over a new connection, follows a failed one: Redis may have been restarted
    /// since the last vote. If the first did arrive and only its reply was lost, the vote is there twice, which is
    /// harmless: the worker counts a voter once.
    fn push(&self, vote: &Vote) -> io::Result<()> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let mut push = || {
            let client = match &mut *connection {
                Some(client) => client,
                none => none.insert(redis::Client::connect(&self.redis)?),
            };
            let pushed = client.command(&["LPUSH", QUEUE, &vote.to_string()]);
            if pushed.is_err() {
                *connection = None;
            }
            pushed.map(drop)
        };
        push().or_else(|_| push())
    }

    fn page(&self, chosen: Option<Choice>, notice: &str) -> Response {
        let pressed = |choice| if chosen == Some(choice) { "true" } else { "false" };
        let thanks = match chosen {
            Some(Choice::A) => format!("You voted for {}. You may change your mind.", self.options[0]),
            Some(Choice::B) => format!("You voted for {}. You may change your mind.", self.options[1]),
            None => notice.to_owned(),
        };
        Response::html(fill(
            include_str!("../../pages/vote.html"),
            &[
                ("option_a", &self.options[0]),
                ("option_b", &self.options[1]),
                ("pressed_a", pressed(Choice::A)),
                ("pressed_b", pressed(Choice::B)),
                ("notice", &thanks),
                ("served_by", &self.served_by),
            ],
        ))
    }
}

fn new_voter() -> io::Result<String> {
    let mut random = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(format!("{:016x}", u64::from_ne_bytes(random)))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}
