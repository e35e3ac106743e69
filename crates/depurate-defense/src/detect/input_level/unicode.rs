//! # Unicode: characters that are not what they look like
//!
//! The cheapest triggers are characters: a letter of another script that looks like a Latin one, a space without width. A
//! tokenizer tells them apart where a reader does not. This check reads a prompt's characters and needs no model.
//!
//! ## Paper
//! Unicode Technical Standard #39, "Unicode Security Mechanisms": confusables (sec. 4) and mixed scripts (sec. 5). Attacks that
//! it is for: Struppek et al., "Rickrolling the Artist", ICCV 2023 (homoglyphs); Zhai et al., "Text-to-Image Diffusion Models
//! can be Easily Backdoored through Multimodal Data Poisoning", ACM MM 2023 (zero-width space).
//!
//! ## Notation
//! | code | meaning |
//! |---|---|
//! | `word` | letters, digits, marks and hidden characters without anything between |
//! | `main script` | the most frequent script of a word or text; characters common to all scripts do not count |
//! | `skeleton` | what a text looks like: confusable characters replaced by one prototype each |
//!
//! ## Method
//! A character gets at most one finding, the first that applies:
//! ```text
//! hidden        no visible form of its own: format and control characters, fillers, private use, unusual spaces
//! confusable    looks like letters of the word's or the text's main script, or is an ASCII letter in another dress
//! mixed script  of another script than the rest of its word
//! accent        a variant of a basic Latin letter, in a text that has at most two of them and is ASCII otherwise
//! ```
//! Not flagged: text in one script, whichever it is; scripts that are written together (Japanese, Korean, Chinese with Latin);
//! joiners where a script or an emoji uses them; direction marks in text with a script that runs to the left.
//!
//! ## Needs
//! The prompt. No model and no calibration: findings are facts about the text, not scores.
//!
//! ## Deviations
//! - UTS #39 is about identifiers. Prompts are prose, so scripts are compared within words and not within the whole text.
//! - Accents are evidence of the lowest confidence: one attack uses them, and so do many languages.
//!
//! ## Fails when
//! the trigger is made of ordinary characters: words, names, syntax. A prompt that is not flagged is not cleared.
//!
//! ## Cost
//! Microseconds.

mod hidden;
mod scripts;

use depurate_report::{Access, AlgorithmId, AlgorithmInfo, Confidence, Kind, Paper, Status};
use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};
use unicode_script::{Script, UnicodeScript};
use unicode_security::{GeneralSecurityProfile, confusable_detection::skeleton};

use scripts::{MainScript, Odd};

/// The check's id.
pub const ID: &str = "unicode";
/// A text with more accented letters than this is taken for a language that writes them.
const MOST_ACCENTS: usize = 2;

/// What is unusual about a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnicodeKind {
    /// It has no visible form of its own.
    Hidden,
    /// It looks like other letters.
    Confusable,
    /// It is of another script than its word.
    MixedScript,
    /// It is a basic Latin letter with an accent or a variant of one.
    Accent,
}

/// A character that a reader may not see for what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnicodeFinding {
    /// What is unusual.
    pub kind: UnicodeKind,
    /// How sure it is that this is no ordinary writing.
    pub confidence: Confidence,
    /// The character.
    pub character: char,
    /// Its place in the text, in characters from 0.
    pub position: usize,
    /// Its place in the text, in bytes of UTF-8 from 0.
    pub byte: usize,
    /// `U+0B20`
    pub code_point: String,
    /// `ORIYA LETTER TTHA`; `None` for characters without a name.
    pub name: Option<String>,
    /// The word that it stands in.
    pub word: String,
    /// What it looks like, where that is known.
    pub looks_like: Option<String>,
}

/// A character with its byte offset.
type Char = (usize, char);

/// Finds unusual characters, in the order of the text.
pub fn check(text: &str) -> Vec<UnicodeFinding> {
    let chars: Vec<Char> = text.char_indices().collect();
    let script = MainScript::of(chars.iter().map(|&(_, c)| c));
    let few_accents = few_accents(&chars);
    let mut findings = Vec::new();
    let mut start = 0;
    for run in chars.chunk_by(|a, b| in_word(a.1) && in_word(b.1)) {
        let word: String = run.iter().map(|&(_, c)| c).collect();
        let odd = scripts::odd_characters(run, &script);
        for (offset, &(byte, c)) in run.iter().enumerate() {
            let position = start + offset;
            let of_word = || odd.get(offset).cloned().flatten().map(Odd::finding);
            let seen = if c.is_ascii() && !c.is_ascii_control() {
                of_word() // a Latin letter in a word of another script
            } else {
                hidden::hidden(&chars, position, &script)
                    .map(|confidence| (UnicodeKind::Hidden, confidence, None))
                    .or_else(|| other_dress(c, &script))
                    .or_else(of_word)
                    .or_else(|| technical_letter(c, &script))
                    .or_else(|| {
                        let base = basic_letter(&chars, position).filter(|_| few_accents)?;
                        Some((UnicodeKind::Accent, Confidence::Low, Some(base)))
                    })
            };
            if let Some((kind, confidence, looks_like)) = seen {
                findings.push(UnicodeFinding {
                    kind,
                    confidence,
                    character: c,
                    position,
                    byte,
                    code_point: format!("U+{:04X}", u32::from(c)),
                    name: unicode_names2::name(c).map(|name| name.to_string()),
                    word: word.clone(),
                    looks_like,
                });
            }
        }
        start += run.len();
    }
    findings
}

