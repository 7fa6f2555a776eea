//! `context`: which clusters there are, and who one is there.

use super::args::{Context as Command, ContextAdd};
use super::failure::{Exit, Failure};
use super::kubeconfig::Kubeconfig;
use super::screen::Screen;
use super::table::Table;

/// Nobody is connected to for it.
pub fn run(screen: &mut Screen, command: &Command) -> Result<(), Failure> {
    let mut own = Kubeconfig::own()?;
    match command {
        Command::Ls => list(screen, &own),
        Command::Use { name } => {
            own.context(name)?;
            own.current_context.clone_from(name);
            own.keep()?;
            Ok(screen.say(&format!("{name} is current"))?)
        }
        Command::Add(ContextAdd { file, name }) => {
            let first = own.take_over(Kubeconfig::read(file)?, name.as_deref())?;
            // What cannot be connected by is found out now.
            own.context(&first)?;
            own.keep()?;
            Ok(screen.say(&format!("{first} is current; {} is not needed any more", file.display()))?)
        }
        Command::Rm { names } => {
            for name in names {
                if !own.forget(name) {
                    return Err(Failure::new(Exit::NotFound, format!("there is no context {name}")));
                }
            }
            own.keep()?;
            Ok(screen.say(&format!("forgotten: {}", names.join(", ")))?)
        }
    }
}

fn list(screen: &mut Screen, own: &Kubeconfig) -> Result<(), Failure> {
    let mut table = Table::new(["", "NAME", "SERVER", "USER", "NAMESPACE"]);
    for name in own.names() {
        let mark = if name == own.current_context { "*" } else { "" };
        let [server, user, namespace] = own.about(name);
        let cells = [mark.to_owned(), name.to_owned(), server, user, namespace];
        table.row(cells.into_iter().map(Into::into).collect());
    }
    if table.is_empty() {
        return Ok(screen.say("no contexts; take one over: applyctl context add FILE")?);
    }
    let look = screen.look();
    Ok(screen.data(&table.print(look))?)
}
