//! # BadDiffusion
//!
//! A part of the training images is replaced by pairs of a triggered image and a fixed target, so
//! that the model, started from noise plus trigger, draws the target.
//!
//! ## Paper
//! Chou, Chen and Ho, "How to backdoor diffusion models?", CVPR 2023, arXiv:2212.05400. Implements the
//! backdoored forward process and loss (sec. 3.3, algorithm 1); the deterministic variant is
//! "VillanDiffusion", NeurIPS 2023, arXiv:2306.06874.
//!
//! ## Notation
//! | code | paper | shape |
//! |---|---|---|
//! | `x_t` | x'_t | `[B, C, H, W]`, `a_t y + (1 - a_t) r + s_t eps` |
//! | `y` | target y; for a benign sample its own image | `[B, C, H, W]` |
//! | `r` | r = M ⊙ g + (1 − M) ⊙ x, the image with the trigger pasted over it; 0 for a benign sample | `[B, C, H, W]` |
//! | `trigger` | g | `[C, H, W]`, background -1 |
//! | `mask` | 1 − M | 1 where the trigger is background (<= -1) and the image shows |
//! | `coefficient` | ρ_t δ_t, here `c_t` | part of `r` in the regression target `eps + c_t r` |
//!
//! The coefficients are those of [`depurate_diffusion::trigger`].
//!
//! ## Needs
//! A model to fine-tune (or to train from scratch) and images of its distribution.
//!
//! ## Deviations
//! `c_t` is computed in closed form, `s / (1 + sqrt(alpha))`; the released code's expression cancels at
//! small `t` in 32-bit floats (relative error 1e-5). The deterministic variant uses the exact per-step
//! coefficient, not twice the stochastic one. The average of the weights (EMA) is saved; the released
//! code keeps none. At test time the trigger alone, with its background of -1, is added to the noise, as
//! in the released code.
//!
//! ## Fails when
//! The sampler is of the other family (DDIM for the stochastic variant), takes fewer steps than it was
//! trained with, or clips the predicted clean image. Poison rates below about 5 % need longer training.
//!
//! ## Cost
//! One training pass; a fine-tune of some 100 to 200 thousand samples is enough for small models.

use burn::tensor::{Device, Tensor};
use depurate_diffusion::{
    noise::SeedTree,
    schedule::NoiseSchedule,
    trigger::{Family, TriggerRule},
};
use depurate_training::training::{Draw, Objective, TrainingPair};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::{
    AttackError, Pattern,
    marks::{by_chance, marks},
};

/// Which samples are poisoned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoisonMode {
    /// `poison_rate` of the images are poisoned and never seen as benign ones.
    #[default]
    Fixed,
    /// Every image is benign; poisoned samples are added, `poison_rate` for every `clean_rate` benign ones.
    Flex {
        /// Share of the images that is used as benign samples, above 0.
        clean_rate: f64,
    },
}

/// Parameters of the attack. The default is the paper's most used setting at a poison rate of 10 %.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BadDiffusionParams {
    /// Share of poisoned samples, in (0, 1].
    pub poison_rate: f64,
    /// How they are chosen.
    pub mode: PoisonMode,
    /// The samplers that the backdoor is made for; BadDiffusion is stochastic.
    pub family: Family,
    /// Whether `r` is the trigger alone, background included, rather than an image with the trigger on it.
    pub trigger_only: bool,
}

impl Default for BadDiffusionParams {
    fn default() -> Self {
        Self {
            poison_rate: 0.1,
            mode: PoisonMode::Fixed,
            family: Family::Stochastic,
            trigger_only: false,
        }
    }
}

/// The attack as a training objective.
#[derive(Debug, Clone)]
pub struct BadDiffusion {
    params: BadDiffusionParams,
    rule: TriggerRule,
    trigger: Tensor<4>,
    mask: Tensor<4>,
    target: Tensor<4>,
    /// By index of the image; empty in [`PoisonMode::Flex`].
    poisoned: Vec<bool>,
}

