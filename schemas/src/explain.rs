//! What can be said about a field to whoever asks: `applyctl explain service.spec.update`.

use reconciler_api::Kind;
use serde_json::Value;

use crate::acting;
use crate::advice;
use crate::kinds;
use crate::shape::{Field, Form, ListKind, Shape, TextFormat};

/// The answer to "what is this field?".
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// As people write the path: `service.spec.update`.
    pub path: String,
    /// Type in words: `a list of objects`.
    pub kind: String,
    /// What the type's documentation says, as one paragraph; may be empty.
    pub doc: String,
    /// As it would stand in YAML.
    pub default: Option<String>,
    /// Where the default comes from, if it has a source.
    pub source: Option<String>,
    /// What of it is refused because nothing acts on it yet.
    pub refused: Refused,
    /// Words that may stand here, each with what it means.
    pub choices: Vec<(String, String)>,
    /// Fields below, each with its type and the first sentence about it.
    pub fields: Vec<FieldLine>,
}

/// One field in the list below an explained one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldLine {
    /// As in JSON.
    pub name: String,
    /// Type in words, as [`Explanation::kind`].
    pub kind: String,
    /// Whether an object without it is refused.
    pub required: bool,
    /// First sentence of what is said about it; may be empty.
    pub summary: String,
    /// As [`Explanation::default`].
    pub default: Option<String>,
    /// As [`Explanation::refused`].
    pub refused: Refused,
}

/// What nothing acts on yet: whoever says it is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Refused {
    /// All of it acts.
    #[default]
    Nothing,
    /// These words of those that may stand there.
    Words(Vec<String>),
    /// All but what is so anyway.
    All,
}

/// Why a path cannot be explained.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// The path begins with no kind of this crate.
    #[error("{kind:?} is not a kind{advice}")]
    Kind {
        /// What was written there.
        kind: String,
        /// `; did you mean service?`, or empty.
        advice: String,
    },
    /// A step that the place before it has not.
    #[error("{at} has no field {field}{advice}")]
    Field {
        /// Path as far as it is right.
        at: String,
        /// The step behind it.
        field: String,
        /// `; did you mean image?`, `; it is a plain value`, or empty.
        advice: String,
    },
}

/// Explains a path that begins with a kind by any of its names and may go through lists (with or without `[]`) and maps
/// (`*` or any key).
///
/// # Errors
/// The first step that is not there, with what may have been meant.
pub fn explain(path: &str) -> Result<Explanation, ExplainError> {
    let mut steps = path.split('.').map(|step| step.split('[').next().unwrap_or(step)).filter(|step| !step.is_empty());
    let word = steps.next().unwrap_or_default();
    let (Some(registered), Some(shape)) = (kinds::find(word), Shape::of_kind(word)) else {
        let names: Vec<&str> = kinds::ALL.iter().map(|registered| (registered.kind)().singular.as_ref()).collect();
        let advice = advice_for(word, names);
        return Err(ExplainError::Kind { kind: word.to_owned(), advice });
    };
    let doc = Shape::doc_of_kind(word).unwrap_or_default();
    below_kind((registered.kind)(), doc, shape, steps)
}

/// The same of a kind of another author, by its shape; `path` begins with it.
///
/// # Errors
/// As [`explain`].
pub fn explain_other(kind: &Kind, doc: &str, shape: &Shape, path: &str) -> Result<Explanation, ExplainError> {
    let steps = path.split('.').map(|step| step.split('[').next().unwrap_or(step)).filter(|step| !step.is_empty());
    below_kind(kind, doc, shape, steps.skip(1))
}

