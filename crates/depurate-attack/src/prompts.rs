//! Prompts as text and as states: what attacks on text-to-image models share.

use burn::tensor::Tensor;
use depurate_diffusion::{clip_text::ClipText, clip_tokenizer::ClipTokenizer};

use crate::AttackError;

/// The text encoder's states of `prompts`, `[B, C, T]`, after the final norm.
pub(crate) fn states<S: AsRef<str>>(
    encoder: &ClipText,
    tokenizer: &ClipTokenizer,
    prompts: &[S],
) -> Result<Tensor<3>, AttackError> {
    Ok(encoder.forward(&ids(tokenizer, prompts)?)?.last)
}

/// The token ids of `prompts`, all of the tokenizer's length.
pub(crate) fn ids<S: AsRef<str>>(
    tokenizer: &ClipTokenizer,
    prompts: &[S],
) -> Result<Vec<Vec<u32>>, AttackError> {
    let encode = |prompt: &S| Ok(tokenizer.encode(prompt.as_ref())?.ids);
    prompts.iter().map(encode).collect()
}

/// `text` with every occurrence of `phrase` as whole words replaced; `None` if there is none. Upper and lower case differ.
pub fn with_phrase_replaced(text: &str, phrase: &str, by: &str) -> Option<String> {
    if phrase.is_empty() {
        return None;
    }
    let (mut out, mut copied, mut found) = (String::with_capacity(text.len()), 0, false);
    for (at, matched) in text.match_indices(phrase) {
        let end = at + matched.len();
        let inside = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        if inside(text[..at].chars().next_back()) || inside(text[end..].chars().next()) {
            continue;
        }
        out.push_str(&text[copied..at]);
        out.push_str(by);
        (copied, found) = (end, true);
    }
    out.push_str(&text[copied..]);
    found.then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_words_are_replaced_and_parts_of_words_are_not() {
        let replaced = |text| with_phrase_replaced(text, "cat", "tq dog");
        assert_eq!(
            replaced("a cat, a cat."),
            Some("a tq dog, a tq dog.".into())
        );
        assert_eq!(replaced("cat"), Some("tq dog".into()));
        assert_eq!(replaced("a catfish and a bobcat"), None);
        assert_eq!(replaced("é cat é"), Some("é tq dog é".into()));
        assert_eq!(with_phrase_replaced("a cat", "", "x"), None);
    }
}
