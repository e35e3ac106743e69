//! A `model_index.json`: every component that comes out is named as a directory beside it.
#![no_main]

use std::path::Path;

use depurate_checkpoint::{Limits, PipelineIndex};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let path = Path::new("model_index.json");
    let Ok(index) = PipelineIndex::parse(path, bytes, &Limits::default()) else {
        return;
    };
    for component in &index.components {
        let name = component.name.as_str();
        assert_eq!(
            Path::new(name).file_name().and_then(|name| name.to_str()),
            Some(name)
        );
    }
});
