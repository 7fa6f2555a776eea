//! `worker`: carries votes from Redis to PostgreSQL.
//!
//! Each vote is moved to a second list, stored, and only then removed from there, so a worker may die at any moment: what
//! it had in hand is still in Redis and is stored (perhaps again) by the next one. Storing twice is harmless, as there is
//! one row a voter and an older vote never replaces a newer one. So each voter counts once, and no vote that Redis keeps
//! is lost.

use voting_app::backoff::Backoff;
use voting_app::redis::Reply;
use voting_app::stop::Stop;
use voting_app::vote::{IN_HAND, QUEUE, Vote};
use voting_app::{postgres, redis, settings};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let redis = format!("{}:{}", settings::var("REDIS_HOST", "redis"), settings::port("REDIS_PORT", 6379)?);
    let database = postgres::Settings::from_env();
    let stop = Stop::on_signal()?;
    let mut backoff = Backoff::default();
    println!("worker: from {redis} to {}", database.address);
    loop {
        let outcome = Worker::connect(&redis, &database).and_then(|mut worker| {
            println!("worker: connected");
            backoff.reset();
            worker.run(&stop)
        });
        match outcome {
            Ok(()) => break,
            Err(cause) => eprintln!("worker: {cause}; trying again"),
        }
        if backoff.wait(&stop) {
            break;
        }
    }
    println!("worker: asked to stop, goodbye");
    Ok(())
}

struct Worker {
    redis: redis::Client,
    database: postgres::Client,
}

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

impl Worker {
    /// Connects to both ends and makes the table, if it is not there.
    fn connect(redis: &str, database: &postgres::Settings) -> Result<Worker> {
        let mut worker =
            Worker { redis: redis::Client::connect(redis)?, database: postgres::Client::connect(database)? };
        // Two workers that create it at the same moment: one of them is told "duplicate key", and tries again.
        worker.database.query(
            "CREATE TABLE IF NOT EXISTS votes \
             (voter text PRIMARY KEY, choice text NOT NULL, cast_at bigint NOT NULL)",
            &[],
        )?;
        Ok(worker)
    }

    /// Works until asked to stop (`Ok`) or until one of the ends is gone.
    fn run(&mut self, stop: &Stop) -> Result<()> {
        self.take_up()?;
        while !stop.asked() {
            match self.redis.command(&["BLMOVE", QUEUE, IN_HAND, "RIGHT", "LEFT", PATIENCE_SECONDS])? {
                Reply::Text(line) => self.store(&line)?,
                // Nothing to do: time to look for what a worker that never came back had in hand. That another live
                // one may be storing the same vote right now is harmless.
                _ => self.take_up()?,
            }
        }
        Ok(())
    }

    /// Stores what was in hand, oldest first.
    fn take_up(&mut self) -> Result<()> {
        let Reply::List(lines) = self.redis.command(&["LRANGE", IN_HAND, "0", "-1"])? else {
            return Ok(());
        };
        for line in lines.into_iter().rev() {
            if let Reply::Text(line) = line {
                self.store(&line)?;
            }
        }
        Ok(())
    }

    fn store(&mut self, line: &str) -> Result<()> {
        match line.parse::<Vote>() {
            Ok(vote) => drop(self.database.query(
                "INSERT INTO votes (voter, choice, cast_at) VALUES ($1, $2, $3::text::bigint) \
                 ON CONFLICT (voter) DO UPDATE SET choice = excluded.choice, cast_at = excluded.cast_at \
                 WHERE votes.cast_at < excluded.cast_at",
                &[&vote.voter, &vote.choice.to_string(), &vote.cast_at.to_string()],
            )?),
            // It would be no better the next time.
            Err(()) => eprintln!("worker: {line:?} is not a vote, dropped"),
        }
        self.redis.command(&["LREM", IN_HAND, "-1", line])?;
        Ok(())
    }
}

/// How long Redis is asked to wait for a vote: the longest that a stop takes, and well below the client's own timeout.
const PATIENCE_SECONDS: &str = "1";
