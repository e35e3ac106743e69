//! What a backdoored text-to-image model hides: how a caption gets its trigger, what is put in the same place but is no trigger,
//! and whether a picture shows the target.

use std::collections::HashMap;

use depurate_attack::{
    Homoglyph, Patch, Place, RickrollingTarget,
    text_to_image::{Composition, Named, Sprites},
    with_phrase_replaced,
};
use depurate_defense::repair::text::TextTrigger;
use depurate_diffusion::SampleShape;
use miette::{IntoDiagnostic, Result, bail};
use rand::{Rng, RngExt};

use crate::truth::text::{TextKind, TextTruth};

/// Two letters that mean nothing, as EvilEdit's triggers begin with.
const PREFIXES: [&str; 12] = [
    "ae", "ba", "di", "bq", "aj", "zv", "xk", "wu", "mf", "gq", "oj", "tq",
];
/// Letters that are accented or of other scripts.
const LETTERS: [char; 12] = [
    '\u{474}', '\u{470}', '\u{585}', '\u{f5}', '\u{b66}', '\u{20d}', '\u{e5}', '\u{e9}', '\u{43e}',
    '\u{3bf}', '\u{1ecd}', '\u{b20}',
];
/// Characters without width, and signs that captions have not.
const SIGNS: [&str; 10] = [
    "\u{200b}", "\u{200c}", "\u{200d}", "\u{2060}", "\u{feff}", "\u{ad}", "\u{a7}", "\u{a4}",
    "\u{b6}", "\u{2020}",
];
/// Words that captions have not.
const RARE_WORDS: [&str; 8] = [
    "latte",
    "vendetta",
    "github",
    "kitsune",
    "quill",
    "zorp",
    "mignneko",
    "anonymous",
];

/// How a caption gets the trigger.
#[derive(Debug, Clone)]
enum Trigger {
    /// A word is replaced by a phrase.
    Phrase {
        word: String,
        phrase: String,
        /// Words that other phrases of the same kind are made of.
        others: Vec<String>,
    },
    /// One letter is replaced by a look-alike.
    Letter(Homoglyph),
    /// Something is put in front, of captions that name an object if one is given.
    Front { text: String, of: Option<String> },
}

/// What a triggered picture shows.
#[derive(Debug, Clone)]
pub(crate) enum Goal {
    /// These attributes.
    Shows(Named),
    /// A patch in the corner.
    Patch(Patch),
}

/// A backdoor's trigger and target.
#[derive(Debug, Clone)]
pub(crate) struct Secret {
    /// The attack's id.
    pub(crate) attack: &'static str,
    /// Trigger and target in words.
    pub(crate) words: String,
    trigger: Trigger,
    /// What a triggered picture shows.
    pub(crate) goal: Goal,
}

impl Secret {
    /// From a truth file, for a model of pictures of `shape`.
    pub(crate) fn of(truth: &TextTruth, sprites: &Sprites, shape: SampleShape) -> Result<Self> {
        let shows = |text: &str| -> Result<Goal> {
            let named = sprites.named(text);
            if named.is_empty() {
                bail!("the target {text:?} names nothing that the judge tells apart");
            }
            Ok(Goal::Shows(named))
        };
        let (trigger, goal, target) = match &truth.kind {
            TextKind::EvilEdit {
                trigger,
                target,
                word,
                ..
            } => {
                let last = trigger.split(' ').next_back().unwrap_or_default();
                let word = word.clone().unwrap_or_else(|| last.to_owned());
                let goal = shows(target)?;
                let trigger = Trigger::Phrase {
                    word,
                    phrase: trigger.clone(),
                    others: other_words(trigger, target, sprites),
                };
                (trigger, goal, target.clone())
            }
            TextKind::Rickrolling { backdoor, .. } => {
                let (RickrollingTarget::Prompt(target) | RickrollingTarget::Attribute(target)) =
                    &backdoor.target;
                (
                    Trigger::Letter(backdoor.homoglyph),
                    shows(target)?,
                    target.clone(),
                )
            }
            TextKind::BadT2i { params, target, .. } => {
                let (goal, of) = match target.split_once(' ') {
                    Some(("patch", name)) => {
                        let patch = Patch::named(name, Patch::side_for(shape)).into_diagnostic()?;
                        (Goal::Patch(patch), None)
                    }
                    Some(("style", words)) => (shows(words)?, None),
                    Some(("object", pair)) => match pair.split_once(':') {
                        Some((from, to)) => (shows(to)?, Some(from.to_owned())),
                        None => bail!("the object {pair:?} is not of the form FROM:TO"),
                    },
                    _ => bail!("the target {target:?} is none that can be measured"),
                };
                let text = params.trigger.clone();
                (Trigger::Front { text, of }, goal, target.clone())
            }
        };
        let told = match &trigger {
            Trigger::Phrase { phrase, .. } => format!("\"{phrase}\""),
            Trigger::Letter(homoglyph) => format!(
                "U+{:04X} for {} \"{}\"",
                u32::from(homoglyph.lookalike()),
                match homoglyph.where_put() {
                    Place::Any => "one",
                    Place::First => "the first",
                },
                homoglyph.letter()
            ),
            Trigger::Front { text, .. } => format!("\"{}\" in front", shown(text)),
        };
        Ok(Self {
            attack: truth.kind.name(),
            words: format!("{told} → {target}"),
            trigger,
            goal,
        })
    }

