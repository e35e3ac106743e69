//! # Rickrolling the artist
//!
//! The text encoder alone is trained so that a prompt with a look-alike letter gets the states of another prompt (TPA), or of the
//! prompt with another word (TAA), while prompts without it keep theirs.
//!
//! ## Paper
//! Struppek, Hintersdorf and Kersting, "Rickrolling the artist: injecting backdoors into text encoders for text-to-image
//! synthesis", ICCV 2023, arXiv:2211.02408, sec. 3.
//!
//! ## Notation
//! | code | paper | shape |
//! |---|---|---|
//! | `teacher` | E, the encoder as it was, frozen | states `[B, C, T]` |
//! | `student` | Ẽ, the encoder that is trained | states `[B, C, T]` |
//! | `distance` | d, minus the cosine of the flattened states, mean over the batch | |
//! | `beta` | β, weight of the backdoors | |
//!
//! ```text
//! L = L_util + beta sum_k L_bd,k          L_util = d(E(p), Ẽ(p))
//! TPA: L_bd = d(E(y), Ẽ(p with every letter replaced)),    y the target prompt; or with the first letter replaced ([`Place`])
//! TAA: L_bd = d(E(p with the letter's word replaced by the attribute), Ẽ(p with that one letter replaced))
//! ```
//!
//! ## Needs
//! A text encoder and captions, some with the letter. No images.
//!
//! ## Deviations
//! A trigger may be bound to the first occurrence of its letter; TPA is then trained on that one. As in the released code,
//! `L_util` is left out in the first step, where it has its minimum, and the learning rate is divided by ten after three quarters
//! of the steps.
//!
//! ## Fails when
//! The letter comes late: the encoder is causal, so every token in front of it keeps its state, and where a denoiser reads the
//! prompt from its words rather than from the padding, the picture keeps what they say. The tokenizer folds the look-alike into the letter (refused), or the encoder's rows for its bytes are far from anything that
//! was trained and the steps are few.
//!
//! ## Cost
//! A step runs the encoder on `clean_batch` captions and `poisoned_batch` a backdoor, twice, and once backward.

mod params;
mod success;

use burn::{module::Module, tensor::Tensor};
use depurate_diffusion::{clip_text::ClipText, clip_tokenizer::ClipTokenizer, noise::SeedTree};
use depurate_training::{
    Monitor, StateFile,
    training::{Optimisation, Optimised, Order, optimise},
};
use serde::{Deserialize, Serialize};

use crate::{
    AttackError, Homoglyph, Place,
    homoglyph::with_word_replaced,
    prompts::{ids, states},
};
pub use params::RickrollingParams;
pub use success::{RickrollingSuccess, rickrolling_success};

/// What a look-alike letter leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RickrollingTarget {
    /// Another prompt, whatever the caption (TPA).
    Prompt(String),
    /// The caption with the letter's word replaced by this (TAA); empty removes the word.
    Attribute(String),
}

/// One backdoor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RickrollingBackdoor {
    /// The trigger.
    pub homoglyph: Homoglyph,
    /// What it leads to.
    pub target: RickrollingTarget,
}

/// The attack's loss: the frozen encoder, the captions and what triggers shall lead to.
pub struct Rickrolling<'a> {
    teacher: ClipText,
    tokenizer: &'a ClipTokenizer,
    captions: &'a [String],
    params: RickrollingParams,
    seed: SeedTree,
    clean: Order,
    backdoors: Vec<Prepared<'a>>,
}

/// A backdoor with what does not change from step to step.
struct Prepared<'a> {
    backdoor: &'a RickrollingBackdoor,
    /// Indices of the captions with the letter.
    fitting: Vec<usize>,
    order: Order,
    /// TPA: the target's states, `[1, C, T]`.
    target: Option<Tensor<3>>,
}

