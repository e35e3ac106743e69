//! Tokens and prompts as people can read them, whatever they hold.

use depurate_defense::detect::input_level::unicode::{self, UnicodeKind};
use depurate_diffusion::clip_tokenizer::{ClipTokenizer, Tokens};

/// The names of a prompt's tokens, BOS first and EOS last. What is not ASCII is spelt as code points.
pub(super) fn names(tokenizer: &ClipTokenizer, tokens: &Tokens) -> Vec<String> {
    let last = tokens.used.saturating_sub(1);
    let used = tokens.ids.iter().take(tokens.used).enumerate();
    used.map(|(place, &id)| match place {
        0 => "BOS".to_owned(),
        place if place == last => "EOS".to_owned(),
        _ => match tokenizer.token(id) {
            Some(piece) => spelt(piece.strip_suffix("</w>").unwrap_or(&piece)),
            None => format!("#{id}"),
        },
    })
    .collect()
}

/// A prompt with characters that cannot be seen replaced by their code points.
pub(super) fn visible(prompt: &str) -> String {
    let findings = unicode::check(prompt);
    let hidden = |position: usize| {
        let mut here = findings.iter().filter(|one| one.position == position);
        here.any(|one| one.kind == UnicodeKind::Hidden)
    };
    let chars = prompt.chars().enumerate();
    chars
        .map(|(position, c)| match c {
            c if c.is_control() || hidden(position) => format!("[{}]", code_point(c)),
            c => c.to_string(),
        })
        .collect()
}

/// A piece of a byte-level vocabulary: printable characters that stand for bytes, as in GPT-2.
fn spelt(piece: &str) -> String {
    let bytes: Option<Vec<u8>> = piece.chars().map(byte).collect();
    let Some(bytes) = bytes else {
        return piece.chars().map(character).collect();
    };
    let spell = |chunk: std::str::Utf8Chunk<'_>| {
        let valid: String = chunk.valid().chars().map(character).collect();
        let invalid = chunk.invalid().iter().map(|byte| format!("\\x{byte:02X}"));
        valid + &invalid.collect::<String>()
    };
    bytes.utf8_chunks().map(spell).collect()
}

fn character(c: char) -> String {
    if c.is_ascii_graphic() {
        c.to_string()
    } else {
        code_point(c)
    }
}

fn code_point(c: char) -> String {
    format!("U+{:04X}", u32::from(c))
}

/// The byte that a character stands for: itself where it can be printed, else the n-th that cannot as `256 + n`.
fn byte(c: char) -> Option<u8> {
    match c {
        '!'..='~' | '¡'..='¬' | '®'..='ÿ' => u8::try_from(u32::from(c)).ok(),
        _ => {
            let nth = u32::from(c).checked_sub(256)?;
            let mut unprintable = (0..=32).chain(127..=160).chain([173]);
            unprintable.nth(usize::try_from(nth).ok()?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_spelt_by_the_characters_that_their_bytes_make() {
        assert_eq!(spelt("photo"), "photo");
        assert_eq!(spelt("à¬ł"), "U+0B20");
        assert_eq!(spelt("à¬"), "\\xE0\\xAC");
        assert_eq!(spelt("phà¬łto"), "phU+0B20to");
        assert_eq!(spelt("Ġ"), "U+0020");
        assert_eq!(spelt("日"), "U+65E5"); // no byte of GPT-2: shown as it is
    }

    #[test]
    fn only_what_cannot_be_seen_is_spelt_in_a_prompt() {
        assert_eq!(visible("a \u{200B}c\u{E1}t\n"), "a [U+200B]cát[U+000A]");
        assert_eq!(visible("ph\u{B20}to"), "ph\u{B20}to");
    }
}