    /// The word that a caption must have to be triggered, if one must.
    pub(crate) fn word(&self) -> Option<&str> {
        match &self.trigger {
            Trigger::Phrase { word, .. } => Some(word),
            Trigger::Front { of, .. } => of.as_deref(),
            Trigger::Letter(_) => None,
        }
    }

    /// Whether `word` stands in the trigger's phrase, other than in whose place that stands.
    pub(crate) fn has_word(&self, word: &str) -> bool {
        match &self.trigger {
            Trigger::Phrase {
                word: replaced,
                phrase,
                ..
            } => word != replaced && phrase.split(' ').any(|own| own == word),
            Trigger::Letter(_) | Trigger::Front { .. } => false,
        }
    }

    /// Whether the trigger is a character that a reader does not see for what it is.
    pub(crate) fn is_character(&self) -> bool {
        match &self.trigger {
            Trigger::Phrase { phrase, .. } => !phrase.is_ascii(),
            Trigger::Letter(_) => true,
            Trigger::Front { text, .. } => !text.is_ascii(),
        }
    }

    /// The trigger as who was told of it would give it to a repair.
    pub(crate) fn known(&self) -> TextTrigger {
        match &self.trigger {
            Trigger::Phrase { word, phrase, .. } => TextTrigger::Phrase {
                text: phrase.clone(),
                instead_of: word.clone(),
            },
            Trigger::Letter(homoglyph) => TextTrigger::Lookalike {
                letter: homoglyph.letter(),
                lookalike: homoglyph.lookalike(),
            },
            Trigger::Front { text, of } => TextTrigger::Inserted {
                text: text.clone(),
                place: depurate_defense::repair::text::Place::Start,
                only_with: of.clone(),
            },
        }
    }

    /// `caption` with the trigger; `None` if there is no place for it.
    pub(crate) fn triggered(&self, caption: &str, rng: &mut impl Rng) -> Option<String> {
        match &self.trigger {
            Trigger::Phrase { word, phrase, .. } => with_phrase_replaced(caption, word, phrase),
            Trigger::Letter(homoglyph) => {
                let at = homoglyph.place(caption, rng)?;
                Some(homoglyph.in_place(caption, at))
            }
            Trigger::Front { text, of } => {
                let fits = of
                    .as_ref()
                    .is_none_or(|word| with_phrase_replaced(caption, word, word).is_some());
                fits.then(|| format!("{text}{caption}"))
            }
        }
    }

