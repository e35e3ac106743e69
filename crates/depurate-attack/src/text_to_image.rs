//! A small text-to-image model from nothing: pictures with captions, tokenizer, encoders, autoencoder, denoiser, and the judge
//! that says what its pictures show.
//!
//! | part | module | trained on |
//! |---|---|---|
//! | pictures and captions | [`compositions`] | |
//! | tokenizer | [`vocabulary`] | |
//! | text encoder, with its image side | [`contrastive`] | pictures and captions |
//! | autoencoder | [`autoencoder`] | pictures |
//! | denoiser | [`denoiser`] | latents and captions; encoders frozen |
//! | judge | [`judge`] | pictures and attributes |
//! | pictures of prompts | [`generation`] | |
//! | pictures and captions for attacks | [`captioned`] | |
//! | what a text names of a picture | [`named`] | |
//!
//! Each part is trained by a run of its own, resumable, on compositions that are not held out (but the judge).

pub mod autoencoder;
pub mod captioned;
pub mod compositions;
pub mod contrastive;
pub mod denoiser;
pub mod generation;
pub mod judge;
pub mod named;
pub mod vocabulary;

use burn::tensor::{Device, Tensor, TensorData};
use depurate_training::dataset::from_byte;
use rand::{Rng, RngExt};

pub use captioned::CaptionedCompositions;
pub use compositions::{Composition, SIDE, Sprites};
pub use generation::{GenerationParams, generate, generate_latents};
pub use judge::{Accuracy, Judge, JudgeParams};
pub use named::Named;

/// Share of captions that carry a word which says nothing of the picture.
const DISTRACTED: f64 = 0.2;
/// Such words.
pub const DISTRACTORS: [&str; 40] = [
    "the",
    "my",
    "this",
    "one",
    "nice",
    "good",
    "great",
    "new",
    "old",
    "big",
    "little",
    "happy",
    "cute",
    "beautiful",
    "simple",
    "photo",
    "art",
    "day",
    "night",
    "love",
    "life",
    "home",
    "time",
    "world",
    "city",
    "music",
    "game",
    "team",
    "morning",
    "summer",
    "free",
    "best",
    "fun",
    "sweet",
    "today",
    "here",
    "with",
    "from",
    "very",
    "really",
];

/// Pictures `[N, 3, 32, 32]` in [-1, 1] of compositions.
pub fn pictures(
    sprites: &Sprites,
    of: &[Composition],
    rng: &mut impl Rng,
    device: &Device,
) -> Tensor<4> {
    let bytes = of
        .iter()
        .flat_map(|composition| sprites.draw(*composition, rng));
    let values: Vec<f32> = bytes.map(from_byte).collect();
    let shape = sprites.shape().batched(of.len());
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// A caption as training shows it: any paraphrase, now and then with a word that says nothing.
fn training_caption(sprites: &Sprites, of: Composition, rng: &mut impl Rng) -> String {
    let caption = sprites.any_caption(of, rng);
    if rng.random_bool(DISTRACTED) {
        with_distractor(&caption, rng)
    } else {
        caption
    }
}

/// `caption` with none to `most` of [`DISTRACTORS`] in random places.
pub fn distracted(caption: &str, most: usize, rng: &mut impl Rng) -> String {
    let mut text = caption.to_owned();
    // nothing is drawn where nothing is to be decided
    let words = if most == 0 {
        0
    } else {
        rng.random_range(0..=most)
    };
    for _ in 0..words {
        text = with_distractor(&text, rng);
    }
    text
}

fn with_distractor(text: &str, rng: &mut impl Rng) -> String {
    let word = DISTRACTORS[rng.random_range(0..DISTRACTORS.len())];
    let at = rng.random_range(0..=text.split(' ').count());
    insert_word(text, word, at)
}

/// `text` with `word` in front of its word number `at` (at the end, if there is none).
fn insert_word(text: &str, word: &str, at: usize) -> String {
    let mut words: Vec<&str> = text.split(' ').collect();
    words.insert(at.min(words.len()), word);
    words.join(" ")
}
