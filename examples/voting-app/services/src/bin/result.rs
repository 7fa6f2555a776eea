//! `result`: a page with the counts. Whoever has it open is sent each change as it happens.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use voting_app::http::{self, Request, Response};
use voting_app::page::{fill, json_string};
use voting_app::stop::Stop;
use voting_app::{postgres, settings};

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let port = settings::port("PORT", 80)?;
    if std::env::args().nth(1).as_deref() == Some("healthcheck") {
        return Ok(http::check(port));
    }
    let options = settings::options();
    let served_by = settings::served_by();
    let tally = Arc::new(Tally {
        database: postgres::Settings::from_env(),
        options: options.clone(),
        served_by: served_by.clone(),
        state: Mutex::default(),
    });
    let stop = Stop::on_signal()?;
    println!("result: {} or {}? on port {port}", options[0], options[1]);
    http::serve(port, &stop, move |request| answer(&tally, request))?;
    println!("result: goodbye");
    Ok(ExitCode::SUCCESS)
}

fn answer(tally: &Arc<Tally>, request: &Request) -> Response {
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        return Response::text("405 Method Not Allowed", "only GET").header("Allow", "GET".into());
    }
    match request.path.as_str() {
        "/" => Response::html(fill(
            include_str!("../../pages/result.html"),
            &[("option_a", &tally.options[0]), ("option_b", &tally.options[1]), ("served_by", &tally.served_by)],
        )),
        "/api/result" => match tally.count(Duration::ZERO) {
            Ok(counts) => Response::json("200 OK", tally.json(counts)),
            Err(cause) => Response::json("503 Service Unavailable", format!("{{\"error\": {}}}", json_string(&cause))),
        },
        "/events" => {
            let (tally, mut shown) = (Arc::clone(tally), None);
            Response::events(move || {
                let now = Some(tally.count(FRESH));
                if now == shown {
                    return None;
                }
                shown = now;
                shown.as_ref().map(|counts| match counts {
                    Ok(counts) => tally.json(*counts),
                    Err(_) => "{\"waiting\": true}".to_owned(),
                })
            })
        }
        _ => Response::text("404 Not Found", "there are /, /api/result and /events"),
    }
}

/// Votes for A and for B, or why they are not known.
type Counts = Result<[u64; 2], String>;

struct Tally {
    database: postgres::Settings,
    options: [String; 2],
    served_by: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<postgres::Client>,
    last: Option<(Instant, Counts)>,
}

impl Tally {
    /// The counts, no older than this: so the database is asked as seldom with a thousand watching as with one.
    fn count(&self, age_max: Duration) -> Counts {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, counts)) = &state.last
            && at.elapsed() < age_max
        {
            return counts.clone();
        }
        // Once more over a new connection: the database may have been restarted since the last look.
        let counts = self.ask(&mut state.connection).or_else(|_| self.ask(&mut state.connection));
        let counts = counts.map_err(|cause| cause.to_string());
        state.last = Some((Instant::now(), counts.clone()));
        counts
    }

    fn ask(&self, connection: &mut Option<postgres::Client>) -> Result<[u64; 2], postgres::Error> {
        let client = match &mut *connection {
            Some(client) => client,
            none => none.insert(postgres::Client::connect(&self.database)?),
        };
        let rows = match client.query("SELECT choice, count(*) FROM votes GROUP BY choice", &[]) {
            // Nobody has voted yet: the worker makes the table.
            Err(postgres::Error::Refused { code, .. }) if code == UNDEFINED_TABLE => return Ok([0, 0]),
            Err(cause) => {
                *connection = None;
                return Err(cause);
            }
            Ok(rows) => rows,
        };
        let of = |choice: &str| {
            let row = rows.iter().find(|row| row.first().is_some_and(|name| name.as_deref() == Some(choice)));
            row.and_then(|row| row.get(1)?.as_deref()?.parse().ok()).unwrap_or(0)
        };
        Ok([of("a"), of("b")])
    }

    fn json(&self, [a, b]: [u64; 2]) -> String {
        format!(
            "{{\"a\": {a}, \"b\": {b}, \"total\": {}, \"option_a\": {}, \"option_b\": {}, \"served_by\": {}}}",
            a + b,
            json_string(&self.options[0]),
            json_string(&self.options[1]),
            json_string(&self.served_by),
        )
    }
}

const FRESH: Duration = Duration::from_millis(200);
/// PostgreSQL's code for "relation does not exist".
const UNDEFINED_TABLE: &str = "42P01";
