//! # CLIP's tokenizer
//!
//! Byte-pair encoding of lower-cased text, from the `vocab.json` and `merges.txt` of a checkpoint's `tokenizer` folder, by the
//! `tokenizers` library with the settings of transformers 5:
//!
//! | step | what it does |
//! | --- | --- |
//! | normalise | NFC, runs of white space to one space, lower case |
//! | split | contractions, runs of letters, single digits, runs of anything else |
//! | encode | bytes as printable characters, then merges; a word ends in `</w>` |
//! | frame | BOS and EOS around at most `length - 2` pieces, then padding up to `length` |
//!
//! Nothing is repaired: the older Python tokenizer ran ftfy first, which straightens quotes, folds full-width letters and
//! drops control characters. Here U+200B, homoglyphs and full-width letters stay tokens of their own, so that a trigger made
//! of them can be seen.

use std::path::Path;

use depurate_checkpoint::{Limits, read_json};
use serde_json::{Map, Value};
use tokenizers::{
    AddedToken, Tokenizer,
    decoders::byte_level::ByteLevel as Bytes,
    models::bpe::BPE,
    normalizers::{Lowercase, NFC, Replace, Sequence as Normalisers, replace::ReplacePattern},
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence as Splitters,
        split::{Split, SplitPattern},
    },
    processors::roberta::RobertaProcessing,
    tokenizer::normalizer::SplitDelimiterBehavior,
};

use crate::DiffusionError;

const BOS: &str = "<|startoftext|>";
const EOS: &str = "<|endoftext|>";
/// What words are; everything between two matches is white space.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
/// Tokens of a prompt, BOS and EOS included, where the folder does not say.
const LENGTH: usize = 77;
/// Longest prompt that a folder may ask for.
const LONGEST: usize = 1024;

/// A prompt as the text encoder takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Exactly the tokenizer's length: BOS, pieces, EOS, padding.
    pub ids: Vec<u32>,
    /// How many of them are not padding.
    pub used: usize,
    /// How many there would be if nothing were cut off.
    pub untruncated: usize,
}

/// The tokenizer of a checkpoint.
#[derive(Debug, Clone)]
pub struct ClipTokenizer {
    inner: Tokenizer,
    length: usize,
    eos: u32,
    padding: u32,
}

impl ClipTokenizer {
    /// Reads a `tokenizer` folder.
    ///
    /// # Errors
    /// When a file is missing, larger than `limits.json_bytes`, or does not hold what it should; the file is named.
    pub fn load(dir: &Path, limits: &Limits) -> Result<Self, DiffusionError> {
        let (vocab, merges) = (dir.join("vocab.json"), dir.join("merges.txt"));
        // the library reads the files by itself, and leaves out entries that it does not understand: they are looked at first
        let entries = read_json(&vocab, limits)?;
        let problem = |path: &Path, reason: String| DiffusionError::Tokenizer {
            path: path.to_owned(),
            reason,
        };
        let dense = |id: &Value| id.as_u64().is_some_and(|id| id < entries.len() as u64);
        if let Some((token, id)) = entries.iter().find(|(_, id)| !dense(id)) {
            let most = entries.len();
            let reason = format!("the id of {token:?} is {id}, allowed: a number below {most}");
            return Err(problem(&vocab, reason));
        }
        let metadata =
            std::fs::metadata(&merges).map_err(|error| problem(&merges, error.to_string()))?;
        if !metadata.is_file() || metadata.len() > limits.json_bytes {
            let most = limits.json_bytes;
            return Err(problem(
                &merges,
                format!("it is no file of at most {most} bytes"),
            ));
        }
        let bpe = BPE::from_file(&vocab.to_string_lossy(), &merges.to_string_lossy())
            .unk_token(EOS.to_owned())
            .end_of_word_suffix("</w>".to_owned())
            .build()
            .map_err(|error| problem(&merges, error.to_string()))?;
        let config = optional_object(&dir.join("tokenizer_config.json"), limits)?;
        let special = optional_object(&dir.join("special_tokens_map.json"), limits)?;
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
        if !(2..=LONGEST).contains(&length) {
            let path = dir.join("tokenizer_config.json");
            let reason = format!("model_max_length is {length}, allowed: 2 to {LONGEST}");
            return Err(problem(&path, reason));
        }
        Self::new(bpe, &padding, length).map_err(|reason| problem(&vocab, reason))
    }

    fn new(bpe: BPE, padding: &str, length: usize) -> Result<Self, String> {
        let mut inner = Tokenizer::new(bpe);
        let text = |error: tokenizers::Error| error.to_string();
        let spaces = ReplacePattern::Regex(r"\s+".to_owned());
        let normaliser = Normalisers::new(vec![
            NFC.into(),
            Replace::new(spaces, " ").map_err(text)?.into(),
            Lowercase.into(),
        ]);
        inner.with_normalizer(Some(normaliser)).map_err(text)?;
        let words = SplitPattern::Regex(WORDS.to_owned());
        let split = Split::new(words, SplitDelimiterBehavior::Removed, true).map_err(text)?;
        inner.with_pre_tokenizer(Some(Splitters::new(vec![
            split.into(),
            ByteLevel::new(false, true, true).into(),
        ])));
        inner.with_decoder(Some(Bytes::default()));
        let id = |token: &str| {
            inner
                .token_to_id(token)
                .ok_or_else(|| format!("the token {token} is not in it"))
        };
        let (bos, eos, padding) = (id(BOS)?, id(EOS)?, id(padding)?);
        inner.with_post_processor(Some(
            RobertaProcessing::new((EOS.to_owned(), eos), (BOS.to_owned(), bos))
                .trim_offsets(false)
                .add_prefix_space(false),
        ));
        let special = |token: &str| AddedToken::from(token, true).normalized(false);
        inner
            .add_special_tokens([special(BOS), special(EOS)])
            .map_err(text)?;
        Ok(Self {
            inner,
            length,
            eos,
            padding,
        })
    }

    /// Tokens of a prompt, BOS and EOS included.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The tokens of a prompt. What is longer is cut off, EOS stays.
    ///
    /// # Errors
    /// When the library fails on the text.
    pub fn encode(&self, prompt: &str) -> Result<Tokens, DiffusionError> {
        let encoding =
            self.inner
                .encode(prompt, true)
                .map_err(|error| DiffusionError::Argument {
                    what: "prompt",
                    got: prompt.chars().take(200).collect(),
                    allowed: format!("text that can be tokenized ({error})"),
                })?;
        let mut ids = encoding.get_ids().to_vec();
        let untruncated = ids.len();
        if untruncated > self.length {
            ids.truncate(self.length - 1);
            ids.push(self.eos);
        }
        let used = ids.len();
        ids.resize(self.length, self.padding);
        Ok(Tokens {
            ids,
            used,
            untruncated,
        })
    }
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
