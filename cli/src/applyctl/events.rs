//! `events`: what happened, newest last.

use super::args::{Events, Get, Which};
use super::failure::{Exit, Failure};
use super::session::Session;
use super::{find, get};

pub async fn run(session: &mut Session, events: &Events) -> Result<(), Failure> {
    let mut fields = String::new();
    if let Some(regarding) = &events.regarding {
        let Some((word, name)) = regarding.split_once('/') else {
            return Err(Failure::new(Exit::Usage, format!("--for {regarding:?} is not KIND/NAME")));
        };
        fields =
            format!("spec.regarding.kind={},spec.regarding.name={name}", find::any_kind(session, word).await?.kind);
    }
    let get = Get {
        kind: "event".into(),
        names: Vec::new(),
        which: Which { all_namespaces: events.all_namespaces, selector: String::new(), field_selector: fields },
        watch: events.watch,
    };
    get::run(session, &get).await
}
