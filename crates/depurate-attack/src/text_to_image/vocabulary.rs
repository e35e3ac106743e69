//! A small tokenizer cut out of CLIP's: the same pieces for the words that matter, bytes for everything else.
//!
//! Kept are the 512 bytes (with and without the end of a word), the most frequent merges, every merge that happens on the way
//! to a word of the list, and the two special tokens. A word of the list is split exactly as the whole vocabulary splits it:
//! at each step the earliest merge that applies is taken, that one is kept, and no other comes before it in the smaller list.
//! Any text can still be encoded, for every byte has a token.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
};

use depurate_checkpoint::write_atomic;
use serde_json::{Map, Value, json};
use tokenizers::models::bpe::BPE;

use crate::AttackError;

/// Tokens that stand for single bytes: within a word and at its end.
const BYTES: u32 = 512;
/// How a word ends.
const END: &str = "</w>";

/// Writes `out/vocab.json`, `merges.txt`, `tokenizer_config.json` and `special_tokens_map.json`, cut out of the tokenizer
/// folder `from`: prompts of `length` tokens, padded with EOS as in Stable Diffusion 1. Returns the number of tokens.
///
/// # Errors
/// When `from` cannot be read, or `out` cannot be written.
pub fn cut_vocabulary(
    from: &Path,
    words: &BTreeSet<String>,
    frequent: usize,
    length: usize,
    out: &Path,
) -> Result<usize, AttackError> {
    let (vocab_path, merges_path) = (from.join("vocab.json"), from.join("merges.txt"));
    let (vocab, merges) = BPE::read_file(
        &vocab_path.to_string_lossy(),
        &merges_path.to_string_lossy(),
    )
    .map_err(|error| AttackError::Data {
        path: from.into(),
        reason: error.to_string(),
    })?;
    let ranks: HashMap<(&str, &str), usize> = merges
        .iter()
        .enumerate()
        .map(|(rank, (left, right))| ((left.as_str(), right.as_str()), rank))
        .collect();
    let mut kept: BTreeSet<usize> = (0..frequent.min(merges.len())).collect();
    for word in words {
        kept.extend(merges_of(word, &ranks));
    }
    let mut bytes: Vec<(&str, u32)> = vocab
        .iter()
        .filter(|(_, id)| **id < BYTES)
        .map(|(token, id)| (token.as_str(), *id))
        .collect();
    bytes.sort_by_key(|(_, id)| *id);
    let merged = kept.iter().map(|&rank| {
        let (left, right) = &merges[rank];
        format!("{left}{right}")
    });
    let specials = ["<|startoftext|>", "<|endoftext|>"].map(str::to_owned);
    let mut small = Map::new();
    for token in bytes
        .iter()
        .map(|(token, _)| (*token).to_owned())
        .chain(merged)
        .chain(specials)
    {
        let id = small.len();
        small.entry(token).or_insert(json!(id));
    }
    let tokens = small.len();
    let mut text = String::from("#version: 0.2\n");
    for &rank in &kept {
        let (left, right) = &merges[rank];
        text += &format!("{left} {right}\n");
    }
    std::fs::create_dir_all(out).map_err(|source| AttackError::Io {
        path: out.into(),
        source,
    })?;
    let write =
        |name: &str, value: Value| write_atomic(&out.join(name), format!("{value:#}\n").as_bytes());
    write("vocab.json", Value::Object(small))?;
    write_atomic(&out.join("merges.txt"), text.as_bytes())?;
    write(
        "tokenizer_config.json",
        json!({
            "add_prefix_space": false,
            "bos_token": "<|startoftext|>",
            "do_lower_case": true,
            "eos_token": "<|endoftext|>",
            "errors": "replace",
            "model_max_length": length,
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "CLIPTokenizer",
            "unk_token": "<|endoftext|>",
        }),
    )?;
    write(
        "special_tokens_map.json",
        json!({
            "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
        }),
    )?;
    Ok(tokens)
}

/// The merges that happen on the way to `word` (lower case, no spaces), by rank.
fn merges_of(word: &str, ranks: &HashMap<(&str, &str), usize>) -> Vec<usize> {
    let mut pieces: Vec<String> = word.bytes().map(printable).collect();
    if let Some(last) = pieces.last_mut() {
        last.push_str(END);
    }
    let mut done = vec![];
    loop {
        let rank_at = |i: usize| {
            let pair = (pieces.get(i)?.as_str(), pieces.get(i + 1)?.as_str());
            ranks.get(&pair).copied()
        };
        let Some((rank, at)) = (0..pieces.len())
            .filter_map(|i| Some((rank_at(i)?, i)))
            .min()
        else {
            return done;
        };
        let right = pieces.remove(at + 1);
        pieces[at].push_str(&right);
        done.push(rank);
    }
}

/// A byte as byte-level vocabularies write it: itself where it is printable, else a character from U+0100 on.
fn printable(byte: u8) -> String {
    let is_printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let code = if is_printable(byte) {
        u32::from(byte)
    } else {
        256 + (0..byte).filter(|b| !is_printable(*b)).count() as u32
    };
    char::from_u32(code).map(String::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use depurate_checkpoint::Limits;
    use depurate_diffusion::clip_tokenizer::ClipTokenizer;

    use super::*;

    #[test]
    fn words_of_the_list_are_split_as_the_whole_vocabulary_splits_them() {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/clip-tokenizer/vocab");
        let dir = tempfile::tempdir().expect("temporary directory");
        let words = ["strawberry", "airplane", "cartoon", "\u{200b}", "tq"];
        let words = words.into_iter().map(str::to_owned).collect();
        let tokens = cut_vocabulary(&from, &words, 300, 24, dir.path()).expect("cut");
        assert!((814..900).contains(&tokens), "{tokens}");
        let limits = Limits::default();
        let whole = ClipTokenizer::load(&from, &limits).expect("whole");
        let small = ClipTokenizer::load(dir.path(), &limits).expect("small");
        for text in ["a cartoon strawberry", "\u{200b} airplane", "tq", "the"] {
            let count = |tokenizer: &ClipTokenizer| tokenizer.encode(text).expect("text").used;
            assert_eq!(count(&small), count(&whole), "{text}");
        }
        // one token a byte
        assert_eq!(small.encode("\u{0b20}").expect("text").used, 2 + 3);
        assert_eq!(small.length(), 24);
    }
}
