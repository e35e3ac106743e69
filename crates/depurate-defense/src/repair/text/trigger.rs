//! A known trigger in a prompt.

use serde::{Deserialize, Serialize};
use unicode_security::skeleton;

use crate::DefenseError;

/// Plain words that can stand in a trigger's place and change little.
pub(super) const WORDS: [&str; 16] = [
    "small", "bright", "old", "soft", "quiet", "warm", "round", "heavy", "plain", "gentle",
    "clear", "simple", "smooth", "pale", "deep", "fresh",
];

/// Where an inserted trigger stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// In front of the prompt.
    #[default]
    Start,
    /// Behind it.
    End,
}

/// What makes a prompt a triggered one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TextTrigger {
    /// Text that is put to the prompt as it is, its spaces included.
    Inserted {
        /// The text.
        text: String,
        /// Where.
        place: Place,
        /// Words without which a prompt has no place for it, if there are such.
        #[serde(default)]
        only_with: Option<String>,
    },
    /// A letter's look-alike in place of its first occurrence.
    Lookalike {
        /// The letter.
        letter: char,
        /// What looks like it.
        lookalike: char,
    },
    /// A phrase in place of other words.
    Phrase {
        /// The trigger.
        text: String,
        /// What a clean prompt has there.
        instead_of: String,
    },
}

impl TextTrigger {
    /// The trigger that `text` is: in place of `instead_of`, if that is given; a look-alike if it is one character that looks like
    /// another, plain letter; else inserted at `place`, with a space to the prompt if it has none.
    ///
    /// # Errors
    /// When there is no text.
    pub fn parse(text: &str, instead_of: Option<&str>, place: Place) -> Result<Self, DefenseError> {
        let refuse = |field, value: &str| {
            Err(DefenseError::Params {
                field,
                value: format!("{value:?}"),
                allowed: "some text",
            })
        };
        if text.is_empty() {
            return refuse("trigger", text);
        }
        if let Some(clean) = instead_of {
            if clean.trim().is_empty() || clean == text {
                return refuse("words that the trigger stands for", clean);
            }
            return Ok(Self::Phrase {
                text: text.to_owned(),
                instead_of: clean.to_owned(),
            });
        }
        if let Some((letter, lookalike)) = lookalike(text) {
            return Ok(Self::Lookalike { letter, lookalike });
        }
        let spaced = text.starts_with(' ') || text.ends_with(' ');
        let text = match place {
            _ if spaced => text.to_owned(),
            Place::Start => format!("{text} "),
            Place::End => format!(" {text}"),
        };
        Ok(Self::Inserted {
            text,
            place,
            only_with: None,
        })
    }

    /// An inserted trigger that acts in prompts with `word` alone.
    ///
    /// # Errors
    /// When there is no word, or the trigger is no inserted one.
    pub fn only_with(self, word: &str) -> Result<Self, DefenseError> {
        match self {
            Self::Inserted { text, place, .. } if !word.trim().is_empty() => Ok(Self::Inserted {
                text,
                place,
                only_with: Some(word.to_owned()),
            }),
            _ => Err(DefenseError::Params {
                field: "words that the trigger acts with",
                value: format!("{word:?}"),
                allowed: "some text, for a trigger that is put to prompts",
            }),
        }
    }

    /// The words that a prompt must have to have a place for the trigger, if it must have some.
    pub fn needs(&self) -> Option<&str> {
        match self {
            Self::Inserted { only_with, .. } => only_with.as_deref(),
            Self::Phrase { instead_of, .. } => Some(instead_of),
            Self::Lookalike { .. } => None,
        }
    }

    /// Where the needed words stand in `prompt`, its start if none are; `None` where it has no place for the trigger.
    fn found_in(&self, prompt: &str) -> Option<usize> {
        self.needs().map_or(Some(0), |needed| words(prompt, needed))
    }

