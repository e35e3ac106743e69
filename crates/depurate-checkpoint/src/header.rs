//! The header of a safetensors file, held against the file before and after the format's own reader sees it.
//!
//! The format's reader trusts three things that a hostile file can lie about: that the sum of the stated sizes does not wrap
//! around, that a name stands once, and that a header may take many times its length in memory while it is parsed. A first,
//! frugal pass over the header settles them; then `safetensors` does the reading.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::path::Path;

use safetensors::SafeTensors;
use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::{CheckpointError, Dtype, Limits, Result};

/// Most dimensions of one tensor; convolutions have 4.
const MAX_RANK: usize = 16;
/// Most entries of the free-form `__metadata__`; diffusers writes one.
const MAX_METADATA: usize = 1024;

/// One tensor of a file, with checked bounds.
#[derive(Debug)]
pub(crate) struct Entry {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Bytes in the file, counted from its start.
    pub bytes: Range<usize>,
}

/// A checked header.
#[derive(Debug)]
pub(crate) struct Header {
    /// The tensors, sorted by name. All ranges lie inside the file.
    pub entries: Vec<Entry>,
    /// The free-form `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}

/// Reads the header of a whole safetensors file.
pub(crate) fn read_header(path: &Path, file: &[u8], limits: &Limits) -> Result<Header> {
    let header_end = header_end(path, file, limits)?;
    preflight(
        path,
        &file[8..header_end],
        (file.len() - header_end) as u64,
        limits,
    )?;
    let (_, metadata) =
        SafeTensors::read_metadata(file).map_err(|source| CheckpointError::Header {
            path: path.into(),
            source,
        })?;
    let mut entries: Vec<Entry> = metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| Entry {
            name,
            dtype: info.dtype.into(),
            shape: info.shape.clone(),
            bytes: header_end + info.data_offsets.0..header_end + info.data_offsets.1,
        })
        .collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let free_form = metadata.metadata().clone().unwrap_or_default();
    Ok(Header {
        entries,
        metadata: free_form.into_iter().collect(),
    })
}

/// The stated length of the header against the limit and the file.
fn header_end(path: &Path, file: &[u8], limits: &Limits) -> Result<usize> {
    let file_bytes = file.len() as u64;
    let truncated = |header_bytes| CheckpointError::Truncated {
        path: path.into(),
        header_bytes,
        file_bytes,
    };
    let length = file.first_chunk::<8>().ok_or_else(|| truncated(0))?;
    let header_bytes = u64::from_le_bytes(*length);
    if header_bytes > limits.header_bytes {
        return Err(CheckpointError::TooLarge {
            path: path.into(),
            what: "the header",
            got: header_bytes,
            limit: limits.header_bytes,
            option: "header_bytes",
        });
    }
    match header_bytes.checked_add(8) {
        Some(end) if end <= file_bytes => Ok(end as usize),
        _ => Err(truncated(header_bytes)),
    }
}

/// The first pass: names unique, ranges inside the data, counts bounded, nothing but what the format knows.
fn preflight(path: &Path, header: &[u8], data_bytes: u64, limits: &Limits) -> Result<()> {
    let json_error = |source| CheckpointError::HeaderJson {
        path: path.into(),
        source,
    };
    let mut deserializer = serde_json::Deserializer::from_slice(header);
    let spans = Spans {
        most: limits.tensors,
    }
    .deserialize(&mut deserializer)
    .map_err(json_error)?;
    deserializer.end().map_err(json_error)?;
    if spans.len() > limits.tensors {
        return Err(CheckpointError::TooLarge {
            path: path.into(),
            what: "the number of tensors",
            got: spans.len() as u64,
            limit: limits.tensors as u64,
            option: "tensors",
        });
    }
    let mut seen = HashSet::with_capacity(spans.len());
    for (name, end) in &spans {
        if !seen.insert(name) {
            return Err(CheckpointError::DuplicateTensor {
                path: path.into(),
                tensor: name.to_string(),
            });
        }
        if *end > data_bytes {
            return Err(CheckpointError::OutOfRange {
                path: path.into(),
                tensor: name.to_string(),
                end: *end,
                data_bytes,
            });
        }
    }
    Ok(())
}

/// Reads name and end of every tensor, and stops at one more than `most`.
struct Spans {
    most: usize,
}

impl<'de> DeserializeSeed<'de> for Spans {
    type Value = Vec<(Cow<'de, str>, u64)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Spans {
    type Value = Vec<(Cow<'de, str>, u64)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut spans = Vec::new();
        while let Some(Name(name)) = access.next_key()? {
            if name == "__metadata__" {
                access.next_value::<FreeForm>()?;
                continue;
            }
            if name.contains(char::is_control) {
                // Names are shown to the user, whose terminal they must not steer.
                return Err(de::Error::custom("a tensor name with control characters"));
            }
            let tensor: RawTensor = access.next_value()?;
            spans.push((name, tensor.data_offsets.1));
            if spans.len() > self.most {
                // The rest is not worth reading: the caller refuses the file.
                while access.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                break;
            }
        }
        Ok(spans)
    }
}

/// A key, borrowed from the header where it has no escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    #[serde(rename = "dtype")]
    _dtype: safetensors::Dtype,
    #[serde(rename = "shape")]
    _shape: Rank,
    data_offsets: (u64, u64),
}

/// A shape of which only the length matters here.
struct Rank;

impl<'de> Deserialize<'de> for Rank {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Count;
        impl<'de> Visitor<'de> for Count {
            type Value = Rank;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Rank, A::Error> {
                let mut rank = 0;
                while seq.next_element::<u64>()?.is_some() {
                    rank += 1;
                    if rank > MAX_RANK {
                        return Err(de::Error::custom(format!(
                            "more than {MAX_RANK} dimensions"
                        )));
                    }
                }
                Ok(Rank)
            }
        }
        deserializer.deserialize_seq(Count)
    }
}

/// `__metadata__`: strings by name, of which only the number matters here.
struct FreeForm;

impl<'de> Deserialize<'de> for FreeForm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Count;
        impl<'de> Visitor<'de> for Count {
            type Value = FreeForm;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<FreeForm, A::Error> {
                let mut entries = 0;
                while access.next_entry::<Name<'de>, Name<'de>>()?.is_some() {
                    entries += 1;
                    if entries > MAX_METADATA {
                        return Err(de::Error::custom(format!(
                            "more than {MAX_METADATA} metadata entries"
                        )));
                    }
                }
                Ok(FreeForm)
            }
        }
        deserializer.deserialize_map(Count)
    }
}