fn below_kind<'a>(
    kind: &Kind,
    doc: &str,
    shape: &Shape,
    steps: impl Iterator<Item = &'a str>,
) -> Result<Explanation, ExplainError> {
    let mut at = shape;
    let mut path = kind.singular.to_string();
    // The same as the table of what acts has it: `[]` for a list, `*` for a map.
    let mut place = String::new();
    let mut field: Option<&Field> = None;
    for step in steps {
        let mut inside = at;
        while let Form::List(items, _) = &inside.form {
            inside = items;
            place.push_str("[]");
        }
        (at, field) = match &inside.form {
            Form::Object(fields) | Form::Tagged(fields) => match fields.get(step) {
                Some(field) => (&field.shape, Some(field)),
                None => {
                    let advice = advice_for(step, fields.keys().map(String::as_str).collect());
                    return Err(ExplainError::Field { at: path, field: step.to_owned(), advice });
                }
            },
            Form::Map(values) => (values.as_ref(), None),
            Form::Anything => (inside, None),
            _ => {
                return Err(ExplainError::Field {
                    at: path,
                    field: step.to_owned(),
                    advice: "; it is a plain value".into(),
                });
            }
        };
        let key = if matches!(inside.form, Form::Map(_)) { "*" } else { step };
        place = below(&place, key);
        path = format!("{path}.{step}");
    }
    Ok(Explanation {
        path,
        kind: type_of(at),
        doc: field.map_or_else(|| doc.to_owned(), |field| field.doc.clone()),
        default: field.and_then(|field| field.default.as_ref()).map(plain),
        source: field.and_then(|field| field.source.clone()),
        refused: refused(&kind.kind, &place),
        choices: choices(at),
        fields: fields(&kind.kind, &place, at),
    })
}

fn below(place: &str, step: &str) -> String {
    if place.is_empty() { step.to_owned() } else { format!("{place}.{step}") }
}

fn refused(kind: &str, place: &str) -> Refused {
    match acting::acts(kind, place) {
        (false, _) => Refused::All,
        (true, []) => Refused::Nothing,
        (true, words) => Refused::Words(words.iter().map(|word| (*word).to_owned()).collect()),
    }
}

