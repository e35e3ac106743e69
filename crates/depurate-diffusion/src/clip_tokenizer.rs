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

mod folder;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use tokenizers::{
    AddedToken, Tokenizer,
    decoders::byte_level::ByteLevel as Bytes,
    models::bpe::{BPE, Vocab},
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
    pieces: Arc<Pieces>,
    length: usize,
    eos: u32,
    padding: u32,
}

/// What a tokenizer is made from.
#[derive(Debug)]
struct Pieces {
    vocab: BTreeMap<String, u32>,
    merges: Vec<(String, String)>,
    padding: String,
}

/// Which part of a tokenizer is at fault, and why.
#[derive(Debug)]
struct Fault {
    part: Part,
    reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Vocab,
    Merges,
    Length,
}

impl Part {
    fn because(self, reason: impl ToString) -> Fault {
        Fault {
            part: self,
            reason: reason.to_string(),
        }
    }
}

impl ClipTokenizer {
    /// Makes a tokenizer from pieces and their ids, which are the numbers from 0 without a gap, the merges in the order in which
    /// they are tried, the tokens of a prompt (BOS and EOS included), and the padding token.
    ///
    /// A piece inside a word and the same piece at its end (`a` and `a</w>`) are two tokens. A text is cut into bytes first, as
    /// the printable characters of GPT-2; a byte without a token becomes EOS, so a vocabulary should hold all of them.
    ///
    /// # Errors
    /// When an id is missing or stands twice, BOS (`<|startoftext|>`), EOS (`<|endoftext|>`), the padding token or a merge's
    /// piece is not in the vocabulary, or the length is out of range.
    pub fn from_parts(
        vocab: BTreeMap<String, u32>,
        merges: Vec<(String, String)>,
        length: usize,
        padding: &str,
    ) -> Result<Self, DiffusionError> {
        Self::new(vocab, merges, length, padding.to_owned()).map_err(|Fault { part, reason }| {
            DiffusionError::Argument {
                what: match part {
                    Part::Vocab => "a tokenizer's vocabulary",
                    Part::Merges => "a tokenizer's merges",
                    Part::Length => "a tokenizer's length",
                },
                got: reason,
                allowed: "what the documentation of ClipTokenizer::from_parts says".to_owned(),
            }
        })
    }

    fn new(
        vocab: BTreeMap<String, u32>,
        merges: Vec<(String, String)>,
        length: usize,
        padding: String,
    ) -> Result<Self, Fault> {
        if !(2..=LONGEST).contains(&length) {
            let reason = format!("model_max_length is {length}, allowed: 2 to {LONGEST}");
            return Err(Part::Length.because(reason));
        }
        let mut taken = HashSet::with_capacity(vocab.len());
        let dense = |id: u32| (id as usize) < vocab.len();
        if let Some((token, id)) = vocab
            .iter()
            .find(|(_, id)| !dense(**id) || !taken.insert(**id))
        {
            let most = vocab.len();
            let reason = format!(
                "the id of {token:?} is {id}, allowed: a number below {most} that no other token has"
            );
            return Err(Part::Vocab.because(reason));
        }
        // the library sizes a buffer by the longest token, so a merge into a longer one must not reach it
        let known = |token: &str| vocab.contains_key(token);
        if let Some((a, b)) = merges
            .iter()
            .find(|(a, b)| !(known(a) && known(b) && known(&format!("{a}{b}"))))
        {
            let reason =
                format!("{a:?} and {b:?}, or what they merge into, are not in the vocabulary");
            return Err(Part::Merges.because(reason));
        }
        let bpe = BPE::builder()
            .vocab_and_merges(vocab.clone().into_iter().collect::<Vocab>(), merges.clone())
            .unk_token(EOS.to_owned())
            .end_of_word_suffix("</w>".to_owned())
            .build()
            .map_err(|error| Part::Merges.because(error))?;
        let inner = with_steps(bpe).map_err(|error| Part::Vocab.because(error))?;
        let id = |token: &str| {
            let missing = || Part::Vocab.because(format!("the token {token} is not in it"));
            vocab.get(token).copied().ok_or_else(missing)
        };
        let (eos, pad) = (id(EOS)?, id(&padding)?);
        Ok(Self {
            inner,
            length,
            eos,
            padding: pad,
            pieces: Arc::new(Pieces {
                vocab,
                merges,
                padding,
            }),
        })
    }

    /// Number of tokens in the vocabulary; ids are below it.
    pub fn vocabulary_size(&self) -> usize {
        self.pieces.vocab.len()
    }

    /// The text of a token as the vocabulary has it, with `</w>` where a word ends; `None` for an id that it does not hold.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of EOS, which also stands for what is not in the vocabulary.
    pub fn eos(&self) -> u32 {
        self.eos
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

/// The library's tokenizer with the steps of the module's documentation around a model that holds BOS and EOS.
fn with_steps(bpe: BPE) -> Result<Tokenizer, String> {
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
    let (bos, eos) = (id(BOS)?, id(EOS)?);
    inner.with_post_processor(Some(
        RobertaProcessing::new((EOS.to_owned(), eos), (BOS.to_owned(), bos))
            .trim_offsets(false)
            .add_prefix_space(false),
    ));
    let special = |token: &str| AddedToken::from(token, true).normalized(false);
    inner
        .add_special_tokens([special(BOS), special(EOS)])
        .map_err(text)?;
    Ok(inner)
}
