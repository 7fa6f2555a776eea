//! One walk of a shape over a JSON value: every field that is unknown, missing, of the wrong type or out of range, each
//! with its path and what would be right. What is at fault is taken out of the value on the way, so that whoever comes
//! next can still look at the rest.

use std::collections::BTreeMap;

use reconciler_api::Fault;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::advice;
use crate::kinds::network::Cidr;
use crate::quantity::{Cpus, Period, Size};
use crate::shape::{Choice, Field, Form, ListKind, Shape, TextFormat};

/// How strict a walk is where inputs may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// A whole object, as it is to be stored. `null` is refused where the type has no word for it; fields that are
    /// unknown below `status` pass, since a newer controller may have written them.
    Object,
    /// A whole object as people write it: `null` is the same as leaving the field out.
    File,
    /// As `File`, and nothing is needed: a part that is merged into something whole.
    Fragment,
}

/// More faults than this in one input are not looked for: nobody reads them, and hostile inputs have millions.
pub const FAULTS_MAX: usize = 200;

/// Every fault of `value` against `shape`. Afterwards `value` has the shape, whatever it was: fields at fault are gone,
/// or blank where something is needed.
pub fn walk(shape: &Shape, value: &mut Value, strictness: Strictness) -> Vec<Fault> {
    let mut walk = Walk {
        root: shape,
        strictness,
        unknown_pass: false,
        path: String::new(),
        faults: Vec::new(),
        all: std::cell::OnceCell::new(),
    };
    if !walk.visit(shape, value, Shown::Yes) {
        *value = shape.blank();
    }
    walk.faults
}

/// Paths of fields whose content must not be seen, such as `spec.password`: those that the kind has to name as
/// sensitive.
pub fn sensitive_paths(shape: &Shape) -> Vec<String> {
    let mut found = Vec::new();
    collect(shape, "", &|field| field.sensitive, &mut found);
    found
}

fn collect(shape: &Shape, path: &str, wanted: &impl Fn(&Field) -> bool, found: &mut Vec<String>) {
    let (Form::Object(fields) | Form::Tagged(fields)) = &shape.form else { return };
    for (name, field) in fields {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        if wanted(field) {
            found.push(path.clone());
        }
        collect(&field.shape, &path, wanted, found);
    }
}

/// Whether messages may repeat the value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Yes,
    No,
}

struct Walk<'a> {
    root: &'a Shape,
    strictness: Strictness,
    unknown_pass: bool,
    path: String,
    faults: Vec<Fault>,
    /// Paths of all fields, gathered when the first unknown one asks.
    all: std::cell::OnceCell<Vec<String>>,
}