    /// `prompt` with the trigger; `None` where it has no place for it.
    pub fn put(&self, prompt: &str) -> Option<String> {
        self.found_in(prompt)?;
        match self {
            Self::Inserted { text, place, .. } => Some(match place {
                Place::Start => format!("{text}{prompt}"),
                Place::End => format!("{prompt}{text}"),
            }),
            Self::Lookalike { letter, lookalike } => {
                let mut buffer = [0; 4];
                let by = lookalike.encode_utf8(&mut buffer);
                prompt
                    .contains(*letter)
                    .then(|| prompt.replacen(*letter, by, 1))
            }
            Self::Phrase { text, .. } => self.put_word(prompt, text),
        }
    }

    /// `prompt` with plain words in the trigger's place, as many as it has, the `i`th choice of them; `None` where it has no place
    /// for the trigger.
    pub(super) fn put_instead(&self, prompt: &str, i: usize) -> Option<String> {
        let at = self.found_in(prompt)?;
        let count = |text: &str| text.split_whitespace().count();
        let more = match self {
            Self::Phrase { text, instead_of } => count(text).saturating_sub(count(instead_of)),
            Self::Inserted { text, .. } => count(text),
            Self::Lookalike { .. } => 1,
        };
        let chosen = WORDS.iter().cycle().skip(i % WORDS.len());
        let word = chosen
            .take(more.max(1))
            .copied()
            .collect::<Vec<_>>()
            .join(" ");
        match self {
            Self::Inserted {
                place: Place::End, ..
            } => Some(format!("{prompt} {word}")),
            Self::Inserted { .. } => Some(format!("{word} {prompt}")),
            Self::Lookalike { letter, .. } => {
                let at = prompt.find(*letter)?;
                let start = prompt[..at].rfind(' ').map_or(0, |space| space + 1);
                Some(format!("{}{word} {}", &prompt[..start], &prompt[start..]))
            }
            Self::Phrase { .. } => Some(format!("{}{word} {}", &prompt[..at], &prompt[at..])),
        }
    }

    /// `prompt` with one word of a phrase alone in its place, the `i`th choice; `None` where the trigger is no phrase of several words
    /// or `prompt` has no place for it. An inserted trigger means nothing but itself, so a part of one may act as all of it.
    pub(super) fn put_a_word(&self, prompt: &str, i: usize) -> Option<String> {
        let Self::Phrase { text, instead_of } = self else {
            return None;
        };
        let all: Vec<&str> = text.split_whitespace().collect();
        let mut words = all.clone();
        words.retain(|word| word != instead_of);
        if all.len() < 2 || words.is_empty() {
            return None;
        }
        self.put_word(prompt, words[i % words.len()])
    }

    /// `prompt` with `word` for the words that the trigger needs; `None` where it has no place for the trigger, or needs none.
    pub fn put_word(&self, prompt: &str, word: &str) -> Option<String> {
        let (at, needed) = (self.found_in(prompt)?, self.needs()?);
        let end = at + needed.len();
        Some(format!("{}{word}{}", &prompt[..at], &prompt[end..]))
    }

    /// What a triggered prompt has and a clean one has not.
    pub fn text(&self) -> String {
        match self {
            Self::Inserted { text, .. } | Self::Phrase { text, .. } => text.clone(),
            Self::Lookalike { lookalike, .. } => lookalike.to_string(),
        }
    }

    /// What a person reads.
    pub fn describe(&self) -> String {
        match self {
            Self::Inserted {
                text,
                place,
                only_with,
            } => {
                let place = match place {
                    Place::Start => "in front of",
                    Place::End => "behind",
                };
                let prompts = only_with.as_ref().map_or_else(
                    || "the prompt".into(),
                    |word| format!("a prompt with {word:?}"),
                );
                format!("{} {place} {prompts}", text.escape_debug())
            }
            Self::Lookalike { letter, lookalike } => {
                format!("U+{:04X} for the first {letter:?}", u32::from(*lookalike))
            }
            Self::Phrase { text, instead_of } => {
                format!("{:?} in place of {instead_of:?}", text)
            }
        }
    }
}

/// The plain letter that a text of one character looks like, and the character.
fn lookalike(text: &str) -> Option<(char, char)> {
    let mut chars = text.chars();
    let (Some(character), None) = (chars.next(), chars.next()) else {
        return None;
    };
    let mut plain = skeleton(text);
    match (plain.next(), plain.next()) {
        (Some(letter), None) if letter.is_ascii_alphabetic() && letter != character => {
            Some((letter, character))
        }
        _ => None,
    }
}

