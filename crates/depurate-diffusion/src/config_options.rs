//! Options of a `config.json`, read one by one with errors that name file and option.

use std::path::Path;

use serde_json::{Map, Value};

use crate::DiffusionError;

/// The largest number of channels, blocks or layers that a configuration may ask for. It bounds
/// what a hostile `config.json` can make us allocate.
pub(crate) const MAX_CHANNELS: usize = 4096;
const MAX_BLOCKS: usize = 12;
pub(crate) const MAX_LAYERS: usize = 16;
const MAX_SIZE: usize = 2048;

/// Typed access to the options, with errors that name file and option.
pub(crate) struct Reader<'a> {
    pub(crate) map: &'a Map<String, Value>,
    pub(crate) path: &'a Path,
}

impl<'a> Reader<'a> {
    pub(crate) fn error(&self, option: &str, reason: &str) -> DiffusionError {
        DiffusionError::Config {
            path: self.path.to_owned(),
            option: option.to_owned(),
            reason: reason.to_owned(),
        }
    }

    /// Refuses options that are not `known`; keys with a leading underscore are diffusers' own notes.
    pub(crate) fn refuse_unknown(&self, known: &[&str]) -> Result<(), DiffusionError> {
        match self
            .map
            .keys()
            .find(|key| !key.starts_with('_') && !known.contains(&key.as_str()))
        {
            Some(key) => Err(self.error(
                key,
                "unknown option: this version does not know what it changes",
            )),
            None => Ok(()),
        }
    }

    pub(crate) fn get(&self, option: &str) -> Option<&'a Value> {
        self.map.get(option).filter(|value| !value.is_null())
    }

    pub(crate) fn only(&self, option: &str, allowed: &[&str]) -> Result<(), DiffusionError> {
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

    /// A missing option or one of `allowed`.
    pub(crate) fn one_of(&self, option: &str, allowed: &[Value]) -> Result<(), DiffusionError> {
        match self.map.get(option) {
            Some(value) if !allowed.contains(value) => {
                let allowed: Vec<_> = allowed.iter().map(Value::to_string).collect();
                let reason = format!(
                    "{value} is not supported, expected {}",
                    allowed.join(" or ")
                );
                Err(self.error(option, &reason))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn text(&self, option: &str, default: &'a str) -> Result<&'a str, DiffusionError> {
        match self.get(option) {
            None => Ok(default),
            Some(value) => value
                .as_str()
                .ok_or_else(|| self.error(option, "expected a string")),
        }
    }

    pub(crate) fn flag(&self, option: &str, default: bool) -> Result<bool, DiffusionError> {
        match self.get(option) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.error(option, "expected true or false")),
        }
    }

    pub(crate) fn number(&self, option: &str, default: f64) -> Result<f64, DiffusionError> {
        match self.get(option) {
            None => Ok(default),
            Some(value) => value
                .as_f64()
                .filter(|number| number.is_finite())
                .ok_or_else(|| self.error(option, "expected a finite number")),
        }
    }

    pub(crate) fn count(&self, option: &str, default: usize) -> Result<usize, DiffusionError> {
        match self.get(option) {
            None => Ok(default),
            Some(value) => value
                .as_u64()
                .and_then(|number| usize::try_from(number).ok())
                .ok_or_else(|| self.error(option, "expected a whole number")),
        }
    }

    pub(crate) fn size(
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
    pub(crate) fn optional_size(
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

    pub(crate) fn sizes(
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

    /// A list with one entry a level, or one number for all `levels`.
    pub(crate) fn sizes_or_one(
        &self,
        option: &str,
        default: usize,
        max: usize,
        levels: usize,
    ) -> Result<Vec<usize>, DiffusionError> {
        if !self.get(option).is_some_and(Value::is_array) {
            return Ok(vec![self.size(option, default, max)?; levels]);
        }
        let sizes = self.sizes(option, &[], max)?;
        if sizes.len() == levels {
            Ok(sizes)
        } else {
            Err(self.error(option, &format!("expected one number, or {levels}")))
        }
    }

    pub(crate) fn sample_size(&self) -> Result<(usize, usize), DiffusionError> {
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

    /// A list of block names, each of which must be one of `kinds`.
    pub(crate) fn blocks<K>(
        &self,
        option: &str,
        kinds: &[(&str, K)],
    ) -> Result<Vec<K>, DiffusionError>
    where
        K: Copy,
    {
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
            .map(|entry| {
                let found = kinds.iter().find(|(name, _)| entry.as_str() == Some(*name));
                found.map(|(_, kind)| *kind).ok_or_else(|| {
                    let names: Vec<_> = kinds.iter().map(|(name, _)| *name).collect();
                    self.error(
                        option,
                        &format!(
                            "block {entry} is not supported, expected {}",
                            names.join(" or ")
                        ),
                    )
                })
            })
            .collect()
    }
}
