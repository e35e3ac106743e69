//! The bounds that a file must keep before memory is spent on it.

/// Upper bounds on what a checkpoint may ask for. The default fits every published diffusers model.
///
/// A reader raises a limit only for a file whose origin is known: the limits are what stands between a hostile file and the
/// machine's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Longest JSON header of a safetensors file, in bytes. More than 100,000,000 is never accepted: the format forbids it.
    pub header_bytes: u64,
    /// Largest safetensors file, in bytes.
    pub file_bytes: u64,
    /// Most tensors in one checkpoint, over all its shards.
    pub tensors: usize,
    /// Largest JSON file (`config.json`, `model_index.json`, a shard index), in bytes.
    pub json_bytes: u64,
    /// Most shards that an index may name.
    pub shards: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: 100_000_000,
            file_bytes: 64 << 30,
            tensors: 100_000,
            json_bytes: 16 << 20,
            shards: 1024,
        }
    }
}
