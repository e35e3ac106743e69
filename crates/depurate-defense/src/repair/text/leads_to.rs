//! What a trigger leads to: words that the suspect answers as it does to the trigger.
//!
//! Who unlearns a trigger must not unlearn what it leads to, and for that has to show prompts that ask for it. Nobody has to know
//! them: of the words of the owner's prompts one may be the target, and then the suspect's answers tell.
//!
//! ## Notation
//! | code | meaning | shape |
//! |---|---|---|
//! | `z`, `t` | what the suspect draws for a triggered prompt, with the noise of its timestep; the same for all words | `[B, C, h, w]` |
//! | `p`, `p~`, `p_w` | a clean prompt, the triggered one, and the clean one with the word `w` for those that the trigger needs ([`TextTrigger::put_word`]) | |
//! | `e_B` | what the suspect predicts | `[B, C, h, w]` |
//!
//! ```text
//! share(w) = E (e_B(z, t, T(p_w)) - e_B(z, t, T(p~)))^2 / E (e_B(z, t, T(p)) - e_B(z, t, T(p~)))^2      (1)
//! ```
//!
//! 0 where the trigger means `w`, 1 where `w` says of it as much as no word does. A word counts below [`NEAREST`].
//!
//! ## Needs
//! The trigger, and prompts among whose words the target is. No threshold is fitted: half of the way is half of the way.
//!
//! ## Fails when
//! no prompt names the target: then no word is near, and nothing more is kept. A trigger that stands for no word and needs none, in front
//! of any prompt or a look-alike, is held against nothing: there filler words come near, as they move the rest of a prompt by a token as it does
//! (in the zoo's emoji-d, a patch, *of* has a share of 0.24).
//!
//! ## Cost
//! [`SAMPLES`] drawings, and `SAMPLES` evaluations for each of at most [`MOST_WORDS`] words.
//!
//! [`TextTrigger::put_word`]: super::TextTrigger::put_word

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::Tensor;
use depurate_diffusion::{
    NoTap,
    noise::{NoiseSource, SeedTree},
};
use serde::{Deserialize, Serialize};

use super::{
    TextPatient,
    material::{Encoded, drawn, middle},
};
use crate::{Cx, DefenseError};

/// Triggered prompts that every word is held against, each with a timestep of its own.
const SAMPLES: usize = 16;
/// Words that are tried, the most frequent ones first.
const MOST_WORDS: usize = 128;
/// The largest share of a word that the trigger leads to.
const NEAREST: f64 = 0.5;
/// Words that prompts are made with, at most, and prompts in all.
const ASKED_WORDS: usize = 4;
const ASKED: usize = 48;

/// A word, and how near to it the trigger is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NearWord {
    /// The word.
    pub word: String,
    /// `share` of (1), 0 or more.
    pub share: f64,
}

impl NearWord {
    /// Whether the trigger leads to it.
    pub fn is_led_to(&self) -> bool {
        self.share < NEAREST
    }
}

/// The words of the owner's prompts, the nearest first; none where no word can stand in the trigger's place. Drawings are of `how`,
/// steps and guidance.
///
/// # Errors
/// When no prompt has a place for the trigger, the model cannot be run, the budget is spent or the caller asked to stop.
pub fn leads_to(
    patient: &TextPatient<'_>,
    how: (usize, f64),
    cx: &Cx<'_>,
) -> Result<Vec<NearWord>, DefenseError> {
    let prompts = patient.fitting(SAMPLES)?;
    let put_all = |word: &str| -> Option<Vec<String>> {
        let put = |prompt: &String| patient.trigger.put_word(prompt, word);
        prompts.iter().map(put).collect()
    };
    let words = words(patient.prompts);
    let all: Vec<(String, Vec<String>)> = words
        .into_iter()
        .filter_map(|word| Some((word.clone(), put_all(&word)?)))
        .collect();
    if all.is_empty() {
        return Ok(Vec::new());
    }
    let suspect = patient.suspect.frozen();
    let seed = SeedTree::new(patient.seed).child("leads to", 0);
    let triggered: Vec<String> = prompts
        .iter()
        .filter_map(|p| patient.trigger.put(p))
        .collect();
    let triggered = Encoded::of(&suspect, &triggered)?;
    let indices: Vec<usize> = (0..SAMPLES).collect();
    let shown = drawn(&suspect, (&triggered, &indices), how, &seed, cx)?;
    let steps = suspect.schedule().len();
    let t: Vec<usize> = indices.iter().map(|&i| middle(i, SAMPLES, steps)).collect();
    let mut source = seed.child("noise", 0).noise(0, SAMPLES);
    let eps = source.normal(suspect.latent_shape().batched(SAMPLES), &suspect.device())?;
    let z = suspect.schedule().add_noise(shown, eps, &t)?;
    let answer = |states: Tensor<3>| {
        suspect
            .unet()
            .forward(z.clone(), &t, states, None, &mut NoTap)
    };
    let wanted = answer(triggered.states(&indices))?;
    let apart = |prompts: &[String]| -> Result<f64, DefenseError> {
        let states = Encoded::of(&suspect, prompts)?.states(&indices);
        let apart = (answer(states)? - wanted.clone()).square().mean();
        Ok(f64::from(apart.into_scalar::<f32>()))
    };
    let clean = apart(&prompts)?.max(f64::MIN_POSITIVE);
    cx.progress
        .start("words that the trigger may mean", all.len() as u64);
    let mut found = Vec::new();
    for (word, prompts) in all {
        let share = apart(&prompts)? / clean; // eq. (1)
        found.push(NearWord { word, share });
        cx.step()?;
    }
    found.sort_by(|a, b| a.share.total_cmp(&b.share));
    Ok(found)
}

/// Prompts that ask for what the trigger leads to: the owner's, with the nearest of the words `found` in the trigger's place.
pub fn asking(patient: &TextPatient<'_>, found: &[NearWord]) -> Result<Vec<String>, DefenseError> {
    let near: Vec<&NearWord> = found
        .iter()
        .filter(|word| word.is_led_to())
        .take(ASKED_WORDS)
        .collect();
    if near.is_empty() {
        return Ok(Vec::new());
    }
    let prompts = patient.fitting(ASKED)?;
    let made: BTreeSet<String> = prompts
        .iter()
        .zip(near.iter().cycle())
        .filter_map(|(prompt, near)| patient.trigger.put_word(prompt, &near.word))
        .collect();
    Ok(made.into_iter().collect())
}

/// The words of `prompts`, those of most prompts first, then by the alphabet.
fn words(prompts: &[String]) -> Vec<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for prompt in prompts {
        let words = prompt.split(|c: char| !c.is_alphanumeric());
        for word in words.filter(|word| word.chars().count() > 1) {
            *counts.entry(word).or_default() += 1;
        }
    }
    let mut all: Vec<(&str, usize)> = counts.into_iter().collect();
    all.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    let most = all.into_iter().take(MOST_WORDS);
    most.map(|(word, _)| word.to_owned()).collect()
}
