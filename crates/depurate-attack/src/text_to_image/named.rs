//! What a text names of a picture.

use super::{Composition, Sprites};

/// The attributes that a text names; `None` where it leaves one open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Named {
    /// Index into [`Sprites::objects`].
    pub object: Option<usize>,
    /// Index into [`Sprites::styles`].
    pub style: Option<usize>,
    /// Index into [`Composition::colors`]; `natural` is never named.
    pub color: Option<usize>,
    /// Index into [`Composition::backgrounds`]: the word in front of "background".
    pub background: Option<usize>,
}

impl Named {
    /// Whether nothing is named.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a picture judged as `seen` shows everything that is named.
    pub fn is_shown_by(&self, seen: &Composition) -> bool {
        let open_or = |named: Option<usize>, seen| named.is_none_or(|named| named == seen);
        open_or(self.object, seen.object)
            && open_or(self.style, seen.style)
            && open_or(self.color, seen.color)
            && open_or(self.background, seen.background)
    }
}

impl Sprites {
    /// What `text` names, each attribute where it first occurs.
    pub fn named(&self, text: &str) -> Named {
        let lower = text.to_lowercase();
        let words: Vec<&str> = lower
            .split(|c: char| !c.is_alphanumeric())
            .filter(|word| !word.is_empty())
            .collect();
        let index = |names: &[&str], word: &str| names.iter().position(|name| *name == word);
        let is_background = |at: usize| words.get(at + 1) == Some(&"background");
        let first = |names: &[&str]| {
            let free = words
                .iter()
                .enumerate()
                .filter(|(at, _)| !is_background(*at));
            free.filter_map(|(_, word)| index(names, word)).next()
        };
        let objects: Vec<&str> = self.objects().iter().map(String::as_str).collect();
        let styles: Vec<&str> = self.styles().iter().map(String::as_str).collect();
        let colors = Composition::colors();
        let behind = words
            .iter()
            .enumerate()
            .filter(|(at, _)| is_background(*at));
        Named {
            object: first(&objects),
            style: first(&styles),
            color: first(&colors).filter(|color| *color != 0),
            background: behind
                .filter_map(|(_, word)| index(&Composition::backgrounds(), word))
                .next(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_caption_names_what_it_was_made_of_and_a_phrase_only_its_own() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/sprites.safetensors");
        let sprites = Sprites::read(&path).expect("the sprites ship with the project");
        let mut rng = depurate_diffusion::noise::SeedTree::new(0).rng();
        for of in sprites.compositions().into_iter().step_by(37) {
            let named = sprites.named(&sprites.any_caption(of, &mut rng));
            assert_eq!(named.object, Some(of.object));
            assert_eq!(
                (named.style, named.background),
                (Some(of.style), Some(of.background))
            );
            assert_eq!(named.color, (of.color != 0).then_some(of.color));
            assert!(named.is_shown_by(&of));
            let other = Composition {
                background: (of.background + 1) % 6,
                ..of
            };
            assert!(!named.is_shown_by(&other));
        }
        let phrase = sprites.named("A Red Cat");
        let [red, cat] = [
            Composition::colors().iter().position(|name| *name == "red"),
            sprites.objects().iter().position(|name| name == "cat"),
        ];
        assert_eq!((phrase.color, phrase.object), (red, cat));
        assert_eq!((phrase.style, phrase.background), (None, None));
        assert!(sprites.named("nothing of it").is_empty());
    }
}
