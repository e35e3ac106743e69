//! A shard index: every shard that comes out is a plain file name.
#![no_main]

use std::path::Path;

use depurate_checkpoint::{Limits, ShardIndex};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let path = Path::new("fuzz.safetensors.index.json");
    let Ok(index) = ShardIndex::parse(path, bytes, &Limits::default()) else {
        return;
    };
    for shard in index.shards() {
        assert_eq!(
            Path::new(shard).file_name().and_then(|name| name.to_str()),
            Some(shard)
        );
        assert!(shard.ends_with(".safetensors"));
    }
});
