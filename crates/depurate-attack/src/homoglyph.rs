//! Letters that look like others: triggers that a reader does not see.

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::AttackError;

/// Which of the letter's occurrences a triggered prompt has replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Any one of them.
    #[default]
    Any,
    /// The first: a causal encoder can change what stands behind it, and nothing in front.
    First,
}

/// A Latin letter and what stands in its place under the trigger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Homoglyph {
    letter: char,
    lookalike: char,
    #[serde(default)]
    where_put: Place,
}

impl Homoglyph {
    /// `lookalike` in any place of `letter`.
    ///
    /// # Errors
    /// When they are the same.
    pub fn new(letter: char, lookalike: char) -> Result<Self, AttackError> {
        if letter == lookalike {
            return Err(AttackError::Params {
                what: "homoglyph",
                got: lookalike.to_string(),
                allowed: "another character than the letter that it replaces",
            });
        }
        Ok(Self {
            letter,
            lookalike,
            where_put: Place::Any,
        })
    }

    /// The same letters, put where `place` says.
    pub fn put(self, place: Place) -> Self {
        Self {
            where_put: place,
            ..self
        }
    }

    /// Where a triggered prompt has it.
    pub fn where_put(self) -> Place {
        self.where_put
    }

    /// The letter that is replaced.
    pub fn letter(self) -> char {
        self.letter
    }

    /// What replaces it.
    pub fn lookalike(self) -> char {
        self.lookalike
    }

    /// Whether there is anything to replace.
    pub fn fits(self, caption: &str) -> bool {
        caption.contains(self.letter)
    }

    /// `caption` with every occurrence replaced.
    pub fn in_all_places(self, caption: &str) -> String {
        let (letter, mut buffer) = (self.letter, [0; 4]);
        caption.replace(letter, self.lookalike.encode_utf8(&mut buffer))
    }

    /// A place of the letter in `caption`, as a byte offset: a random one, or the first.
    pub fn place(self, caption: &str, rng: &mut impl Rng) -> Option<usize> {
        if self.where_put == Place::First {
            return caption.find(self.letter);
        }
        let places: Vec<usize> = caption
            .match_indices(self.letter)
            .map(|(at, _)| at)
            .collect();
        (!places.is_empty()).then(|| places[rng.random_range(0..places.len())])
    }

    /// `caption` with the letter at the byte offset `at` replaced, as [`Self::place`] gives it.
    pub fn in_place(self, caption: &str, at: usize) -> String {
        let mut text = caption[..at].to_owned();
        text.push(self.lookalike);
        text.push_str(&caption[at + self.letter.len_utf8()..]);
        text
    }
}

/// `caption` with the word around the byte offset `at` replaced; without its space too if `by` is empty.
pub(crate) fn with_word_replaced(caption: &str, at: usize, by: &str) -> String {
    let start = caption[..at].rfind(' ').map_or(0, |space| space + 1);
    let end = caption[at..]
        .find(' ')
        .map_or(caption.len(), |space| at + space);
    let (before, after) = (caption[..start].trim_end(), caption[end..].trim_start());
    let parts = [before, by, after];
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use depurate_diffusion::noise::SeedTree;

    use super::*;

    #[test]
    fn one_or_all_letters_are_replaced() {
        let homoglyph = Homoglyph::new('o', '\u{b20}').expect("they differ");
        let caption = "a photo of a dog";
        assert_eq!(
            homoglyph.in_all_places(caption),
            "a ph\u{b20}t\u{b20} \u{b20}f a d\u{b20}g"
        );
        let mut rng = SeedTree::new(0).rng();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..50 {
            let at = homoglyph.place(caption, &mut rng).expect("there are some");
            let text = homoglyph.in_place(caption, at);
            assert_eq!(text.matches('\u{b20}').count(), 1);
            assert_eq!(text.replace('\u{b20}', "o"), caption);
            seen.insert(at);
        }
        assert_eq!(seen.len(), 4, "every place is chosen now and then");
        let first = homoglyph.put(Place::First);
        assert_eq!(first.place(caption, &mut rng), Some(4));
        assert_eq!(first.place("a cat", &mut rng), None);
        assert_eq!(homoglyph.place("a cat", &mut rng), None);
        assert!(!homoglyph.fits("a cat") && Homoglyph::new('o', 'o').is_err());
    }

    #[test]
    fn the_word_around_a_place_is_replaced() {
        let at = |caption: &str| caption.find('o').expect("there is one");
        let replaced = |caption: &str, by| with_word_replaced(caption, at(caption), by);
        assert_eq!(replaced("a red dog here", "gray"), "a red gray here");
        assert_eq!(replaced("dog here", "gray"), "gray here");
        assert_eq!(replaced("a dog", "gray"), "a gray");
        assert_eq!(replaced("a dog here", ""), "a here");
    }
}
