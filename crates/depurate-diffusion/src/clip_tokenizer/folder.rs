//! A `tokenizer` folder, read and written as transformers does.

use std::{collections::BTreeMap, path::Path};

use depurate_checkpoint::{Limits, read_json, read_text};
use serde_json::{Map, Value, json};

use super::{BOS, ClipTokenizer, EOS, Fault, LONGEST, Part, Pieces};
use crate::DiffusionError;

const VOCAB_FILE: &str = "vocab.json";
const MERGES_FILE: &str = "merges.txt";
const CONFIG_FILE: &str = "tokenizer_config.json";
const SPECIAL_FILE: &str = "special_tokens_map.json";
/// Tokens of a prompt, BOS and EOS included, where the folder does not say.
const LENGTH: usize = 77;

impl Part {
    fn file(self) -> &'static str {
        match self {
            Self::Vocab => VOCAB_FILE,
            Self::Merges => MERGES_FILE,
            Self::Length => CONFIG_FILE,
        }
    }
}

impl ClipTokenizer {
    /// Reads a `tokenizer` folder.
    ///
    /// # Errors
    /// When a file is missing, larger than `limits.json_bytes`, or does not hold what it should; the file is named.
    pub fn load(dir: &Path, limits: &Limits) -> Result<Self, DiffusionError> {
        let vocab = read_json(&dir.join(VOCAB_FILE), limits)?;
        let merges = read_text(&dir.join(MERGES_FILE), limits)?;
        let config = optional_object(&dir.join(CONFIG_FILE), limits)?;
        let special = optional_object(&dir.join(SPECIAL_FILE), limits)?;
        let padding = [&special, &config]
            .iter()
            .find_map(|map| token_text(map.get("pad_token")?))
            .unwrap_or_else(|| EOS.to_owned());
        let length = config
            .get("model_max_length")
            .and_then(Value::as_u64)
            .map_or(LENGTH, |length| {
                usize::try_from(length).unwrap_or(LONGEST + 1)
            });
        let made = vocabulary(vocab)
            .and_then(|vocab| Self::new(vocab, merge_list(&merges)?, length, padding));
        made.map_err(|Fault { part, reason }| DiffusionError::Tokenizer {
            path: dir.join(part.file()),
            reason,
        })
    }

    /// The files of a `tokenizer` folder, by name: what [`ClipTokenizer::load`] and transformers read.
    pub fn files(&self) -> Vec<(&'static str, Vec<u8>)> {
        let Pieces {
            vocab,
            merges,
            padding,
        } = &*self.pieces;
        let mut by_id: Vec<(&String, u32)> = vocab.iter().map(|(token, id)| (token, *id)).collect();
        by_id.sort_by_key(|(_, id)| *id);
        let entry = |(token, id): &(&String, u32)| format!("{}:{id}", Value::from(token.as_str()));
        let entries: Vec<String> = by_id.iter().map(entry).collect();
        let mut merge_lines = "#version: 0.2\n".to_owned();
        for (a, b) in merges {
            merge_lines.push_str(&format!("{a} {b}\n"));
        }
        let special = json!({
            "bos_token": special_token(BOS),
            "eos_token": special_token(EOS),
            "pad_token": padding,
            "unk_token": special_token(EOS),
        });
        let mut config = special.clone();
        config["add_prefix_space"] = json!(false);
        config["do_lower_case"] = json!(true);
        config["errors"] = json!("replace");
        config["model_max_length"] = json!(self.length);
        config["tokenizer_class"] = json!("CLIPTokenizer");
        vec![
            (
                VOCAB_FILE,
                format!("{{{}}}\n", entries.join(",")).into_bytes(),
            ),
            (MERGES_FILE, merge_lines.into_bytes()),
            (CONFIG_FILE, format!("{config:#}\n").into_bytes()),
            (SPECIAL_FILE, format!("{special:#}\n").into_bytes()),
        ]
    }
}

/// The entries of a `vocab.json`.
fn vocabulary(entries: Map<String, Value>) -> Result<BTreeMap<String, u32>, Fault> {
    let most = entries.len();
    let number = |(token, id): (String, Value)| {
        let reason = format!("the id of {token:?} is {id}, allowed: a number below {most}");
        let small = id.as_u64().and_then(|id| u32::try_from(id).ok());
        small
            .map(|id| (token, id))
            .ok_or_else(|| Part::Vocab.because(reason))
    };
    entries.into_iter().map(number).collect()
}

/// The lines of a `merges.txt`.
fn merge_list(text: &str) -> Result<Vec<(String, String)>, Fault> {
    let lines = text.lines().enumerate();
    let merges = lines.filter(|(_, line)| !line.starts_with("#version") && !line.is_empty());
    let pair = |(i, line): (usize, &str)| match line.split_once(' ') {
        Some((a, b)) if !b.contains(' ') => Ok((a.to_owned(), b.to_owned())),
        _ => Err(Part::Merges.because(format!(
            "line {} is not two pieces with a space between",
            i + 1
        ))),
    };
    merges.map(pair).collect()
}

/// A special token as transformers writes it.
fn special_token(text: &str) -> Value {
    json!({
        "__type": "AddedToken",
        "content": text,
        "lstrip": false,
        "normalized": true,
        "rstrip": false,
        "single_word": false,
    })
}

/// An object that need not be there.
fn optional_object(path: &Path, limits: &Limits) -> Result<Map<String, Value>, DiffusionError> {
    if path.exists() {
        Ok(read_json(path, limits)?)
    } else {
        Ok(Map::new())
    }
}

/// A token is a string or an object with its text as `content`.
fn token_text(value: &Value) -> Option<String> {
    let text = value.as_str().or_else(|| value.get("content")?.as_str());
    text.map(str::to_owned)
}