impl<'a> Walk<'a> {
    fn fault(&mut self, message: impl Into<String>) -> bool {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(Fault::new(self.path.clone(), message));
        }
        false
    }

    fn at<T>(&mut self, name: &str, visit: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        if !self.path.is_empty() && !name.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(name);
        let result = visit(self);
        self.path.truncate(length);
        result
    }

    /// Whether `value` may stay where it is.
    fn visit(&mut self, shape: &'a Shape, value: &mut Value, shown: Shown) -> bool {
        if self.faults.len() >= FAULTS_MAX {
            return false;
        }
        if shape.nullable && value.is_null() {
            return true;
        }
        match &shape.form {
            Form::Anything => true,
            Form::Object(fields) => self.object(fields, value),
            Form::Map(values) => self.map(values, value),
            Form::List(items, kind) => self.list(items, kind, value),
            Form::Text(format) => self.text(*format, value, shown),
            Form::Word(choices) => self.word(choices, value),
            Form::Integer { min, max, port } => self.integer(*min, *max, *port, value),
            Form::Number { min, max } => self.number(*min, *max, value),
            Form::Boolean => match value {
                Value::Bool(_) => true,
                other => self.fault(format!("expected true or false, not {}", show(other))),
            },
            Form::Tagged(fields) => self.tagged(fields, value),
            Form::Either(shapes) => self.either(shapes, value),
        }
    }

    fn object(&mut self, fields: &'a BTreeMap<String, Field>, value: &mut Value) -> bool {
        let Value::Object(object) = value else {
            return self.fault(format!("expected an object, not {}", show(value)));
        };
        for name in object.keys().cloned().collect::<Vec<_>>() {
            match fields.get(&name) {
                Some(field) => self.at(&name, |walk| walk.field(&name, field, object)),
                None if self.unknown_pass => {}
                None => {
                    object.remove(&name);
                    self.at(&name, |walk| walk.unknown(&name, fields));
                }
            }
        }
        for (name, field) in fields {
            if field.required && !object.contains_key(name) {
                let blank = field.shape.blank();
                // A part in which nothing is needed may be left out by people: `spec` of most networks says nothing.
                let says_nothing = self.strictness == Strictness::File && blank.as_object().is_some_and(Map::is_empty);
                if self.strictness != Strictness::Fragment && !says_nothing {
                    self.at(name, |walk| walk.fault("is needed"));
                }
                object.insert(name.clone(), blank);
            }
        }
        true
    }

    fn field(&mut self, name: &str, field: &'a Field, object: &mut Map<String, Value>) {
        let Some(value) = object.get_mut(name) else { return };
        if value.is_null() && !matches!(field.shape.form, Form::Anything) {
            if self.strictness == Strictness::Object && !field.shape.nullable {
                self.fault("is null; leave the field out instead");
            }
            object.remove(name);
            return;
        }
        let outer = self.unknown_pass;
        self.unknown_pass |= self.strictness == Strictness::Object && self.path == "status";
        let shown = if field.sensitive { Shown::No } else { Shown::Yes };
        let before = self.faults.len();
        let good = self.visit(&field.shape, value, shown);
        self.unknown_pass = outer;
        if !good {
            match field.required {
                true => *value = field.shape.blank(),
                false => drop(object.remove(name)),
            }
            // What was refused is not also missing.
            debug_assert!(self.faults.len() > before || before >= FAULTS_MAX, "refused without a word");
        }
    }

    fn unknown(&mut self, name: &str, fields: &BTreeMap<String, Field>) -> bool {
        let near = advice::nearest(name, fields.keys().map(String::as_str)).map(str::to_owned);
        let meant = near.or_else(|| self.elsewhere(name));
        match meant {
            Some(meant) => self.fault(format!("unknown field; did you mean {meant}?")),
            None if fields.is_empty() => self.fault("unknown field; there are none here"),
            None if fields.len() <= 12 => {
                let known = fields.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                self.fault(format!("unknown field; known here: {known}"))
            }
            None => self.fault("unknown field"),
        }
    }

    /// Where in the same object a field of this name, or of the name that we have for it, would be right.
    fn elsewhere(&self, name: &str) -> Option<String> {
        let ours = FOREIGN_NAMES.iter().find(|(foreign, _)| *foreign == name).map_or(name, |(_, ours)| ours);
        let found = self.all.get_or_init(|| {
            let mut found = Vec::new();
            collect(self.root, "", &|_| true, &mut found);
            found
        });
        let ends = |path: &&String| path.strip_suffix(ours).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        let mut fitting =
            found.iter().filter(ends).filter(|path| !path.starts_with("status") && !path.starts_with("metadata"));
        match (fitting.next(), fitting.next()) {
            (Some(only), None) => Some(only.clone()),
            _ => None,
        }
    }

    fn map(&mut self, values: &'a Shape, value: &mut Value) -> bool {
        let Value::Object(map) = value else {
            return self.fault(format!("expected an object, not {}", show(value)));
        };
        let prune =
            self.strictness != Strictness::Object && !values.nullable && !matches!(values.form, Form::Object(_));
        map.retain(|_, value| !prune || !value.is_null());
        // Each is a whole of its own: what was meant is told by its path inside it.
        let outer = matches!(values.form, Form::Object(_))
            .then(|| (std::mem::replace(&mut self.root, values), std::mem::take(&mut self.all)));
        let mut refused = Vec::new();
        for (name, value) in map.iter_mut() {
            if value.is_null() && matches!(values.form, Form::Object(_)) && self.strictness != Strictness::Object {
                *value = values.blank();
            }
            if !self.at(name, |walk| walk.visit(values, value, Shown::Yes)) {
                refused.push(name.clone());
            }
        }
        map.retain(|name, _| !refused.contains(name));
        if let Some((root, all)) = outer {
            (self.root, self.all) = (root, all);
        }
        true
    }

    fn list(&mut self, items: &'a Shape, kind: &ListKind, value: &mut Value) -> bool {
        let Value::Array(list) = value else {
            let advice = match (&*value, &items.form) {
                (Value::String(text), Form::Text(_)) if text.len() <= SHOWN_MAX => format!("; write [{text:?}]"),
                _ => String::new(),
            };
            return self.fault(format!("expected a list, not {}{advice}", show(value)));
        };
        for (index, item) in list.iter_mut().enumerate() {
            if !self.at(&format!("[{index}]"), |walk| walk.visit(items, item, Shown::Yes)) {
                *item = items.blank();
            }
        }
        self.repeated(items, kind, list);
        true
    }

    /// Entries of a list that are one: the second is a mistake, and which of them would win is nobody's guess.
    fn repeated(&mut self, items: &Shape, kind: &ListKind, list: &[Value]) {
        let faulty: Vec<bool> = (0..list.len())
            .map(|index| {
                let element = format!("{}[{index}]", self.path);
                self.faults.iter().any(|fault| fault.path.starts_with(&element))
            })
            .collect();
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for (index, item) in list.iter().enumerate().filter(|(index, _)| !faulty[*index]) {
            let Some(key) = list_key(items, kind, item) else { continue };
            if let Some(first) = seen.insert(key, index) {
                let message = match kind {
                    ListKind::Map(fields) => {
                        let said =
                            fields.iter().filter_map(|field| item.get(field)).map(show_plain).collect::<Vec<_>>();
                        format!("{} is given twice; the first is [{first}]", said.join(" "))
                    }
                    _ => format!("{} is given twice; the first is [{first}]", show_plain(item)),
                };
                self.at(&format!("[{index}]"), |walk| walk.fault(message));
            }
        }
    }

    fn text(&mut self, format: TextFormat, value: &mut Value, shown: Shown) -> bool {
        let expected = match format {
            TextFormat::Plain => "a string",
            TextFormat::Duration => "a duration, such as 10s",
            TextFormat::Size => "a size, such as 64Mi",
            TextFormat::Cpus => "a number of CPUs, such as 0.5",
            TextFormat::Cidr => "a subnet, such as 10.7.0.0/16",
            TextFormat::Ip => "an IP address",
            TextFormat::Time => "a time, such as 2026-11-25T18:02:11Z",
        };
        let takes_numbers = matches!(format, TextFormat::Duration | TextFormat::Size | TextFormat::Cpus);
        match value {
            Value::String(_) => {}
            Value::Number(_) if takes_numbers => {}
            _ if shown == Shown::No => return self.fault(format!("expected {expected}")),
            Value::Number(_) | Value::Bool(_) if format == TextFormat::Plain => {
                return self.fault(format!("expected a string, not {}; put it in quotes", show(value)));
            }
            _ => return self.fault(format!("expected {expected}, not {}", show(value))),
        }
        let parsed = match format {
            TextFormat::Plain => Ok(()),
            TextFormat::Duration => parse::<Period>(value),
            TextFormat::Size => parse::<Size>(value),
            TextFormat::Cpus => parse::<Cpus>(value),
            TextFormat::Cidr => parse::<Cidr>(value),
            TextFormat::Ip => {
                parse::<std::net::IpAddr>(value).map_err(|_| format!("{} is not an IP address", show_plain(value)))
            }
            TextFormat::Time => parse::<reconciler_api::Timestamp>(value)
                .map_err(|_| format!("{} is not {expected}", show_plain(value))),
        };
        parsed.map_or_else(|message| self.fault(message), |()| true)
    }

    fn word(&mut self, choices: &[Choice], value: &Value) -> bool {
        let words = || choices.iter().map(|choice| choice.word.as_str());
        if value.as_str().is_some_and(|text| words().any(|word| word == text)) {
            return true;
        }
        let all = words().collect::<Vec<_>>().join(", ");
        match value.as_str().and_then(|text| advice::nearest(text, words())) {
            Some(near) if choices.len() > 4 => {
                self.fault(format!("{} is not one of {all}; did you mean {near}?", show_plain(value)))
            }
            _ => self.fault(format!("{} is not one of {all}", show_plain(value))),
        }
    }

    fn integer(&mut self, min: Option<i64>, max: Option<u64>, port: bool, value: &Value) -> bool {
        let number = match value {
            Value::Number(number) => number,
            Value::String(text) if text.parse::<i64>().is_ok() => {
                return self.fault(format!("expected a number, not the string {text:?}; take the quotes away"));
            }
            other => return self.fault(format!("expected a number, not {}", show(other))),
        };
        let whole = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
        let least = min.map(i128::from);
        let most = max.map(i128::from);
        let inside = |whole: i128| least.is_none_or(|least| whole >= least) && most.is_none_or(|most| whole <= most);
        match whole {
            Some(whole) if inside(whole) => true,
            _ if port => self.fault(format!("{number} is not a port (1-65535)")),
            None => self.fault(format!("{number} is not a whole number")),
            Some(_) => match (min, max.filter(|max| *max < u64::from(u32::MAX))) {
                (Some(min), Some(max)) => self.fault(format!("{number} is not between {min} and {max}")),
                (Some(min), None) if whole < least => self.fault(format!("{number} is less than {min}")),
                _ => self.fault(format!("{number} is too large")),
            },
        }
    }

    fn number(&mut self, min: Option<f64>, max: Option<f64>, value: &Value) -> bool {
        let Some(number) = value.as_f64() else {
            return self.fault(format!("expected a number, not {}", show(value)));
        };
        match (min, max) {
            (Some(min), _) if number < min => self.fault(format!("{number} is less than {min}")),
            (_, Some(max)) if number > max => self.fault(format!("{number} is more than {max}")),
            _ => true,
        }
    }

    fn tagged(&mut self, fields: &'a BTreeMap<String, Field>, value: &mut Value) -> bool {
        let all = || fields.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        match value {
            Value::Object(object)
                if object.len() == 1 && fields.contains_key(object.keys().next().map_or("", |k| k)) =>
            {
                self.object_of_one(fields, object)
            }
            Value::Object(_) => self.fault(format!("expected exactly one of {}", all())),
            other => self.fault(format!("expected an object with one of {}, not {}", all(), show(other))),
        }
    }

    fn object_of_one(&mut self, fields: &'a BTreeMap<String, Field>, object: &mut Map<String, Value>) -> bool {
        for (name, value) in object.iter_mut() {
            if !self.at(name, |walk| walk.visit(&fields[name].shape, value, Shown::Yes)) {
                *value = fields[name].shape.blank();
            }
        }
        true
    }

    fn either(&mut self, shapes: &'a [Shape], value: &mut Value) -> bool {
        let before = self.faults.len();
        for shape in shapes {
            if self.visit(shape, value, Shown::Yes) && self.faults.len() == before {
                return true;
            }
            self.faults.truncate(before);
        }
        let forms = shapes.iter().map(describe).collect::<Vec<_>>().join(" or ");
        self.fault(format!("expected {forms}, not {}", show(value)))
    }
}

