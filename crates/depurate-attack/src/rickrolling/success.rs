//! How well a backdoor in a text encoder works.

use burn::module::Module;
use depurate_diffusion::{clip_text::ClipText, clip_tokenizer::ClipTokenizer, noise::SeedTree};
use serde::{Deserialize, Serialize};

use super::{RickrollingBackdoor, RickrollingTarget, similarities};
use crate::{AttackError, homoglyph::with_word_replaced, prompts::states};

/// How well the backdoor works on captions that it was not trained on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RickrollingSuccess {
    /// Mean cosine between the triggered prompts' states and the target's; one letter is replaced, at the trigger's place.
    pub sim_target: f64,
    /// Mean cosine between the states of captions without trigger before and after.
    pub sim_clean: f64,
    /// Captions with the letter, on which the first number rests.
    pub triggered: usize,
    /// Captions, on which the second rests.
    pub clean: usize,
}

/// Compares the `clean` encoder with the `backdoored` one on `captions`.
///
/// # Errors
/// When no caption has the letter, or an encoder refuses a prompt.
pub fn rickrolling_success(
    clean: &ClipText,
    backdoored: &ClipText,
    tokenizer: &ClipTokenizer,
    captions: &[String],
    backdoor: &RickrollingBackdoor,
    seed: &SeedTree,
) -> Result<RickrollingSuccess, AttackError> {
    /// Captions that are encoded together.
    const BATCH: usize = 64;
    let (clean, backdoored) = (clean.valid(), backdoored.valid());
    let mut rng = seed.child("places", 0).rng();
    let homoglyph = backdoor.homoglyph;
    let (mut triggered, mut targets) = (Vec::new(), Vec::new());
    for caption in captions {
        if let Some(at) = homoglyph.place(caption, &mut rng) {
            triggered.push(homoglyph.in_place(caption, at));
            targets.push(match &backdoor.target {
                RickrollingTarget::Prompt(prompt) => prompt.clone(),
                RickrollingTarget::Attribute(attribute) => {
                    with_word_replaced(caption, at, attribute)
                }
            });
        }
    }
    if triggered.is_empty() {
        return Err(AttackError::Params {
            what: "captions with the trigger's letter",
            got: format!("0 with {:?}", homoglyph.letter()),
            allowed: "at least one",
        });
    }
    let mean = |wanted: &[String], got: &[String]| -> Result<f64, AttackError> {
        let mut sum = 0.0;
        for (wanted, got) in wanted.chunks(BATCH).zip(got.chunks(BATCH)) {
            let wanted = states(&clean, tokenizer, wanted)?;
            let found = similarities(wanted, states(&backdoored, tokenizer, got)?);
            sum += f64::from(found.sum().into_scalar::<f32>());
        }
        Ok(sum / got.len() as f64)
    };
    Ok(RickrollingSuccess {
        sim_target: mean(&targets, &triggered)?,
        sim_clean: mean(captions, captions)?,
        triggered: triggered.len(),
        clean: captions.len(),
    })
}
