//! Bounded, strict JSON: no key twice, no more values than a configuration needs.
//!
//! Which of two equal keys counts depends on the reader, so a file could show us one configuration and its user another.

use std::borrow::Cow;
use std::fmt;
use std::io::Read as _;
use std::path::Path;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::{CheckpointError, Limits, Result, mmap::open_regular};

/// Most values (numbers, strings, lists, …) in one file. A value takes tens of bytes in memory but only two in the file, so the
/// bound on the file's length alone would allow 16 times as much memory.
const MAX_VALUES: usize = 1_000_000;

/// Reads a JSON object from a file of at most `limits.json_bytes`.
///
/// # Errors
/// The file is missing, not a regular file, too long, not JSON, holds a key twice, or is not an object.
pub fn read_json(path: &Path, limits: &Limits) -> Result<Map<String, Value>> {
    parse_json(path, &read_bounded(path, "JSON file", limits)?, limits)
}

/// Reads a text file, such as a tokenizer's `merges.txt`, of at most `limits.json_bytes`.
///
/// # Errors
/// The file is missing, not a regular file, too long, or not UTF-8.
pub fn read_text(path: &Path, limits: &Limits) -> Result<String> {
    let what = "text file";
    let bytes = read_bounded(path, what, limits)?;
    let got = bytes.len() as u64;
    if got > limits.json_bytes {
        return Err(too_large(path, what, got, limits));
    }
    String::from_utf8(bytes).map_err(|error| {
        let invalid = std::io::Error::new(std::io::ErrorKind::InvalidData, error);
        CheckpointError::io("read", path, invalid)
    })
}

/// The file's bytes, cut one after the limit.
fn read_bounded(path: &Path, what: &'static str, limits: &Limits) -> Result<Vec<u8>> {
    let file = open_regular(path, limits.json_bytes, what, "json_bytes")?;
    let mut bytes = Vec::new();
    // The file may have grown since its length was looked at.
    file.take(limits.json_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|e| CheckpointError::io("read", path, e))?;
    Ok(bytes)
}

fn too_large(path: &Path, what: &'static str, got: u64, limits: &Limits) -> CheckpointError {
    CheckpointError::TooLarge {
        path: path.into(),
        what,
        got,
        limit: limits.json_bytes,
        option: "json_bytes",
    }
}

/// Parses a JSON object; `path` is only named in errors.
///
/// # Errors
/// As [`read_json`], without those of the file system.
pub fn parse_json(path: &Path, bytes: &[u8], limits: &Limits) -> Result<Map<String, Value>> {
    let got = bytes.len() as u64;
    if got > limits.json_bytes {
        return Err(too_large(path, "JSON file", got, limits));
    }
    let json_error = |source| CheckpointError::Json {
        path: path.into(),
        source,
    };
    let mut values_left = MAX_VALUES;
    let bytes = with_quoted_constants(bytes);
    let mut deserializer = serde_json::Deserializer::from_slice(&bytes);
    let value = Strict {
        values_left: &mut values_left,
    }
    .deserialize(&mut deserializer)
    .map_err(json_error)?;
    deserializer.end().map_err(json_error)?;
    match value {
        Value::Object(map) => Ok(map),
        _ => Err(CheckpointError::JsonField {
            path: path.into(),
            field: "(top level)".into(),
            expected: "an object",
        }),
    }
}

/// Python writes infinities, which JSON does not have, as bare words, and diffusers' DPM-Solver has one among its defaults: they
/// become strings of the same letters. What is no number at all stays an error.
fn with_quoted_constants(bytes: &[u8]) -> Cow<'_, [u8]> {
    const WORDS: [&[u8]; 2] = [b"-Infinity", b"Infinity"];
    if !bytes.windows(3).any(|w| w == b"Inf") {
        return Cow::Borrowed(bytes);
    }
    let (mut quoted, mut at, mut in_string) = (Vec::with_capacity(bytes.len()), 0, false);
    while let Some(&byte) = bytes.get(at) {
        let rest = &bytes[at..];
        let word = WORDS
            .iter()
            .find(|word| !in_string && rest.starts_with(word));
        if let Some(word) = word {
            quoted.push(b'"');
            quoted.extend_from_slice(word);
            quoted.push(b'"');
            at += word.len();
            continue;
        }
        let taken = if in_string && byte == b'\\' { 2 } else { 1 };
        in_string ^= byte == b'"';
        quoted.extend_from_slice(&rest[..taken.min(rest.len())]);
        at += taken;
    }
    Cow::Owned(quoted)
}

/// Builds a [`Value`] and counts.
struct Strict<'a> {
    values_left: &'a mut usize,
}

impl Strict<'_> {
    fn again(&mut self) -> Strict<'_> {
        Strict {
            values_left: self.values_left,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        *self.values_left = self
            .values_left
            .checked_sub(1)
            .ok_or_else(|| de::Error::custom(format!("more than {MAX_VALUES} values")))?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v)
            .map(Value::Number)
            .ok_or_else(|| E::custom("number is not finite"))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(self.again())? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(de::Error::custom(format!(
                    "key `{}` stands twice",
                    key.escape_debug()
                )));
            }
            let value = access.next_value_seed(self.again())?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infinities_are_strings() {
        let text = br#"{"a": -Infinity, "b\"Infinity": [-Infinity, "NaN \\"], "c": Infinity}"#;
        let map = parse_json(Path::new("x"), text, &Limits::default());
        let expected = r#"{"a":"-Infinity","b\"Infinity":["-Infinity","NaN \\"],"c":"Infinity"}"#;
        assert_eq!(
            map.ok().map(|m| Value::Object(m).to_string()).as_deref(),
            Some(expected)
        );
        for bad in [
            r#"{"a": 1Infinity}"#,
            r#"{"a": Inf}"#,
            r#"{"a": NaN}"#,
            r#"{Infinity: 1 "#,
        ] {
            let parsed = parse_json(Path::new("x"), bad.as_bytes(), &Limits::default());
            assert!(parsed.is_err(), "{bad}");
        }
    }
}
