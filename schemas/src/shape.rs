//! The shape of a kind: its JSON Schema boiled down to what checking, merging and explaining need. One walk over a
//! shape finds every fault of an input, where serde would stop at the first.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use reconciler_api::Resource;
use schemars::Schema;
use serde_json::{Map, Value};

use crate::kinds;

/// What values may stand at one place.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// What the value is, if it is not null.
    pub form: Form,
    /// `null` may stand there, and means the same as nothing.
    pub nullable: bool,
}

/// What kind of value stands at a place, and what it is made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// Any JSON: the schema says no more, or nothing that is understood here.
    Anything,
    /// An object with these fields, by their names in JSON, and no others.
    Object(BTreeMap<String, Field>),
    /// Keys are the writer's.
    Map(Box<Shape>),
    /// A list whose entries all have one shape.
    List(Box<Shape>, ListKind),
    /// A string, in some grammar.
    Text(TextFormat),
    /// One of some words, each with what it means.
    Word(Vec<Choice>),
    /// A whole number, both bounds included.
    Integer {
        /// Absent: no lower bound but that of 64 bits.
        min: Option<i64>,
        /// Absent: no upper bound but that of 64 bits.
        max: Option<u64>,
        /// It is a port, which faults then call it.
        port: bool,
    },
    /// A number that need not be whole, both bounds included.
    Number {
        /// Absent: no lower bound.
        min: Option<f64>,
        /// Absent: no upper bound.
        max: Option<f64>,
    },
    /// `true` or `false`.
    Boolean,
    /// An object with exactly one of these fields.
    Tagged(BTreeMap<String, Field>),
    /// Any of these.
    Either(Vec<Shape>),
}

/// One field of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// What may stand there.
    pub shape: Shape,
    /// Whether an object without it is refused.
    pub required: bool,
    /// What people read about it; may be empty.
    pub doc: String,
    /// The name of the Rust type, where it has one of its own.
    pub type_name: Option<String>,
    /// What its absence means, where that can be said in a value.
    pub default: Option<Value>,
    /// The field beside it whose value it has when it is absent.
    pub default_from: Option<String>,
    /// Where the default comes from.
    pub source: Option<String>,
    /// Must not be seen.
    pub sensitive: bool,
}

/// One word of several that may stand at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// As in JSON.
    pub word: String,
    /// What it means; may be empty.
    pub doc: String,
}

/// How two lists are one: Kubernetes' `x-kubernetes-list-type`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    /// A value as a whole.
    Atomic,
    /// Of scalars, each at most once.
    Set,
    /// Of objects, told apart by these fields.
    Map(Vec<String>),
}

/// The grammar of a string; JSON Schema's `format` says which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextFormat {
    /// Any text.
    Plain,
    /// Times in Go's grammar, as [`Period`](crate::Period) reads them: `1h30m`.
    Duration,
    /// Numbers of bytes, as [`Size`](crate::Size) reads them: `64Mi`.
    Size,
    /// Shares of processors, as [`Cpus`](crate::Cpus) reads them: `0.5`.
    Cpus,
    /// Subnets, as [`Cidr`](crate::kinds::network::Cidr) reads them: `10.7.0.0/16`.
    Cidr,
    /// Addresses of IPv4 or IPv6, without a prefix.
    Ip,
    /// Instants of RFC 3339: `2026-11-25T18:02:11Z`.
    Time,
}

