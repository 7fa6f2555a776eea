//! `logs`: what a task, or all tasks of a service, printed.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{BoxStream, SelectAll};
use hyper::Method;
use reconciler::Resource;
use reconciler::objects::remote::connection::Lines;
use reconciler::objects::{PageRequest, Remote, Selection, Selector};
use schemas::kinds::labels;
use schemas::kinds::service::Service;
use schemas::kinds::task::{Task, TaskState};

use super::args::Logs;
use super::failure::{Exit, Failure};
use super::find::{self, Running};
use super::session::Session;
use super::words;
use crate::stream::{Decoder, Frame, LogQuery, task_path};

/// While following a service, new tasks of it are looked for this often.
const NEW_TASKS: Duration = Duration::from_secs(1);

/// Which task printed what.
struct Printed {
    prefix: String,
    frame: Result<Frame, Failure>,
}

pub async fn run(session: &mut Session, logs: &Logs) -> Result<(), Failure> {
    let query = LogQuery {
        follow: logs.follow,
        tail_lines: logs.tail,
        since_time: logs.since.as_deref().map(|text| since(session, text)).transpose()?,
        timestamps: logs.timestamps,
    };
    let remote = session.remote()?;
    let mut streams: SelectAll<BoxStream<'static, Printed>> = SelectAll::new();
    let (mut known, mut left_out): (BTreeSet<String>, BTreeSet<String>) = Default::default();
    let mut ends = LineEnds::default();
    let service = match find::running(session, &logs.name).await? {
        Running::Task(task) => {
            streams.push(open(&remote, &session.namespace, &task, &query, String::new()).await?);
            None
        }
        Running::Service(service) => {
            more(session, &remote, &service, &query, &mut known, &mut left_out, &mut streams).await?;
            Some(service)
        }
    };
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    loop {
        let following = logs.follow && service.is_some();
        if streams.is_empty() && !following {
            break;
        }
        tokio::select! {
            biased;
            _ = &mut interrupted => return Ok(()),
            printed = streams.next(), if !streams.is_empty() => {
                match printed {
                    // The machine of one of several has gone; the manager, if that is what it is, is asked again anyway.
                    Some(Printed { prefix, frame: Err(failure) })
                        if following && failure.exit == Exit::Unreachable =>
                    {
                        ends.print(session, Printed { prefix, frame: Ok(Frame::Notice("its machine has gone".into())) })?;
                    }
                    Some(printed) => ends.print(session, printed)?,
                    None => {}
                }
            }
            () = session.seams.sleep(NEW_TASKS), if following => {
                if let Some(service) = &service {
                    more(session, &remote, service, &query, &mut known, &mut left_out, &mut streams).await?;
                }
            }
        }
    }
    if let (Some(service), true) = (&service, known.is_empty() && left_out.is_empty()) {
        session.screen.say(&format!("{} has no tasks yet", service.name()))?;
    }
    match left_out.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(Exit::Failed, "not all of it was there to be read")),
    }
}

/// A time, or how long ago.
fn since(session: &Session, text: &str) -> Result<schemas::Timestamp, Failure> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    words::parse_duration(text).map(|ago| session.now() - ago).map_err(|_| {
        Failure::new(Exit::Usage, format!("--since {text:?} is neither a time nor a duration"))
            .advise("say 10m, or 2026-11-25T18:02:11Z")
    })
}

