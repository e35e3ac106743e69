//! A whole safetensors file: what opens can be read, and holds no more elements than the file has bytes for.
#![no_main]

use std::path::Path;

use depurate_checkpoint::{Limits, Weights};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let path = Path::new("fuzz.safetensors");
    let Ok(weights) = Weights::from_bytes(path, bytes.to_vec(), &Limits::default()) else {
        return;
    };
    let mut elements = 0;
    for info in weights.infos().filter(|info| info.dtype.is_float()) {
        let values = weights
            .read_f32(&info.name)
            .expect("a listed float tensor can be read");
        assert_eq!(values.len(), info.elements());
        elements += values.len();
    }
    assert!(elements <= bytes.len() / 2);
});