type Seen = (UnicodeKind, Confidence, Option<String>);

/// Whether a character continues a word. Hidden ones do: they are put inside words.
fn in_word(c: char) -> bool {
    c.is_alphanumeric()
        || c.general_category_group() == GeneralCategoryGroup::Mark
        || hidden::without_width(c)
}

/// ASCII letters and digits in another dress: full width, mathematical, circled, ligatures.
fn other_dress(c: char, text: &MainScript) -> Option<Seen> {
    let ordinal = matches!(c, 'ª' | 'º');
    let full_width = matches!(c, '\u{FF01}'..='\u{FF5E}') && text.has_east_asian;
    if !c.is_alphanumeric() || c.is_numeric() && !c.is_alphabetic() && !is_digit(c) {
        return None;
    }
    let plain: String = std::iter::once(c).nfkd().collect();
    let ascii = plain.chars().all(|c| c.is_ascii_alphanumeric());
    (ascii && !ordinal && !full_width).then_some((
        UnicodeKind::Confusable,
        Confidence::Medium,
        Some(plain),
    ))
}

fn is_digit(c: char) -> bool {
    c.general_category() == unicode_properties::GeneralCategory::DecimalNumber
}

/// Latin letters outside of any alphabet in use (phonetic ones, for example) that look like a basic one.
fn technical_letter(c: char, text: &MainScript) -> Option<Seen> {
    let candidate = c.script() == Script::Latin && !c.identifier_allowed() && text.is_latin();
    let looks = looks_like(c).filter(|_| candidate)?;
    let basic = looks.chars().all(|c| c.is_ascii_alphanumeric());
    basic.then_some((UnicodeKind::Confusable, Confidence::Medium, Some(looks)))
}

/// The basic Latin letter that the character at `position` varies: with an accent, as a mark on it, or by its look.
fn basic_letter(chars: &[Char], position: usize) -> Option<String> {
    let c = chars[position].1;
    let before = position.checked_sub(1).map(|before| chars[before].1);
    if c.general_category_group() == GeneralCategoryGroup::Mark {
        return before
            .filter(char::is_ascii_alphabetic)
            .map(|base| base.to_string());
    }
    if c.script() != Script::Latin {
        return None;
    }
    let base = std::iter::once(c).nfd().next()?;
    if base.is_ascii_alphabetic() {
        return Some(base.to_string());
    }
    looks_like(c).filter(|looks| looks.starts_with(|c: char| c.is_ascii_alphabetic()))
}

/// Whether accents are so rare in this text that they stand out.
fn few_accents(chars: &[Char]) -> bool {
    let foreign = (0..chars.len()).filter(|&i| {
        let c = chars[i].1;
        let letter = c.is_alphabetic() || c.general_category_group() == GeneralCategoryGroup::Mark;
        letter && !c.is_ascii()
    });
    let foreign: Vec<usize> = foreign.collect();
    foreign.len() <= MOST_ACCENTS && foreign.iter().all(|&i| basic_letter(chars, i).is_some())
}

/// What a character looks like, if that is something else.
fn looks_like(c: char) -> Option<String> {
    let own = c.to_string();
    let looks: String = skeleton(&own).collect();
    (looks != own).then_some(looks)
}

/// Who and what this check is.
pub fn info() -> AlgorithmInfo {
    AlgorithmInfo {
        id: AlgorithmId::from_static(ID),
        name: "Unicode check",
        kind: Kind::InputDetector,
        paper: Paper {
            authors: "Davis and Suignard",
            title: "Unicode Technical Standard #39: Unicode Security Mechanisms",
            venue: "Unicode Consortium",
            year: 2024,
            arxiv: None,
            implements: "sec. 4 and 5, within words",
        },
        reference: None,
        needs: Access::NONE,
        deviations: &[
            "scripts are compared within words",
            "accents are weak evidence",
        ],
        status: Status::Preview,
    }
}

#[cfg(test)]
mod tests;