/// Opens the logs of the service's tasks that are not open yet.
async fn more(
    session: &mut Session,
    remote: &Remote,
    service: &Service,
    query: &LogQuery,
    known: &mut BTreeSet<String>,
    left_out: &mut BTreeSet<String>,
    streams: &mut SelectAll<BoxStream<'static, Printed>>,
) -> Result<(), Failure> {
    let selection = Selection {
        namespace: Some(session.namespace.clone()),
        labels: Selector::equals(labels::SERVICE, service.name()),
        ..Selection::of::<Task>()
    };
    let list = session.client.objects().list(&selection, PageRequest::default()).await?;
    let mut tasks: Vec<Task> = list.items.iter().filter_map(|stored| stored.decode().ok()).collect();
    tasks.sort_by_key(|task| (task.metadata.creation_timestamp, task.spec.slot.clone()));
    for task in tasks {
        // What has not begun has printed nothing.
        let begun = task.status.as_ref().is_some_and(|status| status.state >= TaskState::Starting);
        if !begun || known.contains(task.name()) {
            continue;
        }
        known.insert(task.name().to_owned());
        let prefix = format!("{} | ", task.name());
        match open(remote, &session.namespace, task.name(), query, prefix).await {
            Ok(stream) => streams.push(stream),
            // It went meanwhile, and its logs with it.
            Err(failure) if failure.exit == Exit::NotFound => {}
            // Its machine does not answer: what the others print is worth having.
            Err(failure) if failure.exit == Exit::Failed => {
                // Asked again while it is followed, and told once.
                if left_out.insert(task.name().to_owned()) {
                    session.screen.say(&format!("{} is left out: {}", task.name(), failure.message))?;
                }
                known.remove(task.name());
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

async fn open(
    remote: &Remote,
    namespace: &str,
    task: &str,
    query: &LogQuery,
    prefix: String,
) -> Result<BoxStream<'static, Printed>, Failure> {
    let path = format!("{}?{}", task_path(namespace, task, "log"), query.to_query());
    let answer = remote.call(Method::GET, &path, bytes::Bytes::new()).await;
    let lines = answer.map_err(Failure::beside_objects)?.lines();
    let reading = (lines, Decoder::default(), false);
    Ok(futures::stream::unfold(reading, move |(mut lines, mut decoder, over)| {
        let prefix = prefix.clone();
        async move {
            if over {
                return None;
            }
            let frame = next(&mut lines, &mut decoder).await?;
            let over = frame.is_err();
            Some((Printed { prefix, frame }, (lines, decoder, over)))
        }
    })
    .boxed())
}

async fn next(lines: &mut Lines, decoder: &mut Decoder) -> Option<Result<Frame, Failure>> {
    let strange =
        |error: crate::stream::BadFrame| Failure::new(Exit::Failed, format!("the log cannot be read: {error}"));
    loop {
        match decoder.next_frame() {
            Ok(Some(frame)) => return Some(Ok(frame)),
            Ok(None) => {}
            Err(error) => return Some(Err(strange(error))),
        }
        match lines.chunk().await {
            Ok(Some(bytes)) => decoder.push(&bytes),
            Ok(None) => return decoder.end().err().map(|error| Err(strange(error))),
            Err(error) => return Some(Err(error.into())),
        }
    }
}

/// Several tasks print at once, and not whole lines at a time: a task's prefix stands where its line begins, and a line
/// of another begins on a new one.
#[derive(Debug, Default)]
struct LineEnds {
    /// Whose line has begun and not ended.
    open: Option<String>,
}

impl LineEnds {
    fn print(&mut self, session: &mut Session, printed: Printed) -> Result<(), Failure> {
        let (bytes, is_error) = match printed.frame? {
            Frame::Stdout(bytes) => (bytes, false),
            Frame::Stderr(bytes) => (bytes, true),
            Frame::Notice(text) => {
                // What follows is not the rest of a line that was cut off.
                if self.open.take().is_some() {
                    session.screen.bytes(b"\n")?;
                }
                return Ok(session.screen.say(&format!("{}({text})", printed.prefix))?);
            }
            _ => return Ok(()),
        };
        let bytes = self.with_prefix(&printed.prefix, &bytes);
        if is_error {
            session.screen.error_bytes(&bytes)?
        } else {
            session.screen.bytes(&bytes)?
        }
        Ok(())
    }

    fn with_prefix(&mut self, prefix: &str, bytes: &[u8]) -> Vec<u8> {
        if bytes.is_empty() {
            return Vec::new();
        }
        let mut text = Vec::with_capacity(bytes.len() + prefix.len());
        if self.open.as_deref().is_some_and(|open| open != prefix) {
            text.push(b'\n');
            self.open = None;
        }
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.open.is_none() {
                text.extend_from_slice(prefix.as_bytes());
            }
            text.extend_from_slice(line);
            self.open = (!line.ends_with(b"\n")).then(|| prefix.to_owned());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_several_tasks_do_not_run_into_each_other() {
        let mut ends = LineEnds::default();
        let mut text = Vec::new();
        for (prefix, piece) in [("a | ", "one\ntw"), ("a | ", "o\nthr"), ("b | ", "x\n"), ("a | ", "ee\n"), ("", "raw")]
        {
            text.extend(ends.with_prefix(prefix, piece.as_bytes()));
        }
        assert_eq!(String::from_utf8(text).unwrap(), "a | one\na | two\na | thr\nb | x\na | ee\nraw");
    }
}