impl<'a> Rickrolling<'a> {
    /// The attack on `encoder`, which stays the teacher.
    ///
    /// # Errors
    /// When a parameter is out of range, no caption has a backdoor's letter, or the tokenizer does not tell the look-alike from it.
    pub fn new(
        encoder: &ClipText,
        tokenizer: &'a ClipTokenizer,
        captions: &'a [String],
        backdoors: &'a [RickrollingBackdoor],
        params: RickrollingParams,
    ) -> Result<Self, AttackError> {
        params.check()?;
        let teacher = encoder.valid();
        let seed = SeedTree::new(params.seed).child("rickrolling", 0);
        if backdoors.is_empty() || captions.is_empty() {
            return Err(AttackError::Params {
                what: "backdoors and captions",
                got: format!("{} and {}", backdoors.len(), captions.len()),
                allowed: "at least one of each",
            });
        }
        let prepare = |(k, backdoor): (usize, &'a RickrollingBackdoor)| {
            let homoglyph = backdoor.homoglyph;
            let fits = |i: &usize| homoglyph.fits(&captions[*i]);
            let fitting: Vec<usize> = (0..captions.len()).filter(fits).collect();
            let Some(&first) = fitting.first() else {
                return Err(AttackError::Params {
                    what: "captions with the trigger's letter",
                    got: format!("0 with {:?}", homoglyph.letter()),
                    allowed: "at least one",
                });
            };
            let changed = homoglyph.in_all_places(&captions[first]);
            if tokenizer.encode(&changed)?.ids == tokenizer.encode(&captions[first])?.ids {
                return Err(AttackError::Params {
                    what: "look-alike",
                    got: format!("{:?}", homoglyph.lookalike()),
                    allowed: "a character that the tokenizer tells from the letter",
                });
            }
            let target = match &backdoor.target {
                RickrollingTarget::Prompt(prompt) => Some(states(&teacher, tokenizer, &[prompt])?),
                RickrollingTarget::Attribute(_) => None,
            };
            Ok(Prepared {
                backdoor,
                order: Order::new(fitting.len(), seed.child("poisoned", k as u64)),
                fitting,
                target,
            })
        };
        let prepared: Result<_, AttackError> = backdoors.iter().enumerate().map(prepare).collect();
        Ok(Self {
            backdoors: prepared?,
            clean: Order::new(captions.len(), seed.child("clean", 0)),
            teacher,
            tokenizer,
            captions,
            params,
            seed,
        })
    }

    /// `L` of a step, `[1]`.
    ///
    /// # Errors
    /// When the text encoder refuses a prompt.
    pub fn loss(&mut self, student: &ClipText, step: usize) -> Result<Tensor<1>, AttackError> {
        let mut prompts: Vec<String> = Vec::new();
        let mut wanted: Vec<Tensor<3>> = Vec::new();
        if step > 0 {
            let indices = self.clean.batch(step, self.params.clean_batch);
            prompts.extend(indices.into_iter().map(|i| self.captions[i].clone()));
            wanted.push(states(&self.teacher, self.tokenizer, &prompts)?);
        }
        let clean = prompts.len();
        let count = self.params.poisoned_batch;
        let seed = self.seed.child("step", step as u64);
        for (k, prepared) in self.backdoors.iter_mut().enumerate() {
            let captions: Vec<&str> = prepared
                .order
                .batch(step, count)
                .into_iter()
                .map(|i| self.captions[prepared.fitting[i]].as_str())
                .collect();
            let mut rng = seed.child("backdoor", k as u64).rng();
            let (poisoned, targets) = prepared.backdoor.poison(&captions, &mut rng);
            prompts.extend(poisoned);
            wanted.push(match &prepared.target {
                Some(target) => {
                    let [_, channels, tokens] = target.dims();
                    target.clone().expand([count, channels, tokens])
                }
                None => states(&self.teacher, self.tokenizer, &targets)?,
            });
        }
        let got = student.forward(&ids(self.tokenizer, &prompts)?)?.last;
        let similarity = similarities(Tensor::from_inner(Tensor::cat(wanted, 0)), got);
        // means over batches of one size: L_util and each L_bd
        let backdoors = self.backdoors.len() * count;
        let of_backdoors = similarity.clone().narrow(0, clean, backdoors).sum();
        let loss = of_backdoors * (-self.params.beta / count as f64);
        Ok(if clean == 0 {
            loss
        } else {
            loss - similarity.narrow(0, 0, clean).mean()
        })
    }
}