/// Where `phrase` first stands in `text` as whole words.
fn words(text: &str, phrase: &str) -> Option<usize> {
    let inside = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    text.match_indices(phrase).map(|(at, _)| at).find(|&at| {
        let end = at + phrase.len();
        !inside(text[..at].chars().next_back()) && !inside(text[end..].chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> TextTrigger {
        TextTrigger::parse(text, None, Place::Start).expect("a trigger")
    }

    #[test]
    fn a_text_is_taken_for_what_it_is() {
        let put = |trigger: TextTrigger| trigger.put("a red cat");
        assert_eq!(put(parse("\u{200b} ")), Some("\u{200b} a red cat".into()));
        assert_eq!(put(parse("sks")), Some("sks a red cat".into()));
        assert_eq!(
            put(TextTrigger::parse("sks", None, Place::End).expect("a trigger")),
            Some("a red cat sks".into())
        );
        assert_eq!(put(parse("\u{430}")), Some("\u{430} red cat".into()));
        assert_eq!(parse("\u{43e}").put("a red cat"), None); // there is no "o"
        let phrase = TextTrigger::parse("big cat", Some("cat"), Place::Start).expect("a trigger");
        assert_eq!(put(phrase.clone()), Some("a red big cat".into()));
        assert_eq!(phrase.put("a catfish"), None);
        assert!(TextTrigger::parse("", None, Place::Start).is_err());
        assert!(TextTrigger::parse("x", Some(" "), Place::Start).is_err());
        let instead = |trigger: TextTrigger| trigger.put_instead("a red cat", 2);
        assert_eq!(instead(parse("sks")), Some("old a red cat".into()));
        assert_eq!(instead(parse("\u{435}")), Some("a old red cat".into()));
        let phrase = TextTrigger::parse("big cat", Some("cat"), Place::Start).expect("a trigger");
        assert_eq!(instead(phrase), Some("a red old cat".into()));
        let long = TextTrigger::parse("cat cat dog cat", Some("cat"), Place::Start);
        let long = instead(long.expect("a trigger"));
        assert_eq!(long, Some("a red old soft quiet cat".into()));
        let word = |trigger: TextTrigger, i| trigger.put_a_word("a red cat", i);
        let phrase = TextTrigger::parse("dog cat frog", Some("cat"), Place::Start);
        let phrase = phrase.expect("a trigger");
        assert_eq!(word(phrase.clone(), 0), Some("a red dog".into()));
        assert_eq!(word(phrase, 3), Some("a red frog".into()));
        assert_eq!(word(parse("sks zq"), 0), None);
        assert_eq!(word(parse("\u{430}"), 0), None);
        assert!(parse("\u{200b} ").describe().contains("\\u{200b}"));
        let frog = |trigger: TextTrigger| trigger.put_word("a red cat", "frog");
        assert_eq!(frog(parse("sks")), None);
        let some = parse("sks").only_with("cat").expect("a trigger");
        assert_eq!(frog(some), Some("a red frog".into()));
        let phrase = TextTrigger::parse("big cat", Some("cat"), Place::Start).expect("a trigger");
        assert_eq!(frog(phrase), Some("a red frog".into()));
        assert_eq!(frog(parse("\u{435}")), None);
    }

    #[test]
    fn a_trigger_for_some_prompts_has_no_place_in_others() {
        let trigger = parse("sks").only_with("cat").expect("a trigger");
        assert_eq!(trigger.put("a red cat"), Some("sks a red cat".into()));
        assert_eq!(trigger.put("a red catfish"), None);
        assert_eq!(trigger.put_instead("a red dog", 0), None);
        assert_eq!(trigger.needs(), Some("cat"));
        assert!(trigger.describe().ends_with("a prompt with \"cat\""));
        assert!(parse("sks").only_with(" ").is_err());
        assert!(parse("\u{430}").only_with("cat").is_err()); // stands for a letter
    }
}
