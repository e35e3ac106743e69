//! Options of a `config.json`, read one by one with errors that name file and option.

use std::path::Path;

use serde_json::{Map, Value};

use super::config::BlockKind;
use crate::DiffusionError;

/// The largest number of channels, blocks or layers that a configuration may ask for. It bounds
/// what a hostile `config.json` can make us allocate.
pub(super) const MAX_CHANNELS: usize = 4096;
const MAX_BLOCKS: usize = 12;
pub(super) const MAX_LAYERS: usize = 16;
const MAX_SIZE: usize = 2048;

/// Every option that diffusers writes; keys with a leading underscore are its own notes.
const KNOWN: &[&str] = &[
    "act_fn",
    "add_attention",
    "attention_head_dim",
    "attn_norm_num_groups",
    "block_out_channels",
    "center_input_sample",
    "class_embed_type",
    "down_block_types",
    "downsample_padding",
    "downsample_type",
    "dropout",
    "flip_sin_to_cos",
    "freq_shift",
    "in_channels",
    "layers_per_block",
    "mid_block_scale_factor",
    "mid_block_type",
    "norm_eps",
    "norm_num_groups",
    "num_class_embeds",
    "num_train_timesteps",
    "out_channels",
    "resnet_time_scale_shift",
    "sample_size",
    "time_embedding_dim",
    "time_embedding_type",
    "up_block_types",
    "upsample_type",
];

/// Typed access to the options, with errors that name file and option.
pub(super) struct Reader<'a> {
    pub(super) map: &'a Map<String, Value>,
    pub(super) path: &'a Path,
}

impl<'a> Reader<'a> {
    pub(super) fn error(&self, option: &str, reason: &str) -> DiffusionError {
        DiffusionError::Config {
            path: self.path.to_owned(),
            option: option.to_owned(),
            reason: reason.to_owned(),
        }
    }

    pub(super) fn refuse_unknown(&self) -> Result<(), DiffusionError> {
        match self
            .map
            .keys()
            .find(|key| !key.starts_with('_') && !KNOWN.contains(&key.as_str()))
        {
            Some(key) => Err(self.error(
                key,
                "unknown option: this version does not know what it changes",
            )),
            None => Ok(()),
        }
    }

    pub(super) fn get(&self, option: &str) -> Option<&'a Value> {
        self.map.get(option).filter(|value| !value.is_null())
    }

    pub(super) fn only(&self, option: &str, allowed: &[&str]) -> Result<(), DiffusionError> {
        // A missing option has diffusers' default, which is allowed; null is a value of its own.
        match self.map.get(option) {
            None => Ok(()),
            Some(value) if value.as_str().is_some_and(|text| allowed.contains(&text)) => Ok(()),
            Some(value) => Err(self.error(
                option,
                &format!("{value} is not supported, expected one of {allowed:?}"),
            )),
        }
    }

    pub(super) fn text(&self, option: &str, default: &'a str) -> Result<&'a str, DiffusionError> {
        match self.get(option) {
            None => Ok(default),
            Some(value) => value
                .as_str()
                .ok_or_else(|| self.error(option, "expected a string")),
        }
    }

    pub(super) fn flag(&self, option: &str, default: bool) -> Result<bool, DiffusionError> {
        match self.get(option) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.error(option, "expected true or false")),
        }
    }

    pub(super) fn number(&self, option: &str, default: f64) -> Result<f64, DiffusionError> {
        match self.get(option) {
            None => Ok(default),
            Some(value) => value
                .as_f64()
                .filter(|number| number.is_finite())
                .ok_or_else(|| self.error(option, "expected a finite number")),
        }
    }

    pub(super) fn count(&self, option: &str, default: usize) -> Result<usize, DiffusionError> {
        match self.get(option) {
            None => Ok(default),
            Some(value) => value
                .as_u64()
                .and_then(|number| usize::try_from(number).ok())
                .ok_or_else(|| self.error(option, "expected a whole number")),
        }
    }

    pub(super) fn size(
        &self,
        option: &str,
        default: usize,
        max: usize,
    ) -> Result<usize, DiffusionError> {
        let size = self.count(option, default)?;
        if (1..=max).contains(&size) {
            Ok(size)
        } else {
            Err(self.error(
                option,
                &format!("{size} is out of range, expected 1 to {max}"),
            ))
        }
    }

    /// An option for which null is a value of its own; `default` stands for a missing key.
    pub(super) fn optional_size(
        &self,
        option: &str,
        default: Option<usize>,
        max: usize,
    ) -> Result<Option<usize>, DiffusionError> {
        match self.map.get(option) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(_) => self.size(option, 1, max).map(Some),
        }
    }

    pub(super) fn sizes(
        &self,
        option: &str,
        default: &[usize],
        max: usize,
    ) -> Result<Vec<usize>, DiffusionError> {
        let Some(value) = self.get(option) else {
            return Ok(default.to_vec());
        };
        let entries = value
            .as_array()
            .filter(|entries| (1..=MAX_BLOCKS).contains(&entries.len()))
            .ok_or_else(|| {
                self.error(
                    option,
                    &format!("expected a list of 1 to {MAX_BLOCKS} numbers"),
                )
            })?;
        entries
            .iter()
            .map(|entry| {
                entry
                    .as_u64()
                    .and_then(|n| usize::try_from(n).ok())
                    .filter(|n| (1..=max).contains(n))
            })
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| {
                self.error(
                    option,
                    &format!("each entry must be a whole number from 1 to {max}"),
                )
            })
    }

    pub(super) fn sample_size(&self) -> Result<(usize, usize), DiffusionError> {
        let option = "sample_size";
        let refuse = || {
            self.error(
                option,
                &format!("expected a number or a pair of numbers from 1 to {MAX_SIZE}"),
            )
        };
        let one = |value: &Value| {
            value
                .as_u64()
                .and_then(|n| usize::try_from(n).ok())
                .filter(|n| (1..=MAX_SIZE).contains(n))
        };
        match self.map.get(option) {
            Some(Value::Array(pair)) if pair.len() == 2 => Ok((
                one(&pair[0]).ok_or_else(refuse)?,
                one(&pair[1]).ok_or_else(refuse)?,
            )),
            Some(value) => one(value).map(|size| (size, size)).ok_or_else(refuse),
            None => Err(refuse()),
        }
    }

    pub(super) fn blocks(
        &self,
        option: &str,
        plain: &str,
        attention: &str,
    ) -> Result<Vec<BlockKind>, DiffusionError> {
        let entries = self
            .get(option)
            .and_then(Value::as_array)
            .filter(|entries| (1..=MAX_BLOCKS).contains(&entries.len()))
            .ok_or_else(|| {
                self.error(
                    option,
                    &format!("expected a list of 1 to {MAX_BLOCKS} block names"),
                )
            })?;
        entries
            .iter()
            .map(|entry| match entry.as_str() {
                Some(name) if name == plain => Ok(BlockKind::Plain),
                Some(name) if name == attention => Ok(BlockKind::Attention),
                _ => Err(self.error(
                    option,
                    &format!("block {entry} is not supported, expected {plain} or {attention}"),
                )),
            })
            .collect()
    }
}