impl Shape {
    /// The shape of whole objects of a kind. Costs a walk of its schema the first time, nothing after for kinds of this
    /// crate.
    pub fn of<T: Resource>() -> std::borrow::Cow<'static, Shape> {
        match kinds::ALL.iter().position(|registered| (registered.kind)() == T::kind()) {
            Some(index) => std::borrow::Cow::Borrowed(&of_registered(index).0),
            None => std::borrow::Cow::Owned(Self::compile(&T::schema())),
        }
    }

    /// The shape of whole objects of a kind of this crate, by any of its names.
    pub fn of_kind(word: &str) -> Option<&'static Shape> {
        kinds::position(word).map(|index| &of_registered(index).0)
    }

    /// What is said about a kind of this crate, by any of its names.
    pub fn doc_of_kind(word: &str) -> Option<&'static str> {
        kinds::position(word).map(|index| of_registered(index).1.as_str())
    }

    /// Boils a schema down. What it does not understand becomes [`Form::Anything`]: accepted, not guessed at.
    pub fn compile(schema: &Schema) -> Shape {
        Self::read(schema.as_value())
    }

    /// As [`Shape::compile`], of a schema as it stands in JSON.
    pub fn read(schema: &Value) -> Shape {
        Compiler { root: schema }.shape(schema)
    }

    /// A field of an object by its name in JSON; absent where there is none, or no object.
    pub fn field(&self, name: &str) -> Option<&Field> {
        match &self.form {
            Form::Object(fields) | Form::Tagged(fields) => fields.get(name),
            _ => None,
        }
    }

    /// The least that can stand here: it keeps the rest of a faulty input readable.
    pub fn blank(&self) -> Value {
        match &self.form {
            Form::Anything => Value::Null,
            Form::Object(fields) => Value::Object(
                fields.iter().filter(|(_, f)| f.required).map(|(name, f)| (name.clone(), f.shape.blank())).collect(),
            ),
            Form::Map(_) => Value::Object(Map::new()),
            Form::List(..) => Value::Array(Vec::new()),
            Form::Text(format) => match format {
                TextFormat::Plain => "",
                TextFormat::Duration => "0s",
                TextFormat::Size | TextFormat::Cpus => "0",
                // Overlaps nothing that anybody could mean.
                TextFormat::Cidr => "255.255.255.255/32",
                TextFormat::Ip => "0.0.0.0",
                TextFormat::Time => "1970-01-01T00:00:00Z",
            }
            .into(),
            Form::Word(choices) => choices.first().map_or(Value::Null, |choice| choice.word.clone().into()),
            Form::Integer { min, .. } => min.unwrap_or(0).max(0).into(),
            Form::Number { min, .. } => min.unwrap_or(0.0).max(0.0).into(),
            Form::Boolean => false.into(),
            Form::Tagged(fields) => {
                Value::Object(fields.iter().take(1).map(|(name, field)| (name.clone(), field.shape.blank())).collect())
            }
            Form::Either(shapes) => shapes.first().map_or(Value::Null, Shape::blank),
        }
    }
}

fn of_registered(index: usize) -> &'static (Shape, String) {
    static SHAPES: [OnceLock<(Shape, String)>; kinds::ALL.len()] = [const { OnceLock::new() }; kinds::ALL.len()];
    SHAPES[index].get_or_init(|| {
        let schema = (kinds::ALL[index].schema)();
        (Shape::compile(&schema), one_line(schema.get("description")))
    })
}

/// Depth at which a schema that refers to itself is cut off: ours are ten deep.
const DEPTH_MAX: usize = 32;

struct Compiler<'a> {
    root: &'a Value,
}

