//! `explain`: what a kind or a field means, from the schemas.

use schemas::explain::{ExplainError, Explanation, explain};
use schemas::kinds;

use super::args::Explain;
use super::failure::{Exit, Failure};
use super::session::Session;
use super::table::Table;

pub fn run(session: &mut Session, args: &Explain) -> Result<(), Failure> {
    let Some(path) = &args.path else { return all(session) };
    match explain(path) {
        Ok(explanation) => Ok(session.screen.data(&page(&explanation))?),
        Err(error) => {
            let exit = match error {
                ExplainError::Kind { .. } | ExplainError::Field { .. } => Exit::NotFound,
            };
            Err(Failure::new(exit, error.to_string()))
        }
    }
}

fn all(session: &mut Session) -> Result<(), Failure> {
    let mut table = Table::new(["KIND", "SHORT", "NAMESPACED", "WHAT IT IS"]);
    for registered in kinds::ALL {
        let kind = (registered.kind)();
        let doc = explain(&kind.singular).map(|explanation| explanation.doc).unwrap_or_default();
        let summary = doc.split_once(". ").map_or(doc.as_str(), |(first, _)| first).trim_end_matches('.').to_owned();
        table.row(vec![
            kind.plural.to_string().into(),
            kind.short_names.join(",").into(),
            if kind.scope == reconciler::api::Scope::Namespaced { "yes" } else { "no" }.into(),
            summary.into(),
        ]);
    }
    let text = table.print(session.screen.color);
    Ok(session.screen.data(&text)?)
}

fn page(explanation: &Explanation) -> String {
    let mut text = format!("{}  {}\n", explanation.path, explanation.kind);
    if !explanation.doc.is_empty() {
        text.push_str(&format!("\n{}\n", wrap(&explanation.doc, 100, "  ")));
    }
    if let Some(default) = &explanation.default {
        let source = explanation.source.as_ref().map(|source| format!("  ({source})")).unwrap_or_default();
        text.push_str(&format!("\n  default: {default}{source}\n"));
    }
    if !explanation.choices.is_empty() {
        text.push('\n');
        let width = explanation.choices.iter().map(|(word, _)| word.len()).max().unwrap_or(0);
        explanation.choices.iter().for_each(|(word, doc)| text.push_str(&format!("  {word:width$}  {doc}\n")));
    }
    if !explanation.fields.is_empty() {
        text.push('\n');
        let mut table = Table::new(["  FIELD", "TYPE", ""]);
        for line in &explanation.fields {
            let name = format!("  {}{}", line.name, if line.required { " *" } else { "" });
            table.row(vec![name.into(), line.kind.clone().into(), line.summary.clone().into()]);
        }
        text.push_str(&table.print(false));
    }
    text
}

fn wrap(text: &str, width: usize, indent: &str) -> String {
    let (mut lines, mut line) = (Vec::new(), String::new());
    for word in text.split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines.iter().map(|line| format!("{indent}{line}")).collect::<Vec<_>>().join("\n")
}
