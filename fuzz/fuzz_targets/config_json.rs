//! A `config.json`: what is accepted is an object that keeps its keys when it is written and read again.
#![no_main]

use std::path::Path;

use depurate_checkpoint::{Limits, parse_json};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (path, limits) = (Path::new("config.json"), Limits::default());
    let Ok(map) = parse_json(path, bytes, &limits) else {
        return;
    };
    let text = serde_json::Value::Object(map.clone()).to_string();
    let again = parse_json(path, text.as_bytes(), &limits).expect("written JSON is read");
    // Numbers may move by a rounding error, so only the keys are compared.
    assert!(again.keys().eq(map.keys()));
});