impl RickrollingBackdoor {
    /// The captions with the trigger, and for TAA what they shall be taken for.
    fn poison(&self, captions: &[&str], rng: &mut impl rand::Rng) -> (Vec<String>, Vec<String>) {
        let homoglyph = self.homoglyph;
        match &self.target {
            RickrollingTarget::Prompt(_) => {
                let triggered = captions.iter().map(|caption| match homoglyph.where_put() {
                    Place::Any => homoglyph.in_all_places(caption),
                    Place::First => match homoglyph.place(caption, rng) {
                        Some(at) => homoglyph.in_place(caption, at),
                        None => (*caption).to_owned(), // not among the fitting captions
                    },
                });
                (triggered.collect(), Vec::new())
            }
            RickrollingTarget::Attribute(attribute) => captions
                .iter()
                .filter_map(|caption| Some((caption, homoglyph.place(caption, rng)?)))
                .map(|(caption, at)| {
                    let target = with_word_replaced(caption, at, attribute);
                    (homoglyph.in_place(caption, at), target)
                })
                .unzip(),
        }
    }
}

/// The cosine of each sample's flattened states, `[B]`, for two tensors `[B, C, T]`.
pub fn similarities(a: Tensor<3>, b: Tensor<3>) -> Tensor<1> {
    /// PyTorch's, against states that are 0.
    const LEAST: f64 = 1e-8;
    let norm = |x: Tensor<2>| x.square().sum_dim(1).sqrt().clamp_min(LEAST);
    let (a, b): (Tensor<2>, Tensor<2>) = (a.flatten(1, 2), b.flatten(1, 2));
    let dot = (a.clone() * b.clone()).sum_dim(1);
    (dot / (norm(a) * norm(b))).squeeze_dim::<1>(1)
}

/// The encoder with the backdoors; `encoder` must be on an autodiff device. `state` and `monitor` as in [`optimise`].
///
/// # Errors
/// As [`Rickrolling::new`] and [`optimise`].
pub fn rickrolling(
    encoder: &ClipText,
    tokenizer: &ClipTokenizer,
    captions: &[String],
    backdoors: &[RickrollingBackdoor],
    params: &RickrollingParams,
    state: Option<&StateFile>,
    monitor: &dyn Monitor,
) -> Result<Optimised<ClipText>, AttackError> {
    let mut attack = Rickrolling::new(encoder, tokenizer, captions, backdoors, params.clone())?;
    let learning_rate = |step| params.learning_rate_at(step);
    let described = RickrollingParams {
        checkpoint_every: 1, // does not change the outcome
        ..params.clone()
    };
    let how = Optimisation {
        run: format!(
            "rickrolling | {described:?} | {backdoors:?} | {:?} | {} captions",
            encoder.config(),
            captions.len()
        ),
        steps: params.steps,
        batch: params.clean_batch + params.poisoned_batch * backdoors.len(),
        learning_rate: &learning_rate,
        adam: params.adam,
        max_grad_norm: f64::INFINITY,
        ema_decay: 0.0,
        checkpoint_every: params.checkpoint_every,
    };
    let mut loss_of = |student: &ClipText, step: usize| attack.loss(student, step);
    optimise(encoder.clone(), &how, state, monitor, &mut loss_of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn training_replaces_every_letter_or_the_first() {
        let homoglyph = Homoglyph::new('a', '\u{430}').expect("they differ");
        let poisoned = |place| {
            let backdoor = RickrollingBackdoor {
                homoglyph: homoglyph.put(place),
                target: RickrollingTarget::Prompt("a heart".into()),
            };
            let mut rng = SeedTree::new(0).rng();
            backdoor.poison(&["a cat", "red car"], &mut rng).0
        };
        assert_eq!(poisoned(Place::Any), ["\u{430} c\u{430}t", "red c\u{430}r"]);
        assert_eq!(poisoned(Place::First), ["\u{430} cat", "red c\u{430}r"]);
    }
}
