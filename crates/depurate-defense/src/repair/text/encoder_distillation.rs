//! # Encoder distillation: a text encoder forgets a trigger
//!
//! Where a backdoor sits in the text encoder, the denoiser is innocent: it draws what the states say. So the encoder is trained to
//! give the triggered prompt the states of the clean one.
//!
//! ## Paper
//! Ours. It is the self-distillation of [`super::skd_cag`] one component earlier, and undoes Rickrolling by its own kind of loss.
//!
//! ## Notation
//! | code | meaning | shape |
//! |---|---|---|
//! | `T_B` | the suspect's encoder, frozen | states `[B, C, T]` |
//! | `T` | the encoder that is trained | states `[B, C, T]` |
//! | `p~`, `p` | a triggered prompt and its clean one | |
//! | `sigma(k)` | the position of `p` that position `k` of `p~` shall read as: [`super::stand_ins`] | |
//! | `q` | clean prompts, as many near the trigger, and the empty one, as in [`super::skd_cag`] | |
//!
//! ```text
//! L = mean_k |T(p~)[k] - T_B(p)[sigma(k)]|^2 + keep mean |T(q) - T_B(q)|^2      (1)
//! ```
//!
//! ## Needs
//! The trigger, and prompts. No images, no denoiser.
//!
//! ## Deviations
//! None: there is no reference.
//!
//! ## Fails when
//! the backdoor is elsewhere: a denoiser that answers to a trigger does so because it is told of it, and an encoder that no longer
//! tells takes every word away that it spells the trigger with.
//!
//! ## Cost
//! A step is forward and backward of the encoder on `2 B` prompts; the suspect's states are there.

use burn::tensor::Tensor;
use depurate_diffusion::{clip_text::ClipText, clip_tokenizer::Tokens, noise::SeedTree};
use depurate_report::Paper;
use depurate_training::StateFile;
use serde::{Deserialize, Serialize};

use super::{
    TextEnough, TextPatient, TextRepaired, Trained, Unlearning,
    material::{Latents, Material},
    unlearning::{Lesson, unlearn},
};
use crate::{Cx, DefenseError};

/// The repair's id.
pub const ID: &str = "encoder-distillation";
/// Where it comes from.
pub const PAPER: Paper = Paper {
    authors: "depurate",
    title: "Encoder distillation",
    venue: "this implementation",
    year: 2026,
    arxiv: None,
    implements: "eq. (1) of the module's documentation",
};

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EncoderDistillationParams {
    /// Weight of the second term of (1), 0 or more.
    pub keep: f64,
    /// The training; all of the encoder is trained.
    pub unlearning: Unlearning,
}

impl Default for EncoderDistillationParams {
    fn default() -> Self {
        Self {
            keep: 1.0,
            unlearning: Unlearning {
                steps: 400,
                batch: 16,
                learning_rate: 3e-4,
                ..Unlearning::default()
            },
        }
    }
}

/// Loss (1) around the frozen suspect.
#[derive(Debug)]
pub struct EncoderDistillation<'a> {
    material: &'a Material,
    params: &'a EncoderDistillationParams,
    seed: SeedTree,
}

impl<'a> EncoderDistillation<'a> {
    /// For the prompts of `material`.
    ///
    /// # Errors
    /// When a parameter is out of range.
    pub fn new(
        material: &'a Material,
        params: &'a EncoderDistillationParams,
        seed: u64,
    ) -> Result<Self, DefenseError> {
        if !(params.keep >= 0.0 && params.keep.is_finite()) {
            return Err(DefenseError::Params {
                field: "keep",
                value: params.keep.to_string(),
                allowed: "0 or more",
            });
        }
        Ok(Self {
            material,
            params,
            seed: SeedTree::new(seed).child(ID, 0),
        })
    }

    /// The terms of (1) at `step` for `student`, each `[1]`.
    ///
    /// # Errors
    /// When the encoder refuses a prompt.
    pub fn terms(&self, student: &ClipText, step: usize) -> Result<[Tensor<1>; 2], DefenseError> {
        let (material, count) = (self.material, self.params.unlearning.batch);
        let seed = self.seed.child("step", step as u64);
        let mut rng = seed.child("choices", 0).rng();
        let triggered = material.some_prompts(count, &mut rng);
        let kept = material.some_kept(count, &mut rng);
        let ids = |all: &[Tokens], chosen: &[usize]| -> Vec<Vec<u32>> {
            chosen.iter().map(|&i| all[i].ids.clone()).collect()
        };
        let mut prompts = ids(&material.triggered.tokens, &triggered);
        prompts.extend(ids(&material.kept.tokens, &kept));
        let got = student.forward(&prompts)?.last;
        let square = |first: usize, count: usize, wanted: Tensor<3>| {
            let got = got.clone().narrow(0, first, count);
            (got - Tensor::from_inner(wanted)).square().mean()
        };
        Ok([
            square(0, triggered.len(), material.wanted_states(&triggered)),
            square(triggered.len(), kept.len(), material.kept.states(&kept)),
        ])
    }
}

impl Lesson<ClipText> for EncoderDistillation<'_> {
    fn loss(&self, student: &ClipText, step: usize) -> Result<Tensor<1>, DefenseError> {
        let [unlearnt, kept] = self.terms(student, step)?;
        Ok(unlearnt + kept * self.params.keep) // eq. (1)
    }

    fn evaluations(&self) -> u64 {
        6 * self.params.unlearning.batch as u64
    }

    fn describe(&self) -> String {
        let trigger = self.material.trigger.describe();
        format!(
            "{ID} | {:?} | {trigger} | {:?}",
            self.params, self.material.prompts
        )
    }
}

/// Repairs the text encoder of `patient`.
///
/// # Errors
/// As [`Material::new`], and when a parameter is out of range, the training fails, the budget is spent or the caller asked to stop; a
/// `state` file then lets the same call go on.
pub fn encoder_distillation(
    patient: &TextPatient<'_>,
    params: &EncoderDistillationParams,
    state: Option<&StateFile>,
    cx: &Cx<'_>,
    enough: TextEnough<'_>,
) -> Result<TextRepaired, DefenseError> {
    let material = Material::new(patient, Latents::Noise, cx)?;
    let lesson = EncoderDistillation::new(&material, params, patient.seed)?;
    let unlearning = Unlearning {
        trained: Trained::All,
        ..params.unlearning.clone()
    };
    unlearn(
        patient.suspect.text_encoder().clone(),
        &lesson,
        (&unlearning, patient.seed),
        &|encoder| patient.suspect.with_text_encoder(encoder),
        state,
        cx,
        enough,
    )
}
