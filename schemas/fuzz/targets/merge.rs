//! Three specs of services of any content: the same file twice changes nothing, and with everything reset the file wins.
#![no_main]

use libfuzzer_sys::fuzz_target;
use schemas::merge::{overlay, three_way};
use schemas::shape::Shape;
use serde_json::Value;

fuzz_target!(|sides: (&str, &str, &str)| {
    let parse = |text: &str| serde_json::from_str::<Value>(text).ok();
    let (Some(base), Some(file), Some(live)) = (parse(sides.0), parse(sides.1), parse(sides.2)) else { return };
    let shape = &Shape::of_kind("service").unwrap().field("spec").unwrap().shape;
    let first = three_way(shape, Some(&base), &file, Some(&live), &[]);
    let second = three_way(shape, Some(&file), &file, Some(&first.result), &[]);
    let is_spec = |value: &Value| {
        let mut value = value.clone();
        schemas::walk::walk(shape, &mut value, schemas::walk::Strictness::Fragment).is_empty()
    };
    if is_spec(&base) && is_spec(&file) && is_spec(&live) {
        assert_eq!(second.result, first.result);
        assert_eq!(three_way(shape, Some(&base), &file, Some(&live), &[""]).overrides, vec![]);
    }
    let _ = overlay(shape, &base, &file);
});