fn advice_for(word: &str, known: Vec<&str>) -> String {
    advice::nearest(word, known).map(|near| format!("; did you mean {near}?")).unwrap_or_default()
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn choices(shape: &Shape) -> Vec<(String, String)> {
    match &shape.form {
        Form::Word(choices) => choices.iter().map(|choice| (choice.word.clone(), choice.doc.clone())).collect(),
        Form::List(items, _) => choices(items),
        _ => Vec::new(),
    }
}

fn fields(kind: &str, place: &str, shape: &Shape) -> Vec<FieldLine> {
    match &shape.form {
        Form::Object(all) | Form::Tagged(all) => all
            .iter()
            .map(|(name, field)| FieldLine {
                name: name.clone(),
                kind: type_of(&field.shape),
                required: field.required,
                summary: first_sentence(&field.doc).to_owned(),
                default: field.default.as_ref().map(plain),
                refused: refused(kind, &below(place, name)),
            })
            .collect(),
        Form::List(items, _) => fields(kind, &format!("{place}[]"), items),
        Form::Map(values) => fields(kind, &below(place, "*"), values),
        _ => Vec::new(),
    }
}

fn first_sentence(doc: &str) -> &str {
    doc.find(". ").map_or(doc, |end| &doc[..=end])
}

/// The type of a place in words.
pub(crate) fn type_of(shape: &Shape) -> String {
    match &shape.form {
        Form::Anything => "anything".into(),
        Form::Object(_) => "object".into(),
        Form::Tagged(_) => "object with one field".into(),
        Form::Map(values) => format!("map of {}", plural(values)),
        Form::List(items, ListKind::Set) => format!("set of {}", plural(items)),
        Form::List(items, _) => format!("list of {}", plural(items)),
        Form::Text(format) => match format {
            TextFormat::Plain => "string",
            TextFormat::Duration => "duration",
            TextFormat::Size => "size",
            TextFormat::Cpus => "CPUs",
            TextFormat::Cidr => "subnet",
            TextFormat::Ip => "IP address",
            TextFormat::Time => "time",
        }
        .into(),
        Form::Word(choices) => choices.iter().map(|choice| choice.word.as_str()).collect::<Vec<_>>().join(", "),
        Form::Integer { port: true, .. } => "port".into(),
        Form::Integer { .. } => "integer".into(),
        Form::Number { .. } => "number".into(),
        Form::Boolean => "boolean".into(),
        Form::Either(shapes) => shapes.iter().map(type_of).collect::<Vec<_>>().join(" or "),
    }
}

fn plural(shape: &Shape) -> String {
    match &shape.form {
        Form::Anything | Form::Word(_) | Form::Either(_) => type_of(shape),
        Form::Text(TextFormat::Cpus) => "CPUs".into(),
        Form::Text(TextFormat::Ip) => "IP addresses".into(),
        _ => format!("{}s", type_of(shape)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_explained_with_default_and_source() {
        let update = explain("service.spec.update").unwrap();
        assert_eq!(update.kind, "object");
        assert!(update.doc.starts_with("How tasks of the old template give way"));
        assert!(update.fields.iter().any(|line| line.name == "parallelism" && line.kind == "integer"));

        let parallelism = explain("svc.spec.update.parallelism").unwrap();
        assert_eq!(parallelism.default.as_deref(), Some("1"));
        assert!(parallelism.source.unwrap().starts_with("Docker's"));

        let target = explain("services.spec.endpoint.ports[].target").unwrap();
        assert_eq!((target.path.as_str(), target.kind.as_str()), ("service.spec.endpoint.ports.target", "port"));
        assert_eq!(target.default, None);

        let mode = explain("service.spec.mode").unwrap();
        assert_eq!(mode.default.as_deref(), Some("replicated"));
        assert!(mode.choices.contains(&("global".into(), "One on each node that fits.".into())));
        assert_eq!(explain("bundle.spec.services.web.replicas").unwrap().default.as_deref(), Some("1"));
        assert!(explain("task").unwrap().doc.starts_with("One task of a service."));
    }

    #[test]
    fn what_nothing_acts_on_is_named() {
        let line = |path: &str, name: &str| {
            let found = explain(path).unwrap().fields.into_iter().find(|line| line.name == name);
            found.unwrap_or_else(|| panic!("{path} has no {name}"))
        };
        let custom = Refused::Words(vec!["custom".to_owned()]);
        let acting = line("service.spec.update", "parallelism");
        assert_eq!((acting.default.as_deref(), acting.refused), (Some("1"), Refused::Nothing));
        assert_eq!(line("service.spec.update", "delay").refused, Refused::All);
        let seccomp = "template.container.privileges.seccomp";
        assert_eq!(line(&format!("service.spec.{seccomp}"), "mode").refused, custom);
        assert_eq!(line(&format!("bundle.spec.services.web.{seccomp}"), "mode").refused, custom);
        assert_eq!(line("bundle.spec.services", "job").refused, Refused::All);
        assert_eq!(explain("service.spec.endpoint.ports[].mode").unwrap().refused, Refused::Nothing);
        assert_eq!(line("network.spec", "mtu").refused, Refused::All);
        assert_eq!(explain("service").unwrap().refused, Refused::Nothing);
    }

    #[test]
    fn a_wrong_step_is_answered_with_what_was_meant() {
        for (path, said) in [
            ("servce.spec", "\"servce\" is not a kind; did you mean service?"),
            ("service.spec.updte", "service.spec has no field updte; did you mean update?"),
            ("service.spec.replicas.x", "it is a plain value"),
            ("", "\"\" is not a kind"),
        ] {
            assert!(explain(path).unwrap_err().to_string().contains(said), "{path}");
        }
    }

    #[test]
    fn every_field_of_every_kind_can_be_explained() {
        fn all(path: &str, seen: &mut usize) {
            let explanation = explain(path).unwrap_or_else(|error| panic!("{path}: {error}"));
            *seen += 1;
            assert!(explanation.doc.ends_with('.'), "{path}: {:?} is no sentence", explanation.doc);
            for (word, doc) in explanation.choices {
                assert!(doc.ends_with('.'), "{path} = {word}: {doc:?} is no sentence");
            }
            for line in explanation.fields {
                all(&format!("{path}.{}", line.name), seen);
            }
        }
        let mut seen = 0;
        for registered in kinds::ALL {
            all(&(registered.kind)().singular, &mut seen);
        }
        assert!(seen > 1_000, "{seen}");
    }
}