/// What tells an entry of a list from the others; none in lists that are values as a whole, or where the entry does not
/// say.
pub(crate) fn list_key(items: &Shape, kind: &ListKind, item: &Value) -> Option<String> {
    match kind {
        ListKind::Atomic => None,
        ListKind::Set => Some(item.to_string()),
        ListKind::Map(fields) => {
            let said = |field: &str| item.get(field).filter(|value| !value.is_null()).cloned();
            let default = |field: &str| {
                let field = items.field(field)?;
                field.default.clone().or_else(|| said(field.default_from.as_deref()?))
            };
            let parts: Vec<Value> =
                fields.iter().map(|field| said(field).or_else(|| default(field)).unwrap_or_default()).collect();
            parts.iter().any(|part| !part.is_null()).then(|| Value::Array(parts).to_string())
        }
    }
}

/// What other formats call our fields.
const FOREIGN_NAMES: &[(&str, &str)] = &[
    ("environment", "container.env"),
    ("entrypoint", "container.command"),
    ("volumes", "container.mounts"),
    ("healthcheck", "container.health"),
    ("working_dir", "container.dir"),
    ("workingDir", "container.dir"),
    ("workdir", "container.dir"),
    ("extra_hosts", "container.hosts"),
    ("stop_grace_period", "container.stopGrace"),
    ("stopGracePeriod", "container.stopGrace"),
    ("cap_add", "container.capabilities.add"),
    ("cap_drop", "container.capabilities.drop"),
    ("logging", "template.log"),
    ("restart_policy", "template.restart"),
    ("restartPolicy", "template.restart"),
    ("update_config", "spec.update"),
    ("updateConfig", "spec.update"),
    ("rollback_config", "spec.rollback"),
    ("endpoint_mode", "endpoint.mode"),
    ("ports", "endpoint.ports"),
    ("memory", "limits.memory"),
    ("cpus", "limits.cpus"),
    ("image", "container.image"),
    ("env", "container.env"),
];

