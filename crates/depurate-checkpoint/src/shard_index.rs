//! The index of sharded weights: which tensor is in which file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde_json::{Map, Value};

use crate::{CheckpointError, Limits, Result, json};

/// A parsed `*.safetensors.index.json`. Every shard is a plain file name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    /// Reads an index file.
    ///
    /// # Errors
    /// The file cannot be read as JSON within the limits, has no `weight_map` of strings, or names a shard that is anything
    /// but a `.safetensors` file beside it.
    pub fn read(path: &Path, limits: &Limits) -> Result<Self> {
        Self::from_map(path, json::read_json(path, limits)?, limits)
    }

    /// Parses the bytes of an index; `path` is only named in errors.
    ///
    /// # Errors
    /// As [`ShardIndex::read`], without those of the file system.
    pub fn parse(path: &Path, bytes: &[u8], limits: &Limits) -> Result<Self> {
        Self::from_map(path, json::parse_json(path, bytes, limits)?, limits)
    }

    fn from_map(path: &Path, mut map: Map<String, Value>, limits: &Limits) -> Result<Self> {
        let bad_field = |field: &str, expected| CheckpointError::JsonField {
            path: path.into(),
            field: field.into(),
            expected,
        };
        let too_many = |what, got: usize, limit: usize, option| CheckpointError::TooLarge {
            path: path.into(),
            what,
            got: got as u64,
            limit: limit as u64,
            option,
        };
        let Some(Value::Object(entries)) = map.remove("weight_map") else {
            return Err(bad_field("weight_map", "an object of file names"));
        };
        if entries.len() > limits.tensors {
            return Err(too_many(
                "the number of tensors",
                entries.len(),
                limits.tensors,
                "tensors",
            ));
        }
        let mut weight_map = BTreeMap::new();
        for (tensor, shard) in entries {
            let Value::String(shard) = shard else {
                return Err(bad_field(&format!("weight_map.{tensor}"), "a file name"));
            };
            if !is_plain_safetensors(&shard) {
                return Err(CheckpointError::ShardName {
                    path: path.into(),
                    shard,
                });
            }
            weight_map.insert(tensor, shard);
        }
        let index = Self { weight_map };
        match index.shards().len() {
            0 => Err(bad_field(
                "weight_map",
                "an object with at least one tensor",
            )),
            n if n > limits.shards => {
                Err(too_many("the number of shards", n, limits.shards, "shards"))
            }
            _ => Ok(index),
        }
    }

    /// File name of the shard of every tensor.
    pub fn weight_map(&self) -> &BTreeMap<String, String> {
        &self.weight_map
    }

    /// The shards, sorted, each once.
    pub fn shards(&self) -> Vec<&str> {
        let shards: BTreeSet<&str> = self.weight_map.values().map(String::as_str).collect();
        shards.into_iter().collect()
    }
}

/// One component, so that it can lead neither up nor to an absolute path, on any system; and not a JSON index.
fn is_plain_safetensors(name: &str) -> bool {
    let path = Path::new(name);
    let mut components = path.components();
    let single = matches!(components.next(), Some(Component::Normal(c)) if c == path.as_os_str());
    single
        && components.next().is_none()
        && name.ends_with(".safetensors")
        && !name.contains(['/', '\\', ':'])
        && !name.contains(char::is_control)
}
