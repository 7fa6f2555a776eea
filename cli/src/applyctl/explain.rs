//! `explain`: what a kind or a field means, from the schemas.

use reconciler::Kind;
use schemas::explain::{ExplainError, Explanation, FieldLine, Refused, explain, explain_other};
use schemas::kinds;
use schemas::shape::Shape;
use serde_json::{Value, json};

use super::args::Explain;
use super::failure::{Exit, Failure};
use super::session::Session;
use super::table::Table;
use super::{find, served, words};

pub async fn run(session: &mut Session, args: &Explain) -> Result<(), Failure> {
    let Some(path) = &args.path else { return all(session).await };
    let explanation = match explain(path) {
        Err(ExplainError::Kind { .. }) => {
            let word = path.split('.').next().unwrap_or(path);
            let kind = find::any_kind(session, word).await?;
            other(session, &kind, path).await?
        }
        explained => explained,
    };
    let explanation = explanation.map_err(|error| Failure::new(Exit::NotFound, error.to_string()))?;
    let columns = session.screen.columns.map_or(100, |columns| columns.clamp(40, 100));
    Ok(session.screen.data(&page(&explanation, columns))?)
}

/// A kind of another author, by what the cluster says of it.
async fn other(session: &Session, kind: &Kind, path: &str) -> Result<Result<Explanation, ExplainError>, Failure> {
    let schema = schema(session, kind).await?;
    let doc = schema["description"].as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    Ok(explain_other(kind, &doc, &Shape::read(&schema), path))
}

/// In JSON Schema's words again, whose definitions stand below it.
async fn schema(session: &Session, kind: &Kind) -> Result<Value, Failure> {
    let at = format!("/openapi/v3/apis/{}/{}", kind.group, kind.version);
    let mut document: Value = served::ask(&session.remote()?, &at).await?;
    let mut all = document["components"]["schemas"].take();
    let is_of = |schema: &Value| schema["x-kubernetes-group-version-kind"][0]["kind"] == *kind.kind;
    let found = all.as_object().and_then(|all| all.values().find(|schema| is_of(schema))).cloned();
    let mut schema = found.unwrap_or_else(|| json!({"type": "object"}));
    point_at_definitions(&mut all);
    point_at_definitions(&mut schema);
    schema["$defs"] = all;
    Ok(schema)
}

fn point_at_definitions(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(point_at_definitions),
        Value::Object(fields) => {
            if let Some(name) = fields.get("$ref").and_then(Value::as_str).and_then(|at| at.rsplit('/').next()) {
                let at = format!("#/$defs/{name}");
                fields.insert("$ref".into(), at.into());
            }
            fields.values_mut().for_each(point_at_definitions);
        }
        _ => {}
    }
}

async fn all(session: &mut Session) -> Result<(), Failure> {
    let mut table = Table::new(["KIND", "SHORT", "NAMESPACED", "WHAT IT IS"]);
    let row = |kind: &Kind, summary: String| {
        vec![
            kind.plural.to_string().into(),
            kind.short_names.join(",").into(),
            if kind.scope == reconciler::api::Scope::Namespaced { "yes" } else { "no" }.into(),
            summary.into(),
        ]
    };
    for registered in kinds::ALL {
        let kind = (registered.kind)();
        let doc = explain(&kind.singular).map(|explanation| explanation.doc).unwrap_or_default();
        let summary = doc.split_once(". ").map_or(doc.as_str(), |(first, _)| first).trim_end_matches('.').to_owned();
        table.row(row(kind, summary));
    }
    // Who asks without a cluster is told of ours all the same.
    for kind in served::others(session).await.unwrap_or_default() {
        table.row(row(&kind, format!("{} of {}", kind.kind, kind.api_version())));
    }
    let text = table.print(session.screen.look());
    Ok(session.screen.data(&text)?)
}

/// In lines of so many columns.
fn page(explanation: &Explanation, columns: usize) -> String {
    let mut text = format!("{}  {}\n", explanation.path, explanation.kind);
    if !explanation.doc.is_empty() {
        text.push_str(&format!("\n{}\n", wrap(&explanation.doc, columns - 2, "  ")));
    }
    if let Some(default) = &explanation.default {
        let source = explanation.source.as_ref().map(|source| format!("  ({source})")).unwrap_or_default();
        text.push_str(&format!("\n  default: {default}{source}\n"));
    }
    if let Some(refused) = refused(&explanation.refused) {
        text.push_str(&format!("\n  {refused}\n"));
    }
    if !explanation.choices.is_empty() {
        text.push('\n');
        let width = explanation.choices.iter().map(|(word, _)| word.len()).max().unwrap_or(0);
        explanation.choices.iter().for_each(|(word, doc)| text.push_str(&format!("  {word:width$}  {doc}\n")));
    }
    if !explanation.fields.is_empty() {
        text.push('\n');
        let name = |line: &FieldLine| format!("{}{}", line.name, if line.required { " *" } else { "" });
        let names = explanation.fields.iter().map(|line| words::width(&name(line))).max().unwrap_or(0);
        let kinds = explanation.fields.iter().map(|line| words::width(&line.kind)).max().unwrap_or(0);
        let indent = " ".repeat(names + kinds + 6);
        let room = columns.saturating_sub(indent.len()).max(30);
        for line in &explanation.fields {
            let summary = wrap(&said(line, &explanation.refused), room, &indent);
            let (name, kind) = (words::padded(&name(line), names), words::padded(&line.kind, kinds));
            text.push_str(format!("  {name}  {kind}  {}", summary.trim_start()).trim_end());
            text.push('\n');
        }
    }
    text
}

/// What it is, what its absence means, what of it is refused if the whole is not.
fn said(line: &FieldLine, whole: &Refused) -> String {
    let default = line.default.as_ref().filter(|default| !default.is_empty() && !default.starts_with(['{', '[']));
    let default = default.map(|default| format!("Default: {default}."));
    let refused = refused(&line.refused).filter(|_| *whole != Refused::All).map(|refused| format!("({refused})"));
    let parts = [Some(line.summary.clone()), default, refused];
    parts.into_iter().flatten().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

fn refused(refused: &Refused) -> Option<String> {
    match refused {
        Refused::Nothing => None,
        Refused::Words(words) => Some(format!("refused: nothing acts on {} yet", words.join(", "))),
        Refused::All => Some("refused: nothing acts on it yet".to_owned()),
    }
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