/// Longest piece of an input that a message repeats, in characters.
const SHOWN_MAX: usize = 60;

fn parse<T: DeserializeOwned>(value: &Value) -> Result<(), String> {
    T::deserialize(value).map(drop).map_err(|error| error.to_string())
}

fn describe(shape: &Shape) -> &'static str {
    match &shape.form {
        Form::Anything => "anything",
        Form::Object(_) | Form::Map(_) | Form::Tagged(_) => "an object",
        Form::List(..) => "a list",
        Form::Text(_) | Form::Word(_) => "a string",
        Form::Integer { .. } | Form::Number { .. } => "a number",
        Form::Boolean => "true or false",
        Form::Either(_) => "one of several",
    }
}

/// A value with the name of its type: `the string "x"`, `a list`, `80`.
pub(crate) fn show(value: &Value) -> String {
    match value {
        Value::String(_) => format!("the string {}", show_plain(value)),
        _ => show_plain(value),
    }
}

/// A value in a message, cut short where it is long.
pub(crate) fn show_plain(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
        Value::String(text) if text.chars().count() > SHOWN_MAX => {
            format!("{:?}…", text.chars().take(SHOWN_MAX).collect::<String>())
        }
        Value::String(text) => format!("{text:?}"),
        scalar => scalar.to_string(),
    }
}