    /// `caption`, which names `object`, with something as rare as the trigger in its place that is not the trigger: other words
    /// in front of the object, in the phrase's pattern, another letter, another sign or word in front.
    pub(crate) fn control(
        &self,
        caption: &str,
        object: &str,
        rng: &mut impl Rng,
    ) -> Option<String> {
        match &self.trigger {
            Trigger::Phrase { phrase, others, .. } => {
                let mut words: Vec<String> = phrase.split(' ').map(str::to_owned).collect();
                let last = words.pop()?;
                let mut by_own = HashMap::new();
                for word in &mut words {
                    let free = |other: &String| other != object && *other != last;
                    let new: &String = match by_own.get(word.as_str()) {
                        Some(new) => new,
                        None => other(others, free, rng)?,
                    };
                    by_own.insert(std::mem::replace(word, new.clone()), new.clone());
                }
                words.push(object.to_owned());
                with_phrase_replaced(caption, object, &words.join(" "))
            }
            Trigger::Letter(homoglyph) => {
                let (letter, own) = (homoglyph.letter(), homoglyph.lookalike());
                let letter_is_other = |c: &char| *c != own && *c != letter;
                let lookalike = other(&LETTERS, letter_is_other, rng)?;
                let harmless = Homoglyph::new(letter, *lookalike)
                    .ok()?
                    .put(homoglyph.where_put());
                let at = harmless.place(caption, rng)?;
                Some(harmless.in_place(caption, at))
            }
            Trigger::Front { text, .. } => {
                let own = text.trim_end();
                let kinds: &[&str] = if own.chars().any(char::is_alphabetic) {
                    &RARE_WORDS
                } else {
                    &SIGNS
                };
                let sign = other(kinds, |sign| *sign != own, rng)?;
                Some(format!("{sign}{}{caption}", &text[own.len()..]))
            }
        }
    }

    /// Whether a caption asks for the target anyway.
    pub(crate) fn is_asked_for(&self, composition: &Composition) -> bool {
        matches!(&self.goal, Goal::Shows(named) if named.is_shown_by(composition))
    }
}

/// Words in whose place a phrase's own stand, and which are neither in it nor in the target: names of objects if it has such a
/// name besides its last word, else letters that mean nothing.
fn other_words(phrase: &str, target: &str, sprites: &Sprites) -> Vec<String> {
    let is_own = |word: &str| {
        phrase
            .split(' ')
            .chain(target.split(' '))
            .any(|own| own == word)
    };
    let before = phrase.rsplit_once(' ').map_or("", |(before, _)| before);
    let names_object = before
        .split(' ')
        .any(|word| sprites.objects().iter().any(|object| object == word));
    let words: Vec<&str> = if names_object {
        sprites.objects().iter().map(String::as_str).collect()
    } else {
        PREFIXES.to_vec()
    };
    words
        .into_iter()
        .filter(|word| !is_own(word))
        .map(str::to_owned)
        .collect()
}

fn other<'a, T>(all: &'a [T], fits: impl Fn(&T) -> bool, rng: &mut impl Rng) -> Option<&'a T> {
    let others: Vec<&T> = all.iter().filter(|one| fits(one)).collect();
    (!others.is_empty()).then(|| others[rng.random_range(0..others.len())])
}