impl Compiler<'_> {
    fn shape(&self, schema: &Value) -> Shape {
        self.shape_at(schema, 0)
    }

    fn shape_at(&self, schema: &Value, depth: usize) -> Shape {
        let anything = Shape { form: Form::Anything, nullable: true };
        if depth > DEPTH_MAX {
            return anything;
        }
        if let Some(target) = self.target(schema) {
            return self.shape_at(target, depth + 1);
        }
        let (types, nullable) = types(schema);
        let form = match (schema.get("anyOf").or_else(|| schema.get("oneOf")), types.as_slice()) {
            (Some(Value::Array(options)), _) => return self.either(options, depth),
            (_, ["object"]) => self.object(schema, depth),
            (_, ["array"]) => self.list(schema, depth),
            (_, ["string"]) => text(schema),
            (_, ["integer"]) => integer(schema),
            (_, ["number"]) => {
                let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
                Form::Number { min: bound("minimum"), max: bound("maximum") }
            }
            (_, ["boolean"]) => Form::Boolean,
            _ => return anything,
        };
        Shape { form, nullable }
    }

    fn target<'s>(&'s self, schema: &'s Value) -> Option<&'s Value> {
        let name = schema.get("$ref")?.as_str()?.strip_prefix("#/$defs/")?;
        self.root.get("$defs")?.get(name)
    }

    fn object(&self, schema: &Value, depth: usize) -> Form {
        let fields = self.fields(schema, depth);
        match schema.get("additionalProperties") {
            Some(values @ Value::Object(_)) if fields.is_empty() => {
                Form::Map(Box::new(self.shape_at(values, depth + 1)))
            }
            _ => Form::Object(fields),
        }
    }

    fn fields(&self, schema: &Value, depth: usize) -> BTreeMap<String, Field> {
        let required: Vec<&str> =
            schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        let properties = schema.get("properties").and_then(Value::as_object);
        let field = |(name, schema): (&String, &Value)| {
            let required = required.contains(&name.as_str());
            (name.clone(), self.field(schema, required, depth))
        };
        properties.into_iter().flatten().map(field).collect()
    }

    fn field(&self, schema: &Value, required: bool, depth: usize) -> Field {
        // `Option<T>` is `anyOf [T, null]`: what is said about T is said there.
        let inner = schema.get("anyOf").and_then(Value::as_array).and_then(|options| options.first()).unwrap_or(schema);
        let target = self.target(schema).or_else(|| self.target(inner));
        let shape = self.shape_at(schema, depth + 1);
        let said = |name: &str| schema.get(name).or_else(|| target?.get(name));
        let default = said("default").filter(|value| !value.is_null() && !required).cloned();
        let default = default.or_else(|| (shape.form == Form::Boolean && !shape.nullable).then(|| false.into()));
        let type_name = |schema: &Value| Some(schema.get("$ref")?.as_str()?.trim_start_matches("#/$defs/").to_owned());
        Field {
            required,
            doc: one_line(said("description")),
            type_name: type_name(schema).or_else(|| type_name(inner)),
            default: default.filter(|_| !shape.nullable || schema.get("default").is_some_and(|value| !value.is_null())),
            default_from: said("x-default-from").and_then(Value::as_str).map(str::to_owned),
            source: said("x-source").and_then(Value::as_str).map(str::to_owned),
            sensitive: schema.get("x-sensitive").is_some(),
            shape,
        }
    }

    fn list(&self, schema: &Value, depth: usize) -> Form {
        let items =
            schema.get("items").map_or(Shape { form: Form::Anything, nullable: true }, |s| self.shape_at(s, depth + 1));
        let kind = match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
            Some("set") => ListKind::Set,
            Some("map") => {
                let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
                ListKind::Map(keys.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect())
            }
            _ => ListKind::Atomic,
        };
        Form::List(Box::new(items), kind)
    }

    fn either(&self, options: &[Value], depth: usize) -> Shape {
        let is_null = |schema: &&Value| types(schema).0.is_empty() && types(schema).1;
        let nullable = options.iter().any(|schema| is_null(&schema));
        let options: Vec<&Value> = options.iter().filter(|schema| !is_null(schema)).collect();
        if let [only] = options.as_slice() {
            let shape = self.shape_at(only, depth + 1);
            return Shape { nullable: nullable || shape.nullable, ..shape };
        }
        let closed = |schema: &&&Value| schema.get("additionalProperties") == Some(&Value::Bool(false));
        if !options.is_empty() && options.iter().all(|schema| closed(&schema)) {
            let fields = options.iter().flat_map(|schema| self.fields(schema, depth + 1));
            return Shape { form: Form::Tagged(fields.collect()), nullable };
        }
        let shapes: Vec<Shape> = options.iter().map(|schema| self.shape_at(schema, depth + 1)).collect();
        let words: Option<Vec<Choice>> = shapes.iter().try_fold(Vec::new(), |mut all, shape| match &shape.form {
            Form::Word(choices) => {
                all.extend(choices.iter().cloned());
                Some(all)
            }
            _ => None,
        });
        let form = words.map_or(Form::Either(shapes), Form::Word);
        Shape { form, nullable }
    }
}

/// The types that a schema names but null, and whether null is one.
fn types(schema: &Value) -> (Vec<&str>, bool) {
    let named: Vec<&str> = match schema.get("type") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let nullable = named.contains(&"null");
    (named.into_iter().filter(|name| *name != "null").collect(), nullable)
}

fn text(schema: &Value) -> Form {
    let choice =
        |word: &Value| Some(Choice { word: word.as_str()?.to_owned(), doc: one_line(schema.get("description")) });
    if let Some(word) = schema.get("const") {
        return Form::Word(choice(word).into_iter().collect());
    }
    if let Some(words) = schema.get("enum").and_then(Value::as_array) {
        let plain = |word: &Value| Some(Choice { word: word.as_str()?.to_owned(), doc: String::new() });
        return Form::Word(words.iter().filter_map(plain).collect());
    }
    Form::Text(match schema.get("format").and_then(Value::as_str) {
        Some("duration") => TextFormat::Duration,
        Some("size") => TextFormat::Size,
        Some("cpus") => TextFormat::Cpus,
        Some("cidr") => TextFormat::Cidr,
        Some("ip") => TextFormat::Ip,
        Some("date-time") => TextFormat::Time,
        _ => TextFormat::Plain,
    })
}

fn integer(schema: &Value) -> Form {
    let format = schema.get("format").and_then(Value::as_str).unwrap_or_default();
    let (least, most) = match format {
        "uint8" => (Some(0), Some(u64::from(u8::MAX))),
        "uint16" => (Some(0), Some(u64::from(u16::MAX))),
        "uint32" => (Some(0), Some(u64::from(u32::MAX))),
        "uint64" | "uint" => (Some(0), None),
        "int32" => (Some(i64::from(i32::MIN)), Some(i32::MAX as u64)),
        _ => (None, Some(i64::MAX as u64)),
    };
    let min = schema.get("minimum").and_then(Value::as_i64);
    let max = schema.get("maximum").and_then(Value::as_u64);
    Form::Integer { min: min.or(least), max: max.or(most), port: format == "port" }
}

fn one_line(description: Option<&Value>) -> String {
    let text = description.and_then(Value::as_str).unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
