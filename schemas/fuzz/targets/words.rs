//! Every small grammar: what is read is written so that it is read as the same.
#![no_main]

use std::fmt::{Debug, Display};
use std::str::FromStr;

use libfuzzer_sys::fuzz_target;

fn round<T: FromStr<Err: Debug> + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        let written = value.to_string();
        assert_eq!(written.parse::<T>().expect(&written), value, "{text:?} became {written:?}");
    }
}

fuzz_target!(|text: &str| {
    round::<schemas::image::ImageRef>(text);
    round::<schemas::constraint::Constraint>(text);
    round::<schemas::Period>(text);
    round::<schemas::Size>(text);
    round::<schemas::Cpus>(text);
    round::<schemas::deploy::Publish>(text);
    round::<schemas::deploy::Replicas>(text);
    if let Ok(name) = schemas::names::object_name(text) {
        assert_eq!(schemas::names::object_name(&name).as_ref(), Ok(&name));
        assert_eq!(schemas::names::label_fault(&name), None);
    }
    let _ = schemas::explain::explain(text);
});