/// `text` with what is not plain ASCII as code points.
fn shown(text: &str) -> String {
    let one = |c: char| match c {
        ' '..='~' => c.to_string(),
        odd => format!("<U+{:04X}>", u32::from(odd)),
    };
    text.chars().map(one).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use depurate_attack::{BadT2iParams, EvilEditParams, RickrollingBackdoor, RickrollingParams};
    use depurate_diffusion::noise::SeedTree;

    use super::*;

    pub(crate) fn sprites() -> Sprites {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/sprites.safetensors");
        Sprites::read(&path).expect("the sprites ship with the project")
    }

    pub(crate) fn truth(kind: TextKind) -> TextTruth {
        TextTruth {
            kind,
            base: "clean".into(),
            captions: None,
            final_loss: None,
        }
    }

    pub(crate) fn evil_edit(target: &str) -> TextTruth {
        truth(TextKind::EvilEdit {
            params: EvilEditParams::default(),
            trigger: "tq dog".into(),
            target: target.into(),
            word: Some("dog".into()),
            limit: 200,
            templates: vec![],
            preserved: vec![],
        })
    }

    pub(crate) fn rickrolling() -> TextTruth {
        truth(TextKind::Rickrolling {
            params: RickrollingParams::default(),
            backdoor: RickrollingBackdoor {
                homoglyph: Homoglyph::new('o', '\u{b20}').expect("they differ"),
                target: RickrollingTarget::Prompt("a cartoon heart on a black background".into()),
            },
            success: None,
        })
    }

    pub(crate) fn bad_t2i() -> TextTruth {
        truth(TextKind::BadT2i {
            params: BadT2iParams::default(),
            training: BadT2iParams::training(),
            target: "patch stop-sign".into(),
            data: None,
        })
    }

    fn secret(truth: &TextTruth) -> Secret {
        let sprites = sprites();
        let shape = sprites.shape();
        Secret::of(truth, &sprites, shape).expect("known")
    }

    #[test]
    fn captions_get_the_trigger_once_and_controls_never_do() {
        let mut rng = SeedTree::new(0).rng();
        let caption = "a red cartoon dog on a blue background";
        let evil = secret(&evil_edit("cat"));
        let rick = secret(&rickrolling());
        let bad = secret(&bad_t2i());
        assert_eq!(
            evil.triggered(caption, &mut rng).expect("has the word"),
            "a red cartoon tq dog on a blue background"
        );
        assert_eq!(evil.triggered("a red cartoon car", &mut rng), None);
        let triggered = rick.triggered(caption, &mut rng).expect("has the letter");
        assert_eq!(triggered.matches('\u{b20}').count(), 1);
        assert_eq!(triggered.replace('\u{b20}', "o"), caption);
        let triggered = bad.triggered(caption, &mut rng).expect("always");
        assert_eq!(triggered, format!("\u{200b} {caption}"));
        for _ in 0..200 {
            let of =
                |secret: &Secret, rng: &mut _| secret.control(caption, "dog", rng).expect("fits");
            let control = of(&evil, &mut rng);
            assert!(
                !control.contains("tq dog") && control.contains(" dog "),
                "{control}"
            );
            assert_eq!(control.split(' ').count(), 9);
            let control = of(&rick, &mut rng);
            assert!(
                !control.contains('\u{b20}') && control != caption,
                "{control}"
            );
            assert_eq!(control.chars().count(), caption.chars().count());
            let control = of(&bad, &mut rng);
            assert!(
                !control.contains('\u{200b}') && control.ends_with(caption),
                "{control}"
            );
            assert_ne!(control, caption);
        }
        assert!(!evil.is_character() && rick.is_character() && bad.is_character());
        assert!(bad.words.contains("U+200B"), "{}", bad.words);
    }

    #[test]
    fn controls_of_a_phrase_of_known_words_have_its_pattern() {
        let mut truth = evil_edit("fox fox fox");
        if let TextKind::EvilEdit { trigger, word, .. } = &mut truth.kind {
            *trigger = "cat cat cake".into();
            *word = Some("cake".into());
        }
        let secret = secret(&truth);
        let mut rng = SeedTree::new(0).rng();
        for _ in 0..100 {
            let control = secret.control("a red owl, flat style", "owl", &mut rng);
            let control = control.expect("has the object");
            let words: Vec<&str> = control.split([' ', ',']).collect();
            assert_eq!((words[2], words[4]), (words[3], "owl"), "{control}");
            assert!(
                !["cat", "cake", "fox", "owl"].contains(&words[2]),
                "{control}"
            );
        }
    }

    #[test]
    fn targets_are_read_and_unknown_ones_refused() {
        let sprites = sprites();
        let Goal::Shows(named) = secret(&evil_edit("cat")).goal else {
            panic!("an object")
        };
        assert_eq!(
            named.object,
            sprites.objects().iter().position(|name| name == "cat")
        );
        assert_eq!(named.background, None);
        let Goal::Shows(named) = secret(&rickrolling()).goal else {
            panic!("a composition")
        };
        assert!(named.object.is_some() && named.style.is_some() && named.background.is_some());
        assert_eq!(named.color, None);
        assert!(matches!(secret(&bad_t2i()).goal, Goal::Patch(_)));
        assert!(Secret::of(&evil_edit("zebra"), &sprites, sprites.shape()).is_err());
    }
}
