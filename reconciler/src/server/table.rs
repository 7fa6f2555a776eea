//! Objects as rows, for clients that ask for `as=Table` (`kubectl get`): columns are the kind's own.

use axum::http::{HeaderMap, header};
use serde_json::{Value, json};

use reconciler_api::{Column, ColumnType, Kind, Timestamp};

/// In what form objects are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Objects,
    Table,
}

/// The first form in `Accept` that is served; objects when it says nothing.
pub(super) fn wanted(headers: &HeaderMap) -> Form {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    for offer in accept.split(',') {
        let mut parts = offer.split(';').map(str::trim);
        let json = matches!(parts.next(), Some("application/json" | "*/*"));
        let parameters: Vec<&str> = parts.collect();
        if json && parameters.contains(&"as=Table") && !parameters.contains(&"v=v1beta1") {
            return Form::Table;
        }
        if json && !parameters.iter().any(|parameter| parameter.starts_with("as=")) {
            return Form::Objects;
        }
    }
    Form::Objects
}

pub(super) fn table(kind: &Kind, objects: &[Value], list_meta: Value, now: Timestamp) -> Value {
    let column = |name: &str, of: ColumnType, priority: u8| {
        let format = if name == "Name" { "name" } else { "" };
        // An age is text by the time that it is here.
        let of = if of == ColumnType::Date { ColumnType::String } else { of };
        json!({"name": name, "type": of.as_str(), "format": format, "description": "", "priority": priority})
    };
    let mut columns = vec![column("Name", ColumnType::String, 0)];
    columns.extend(kind.columns.iter().map(|of_kind| column(&of_kind.name, of_kind.r#type, u8::from(of_kind.wide))));
    columns.push(column("Age", ColumnType::String, 0));
    let rows: Vec<Value> = objects.iter().map(|object| row(kind, object, now)).collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_meta,
        "columnDefinitions": columns, "rows": rows,
    })
}

fn row(kind: &Kind, object: &Value, now: Timestamp) -> Value {
    let mut cells = vec![object["metadata"]["name"].clone()];
    cells.extend(kind.columns.iter().map(|column| cell(column, object.pointer(&column.pointer), now)));
    cells.push(since(now, &object["metadata"]["creationTimestamp"]).unwrap_or_else(|| "<unknown>".to_owned()).into());
    let of_object = json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"],
    });
    json!({"cells": cells, "object": of_object})
}

fn since(now: Timestamp, time: &Value) -> Option<String> {
    Some(age(now, time.as_str()?.parse().ok()?))
}

fn cell(column: &Column, value: Option<&Value>, now: Timestamp) -> Value {
    match value {
        None | Some(Value::Null) => "<none>".into(),
        Some(value) if column.r#type == ColumnType::Date => {
            since(now, value).unwrap_or_else(|| "<unknown>".to_owned()).into()
        }
        Some(value @ (Value::Number(_) | Value::Bool(_))) if column.r#type != ColumnType::String => value.clone(),
        Some(Value::String(text)) => text.as_str().into(),
        Some(Value::Array(items)) if items.iter().all(Value::is_string) => {
            items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",").into()
        }
        Some(other) => other.to_string().into(),
    }
}

/// How long ago, in kubectl's words: two units while the smaller one says something.
pub(super) fn age(now: Timestamp, then: Timestamp) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    const YEAR: u64 = 365 * DAY;
    let seconds = now.since(then).as_secs();
    let two = |big: u64, big_unit: &str, small: u64, small_unit: &str| match seconds % big / small {
        0 => format!("{}{big_unit}", seconds / big),
        rest => format!("{}{big_unit}{rest}{small_unit}", seconds / big),
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(MINUTE, "m", 1, "s"),
        600..10_800 => format!("{}m", seconds / MINUTE),
        10_800..28_800 => two(HOUR, "h", MINUTE, "m"),
        28_800..172_800 => format!("{}h", seconds / HOUR),
        172_800..691_200 => two(DAY, "d", HOUR, "h"),
        691_200..63_072_000 => format!("{}d", seconds / DAY),
        63_072_000..252_288_000 => two(YEAR, "y", DAY, "d"),
        _ => format!("{}y", seconds / YEAR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_in_kubectls_words() {
        let ago = |seconds: i64| {
            age(Timestamp::from_seconds(1_000_000_000), Timestamp::from_seconds(1_000_000_000 - seconds))
        };
        for (seconds, expected) in [
            (-5, "0s"),
            (119, "119s"),
            (130, "2m10s"),
            (180, "3m"),
            (3_599, "59m"),
            (4 * 3_600 + 120, "4h2m"),
            (40 * 3_600, "40h"),
            (3 * 86_400 + 7_200, "3d2h"),
            (30 * 86_400, "30d"),
            (800 * 86_400, "2y70d"),
        ] {
            assert_eq!(ago(seconds), expected, "{seconds} s");
        }
    }

    #[test]
    fn the_first_form_that_is_served_is_taken() {
        let form = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            wanted(&headers)
        };
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(form(kubectl), Form::Table);
        assert_eq!(form("application/json"), Form::Objects);
        assert_eq!(form("application/vnd.kubernetes.protobuf;as=Table,application/json"), Form::Objects);
        assert_eq!(form("*/*"), Form::Objects);
    }
}