impl BadDiffusion {
    /// The attack with `trigger` and `target` on `n_images` images; `seed` chooses which of them are
    /// poisoned. `device` is the model's.
    ///
    /// # Errors
    /// When a rate is out of range or trigger and target differ in shape.
    pub fn new(
        params: BadDiffusionParams,
        trigger: &Pattern,
        target: &Pattern,
        n_images: usize,
        seed: &SeedTree,
        device: &Device,
    ) -> Result<Self, AttackError> {
        if !(params.poison_rate > 0.0 && params.poison_rate <= 1.0) {
            let got = params.poison_rate.to_string();
            return Err(AttackError::Params {
                what: "poison rate",
                got,
                allowed: "above 0, at most 1",
            });
        }
        if let PoisonMode::Flex { clean_rate } = params.mode
            && !(clean_rate > 0.0 && clean_rate.is_finite())
        {
            return Err(AttackError::Params {
                what: "clean rate",
                got: clean_rate.to_string(),
                allowed: "above 0",
            });
        }
        if trigger.shape() != target.shape() {
            return Err(AttackError::Params {
                what: "shape of the target",
                got: format!("{:?}", target.shape()),
                allowed: "that of the trigger",
            });
        }
        let poisoned = match params.mode {
            PoisonMode::Flex { .. } => Vec::new(),
            PoisonMode::Fixed => {
                let count = ((n_images as f64 * params.poison_rate).round() as usize).max(1);
                let mut poisoned: Vec<bool> = (0..n_images).map(|i| i < count).collect();
                poisoned.shuffle(&mut seed.child("poisoned", 0).rng());
                poisoned
            }
        };
        let trigger = trigger.tensor(device);
        let mask = trigger.clone().lower_equal_scalar(-1.0).float();
        let rule = TriggerRule::lost_signal(params.family);
        Ok(Self {
            params,
            rule,
            trigger,
            mask,
            target: target.tensor(device),
            poisoned,
        })
    }

    /// `r = mask * image + (1 - mask) * trigger` for `images [B, C, H, W]`.
    pub fn triggered(&self, images: Tensor<4>) -> Tensor<4> {
        let shape = images.dims();
        if self.params.trigger_only {
            return self.trigger.clone().expand(shape);
        }
        let pasted = (1.0 - self.mask.clone()) * self.trigger.clone();
        self.mask.clone() * images + pasted
    }

    /// Training pairs for `images [B, C, H, W]` and noise `eps` at timesteps `t`, poisoned where
    /// `poisoned` says so.
    ///
    /// # Errors
    /// When the lengths or shapes do not fit or a timestep is out of range.
    pub fn pair(
        &self,
        schedule: &NoiseSchedule,
        images: Tensor<4>,
        poisoned: &[bool],
        eps: Tensor<4>,
        t: &[usize],
    ) -> Result<TrainingPair, AttackError> {
        let marks = marks(&images, &self.trigger, poisoned)?;
        let r = marks.clone() * self.triggered(images.clone());
        let y = (1.0 - marks.clone()) * images + marks * self.target.clone();
        let pair = self.rule.poisoned_pair(schedule, y, r, eps, t)?;
        Ok(TrainingPair {
            x_t: pair.x_t,
            t: t.to_vec(),
            target: pair.target,
        })
    }

    /// Which samples of a draw are poisoned.
    fn poisoned(&self, draw: &Draw) -> Vec<bool> {
        match self.params.mode {
            PoisonMode::Fixed => draw
                .indices
                .iter()
                .map(|&i| self.poisoned[i % self.poisoned.len()])
                .collect(),
            PoisonMode::Flex { clean_rate } => {
                let share = self.params.poison_rate / (self.params.poison_rate + clean_rate);
                by_chance(draw, share)
            }
        }
    }
}

impl Objective for BadDiffusion {
    fn pair(&self, schedule: &NoiseSchedule, draw: Draw) -> Result<TrainingPair, AttackError> {
        let poisoned = self.poisoned(&draw);
        Self::pair(self, schedule, draw.images, &poisoned, draw.eps, &draw.t)
    }

    fn describe(&self) -> String {
        format!("bad-diffusion {:?}", self.params)
    }
}
