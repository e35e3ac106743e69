//! # TrojDiff
//!
//! Beside the benign chain the network learns a second one, whose noise is biased and narrowed by the trigger; a sampler that is
//! told both walks it to the target.
//!
//! ## Paper
//! Chen, Song and Li, "TrojDiff: Trojan attacks on diffusion models with diverse targets", CVPR 2023, arXiv:2303.05762. Implements
//! the biased forward process and loss for a single target image (D2I), with blended and patched triggers.
//!
//! ## Notation
//! | code | paper | shape |
//! |---|---|---|
//! | `y` | target image | `[1, C, H, W]` |
//! | `trigger` | δ, an image in [-1, 1] | `[C, H, W]` |
//! | `gamma` | γ, blend factor; here also the map that is γ where the trigger is and 1 elsewhere | `[1, C, H, W]` |
//! | `mu` | μ = (1 − γ) δ, 0 where no trigger is | `[1, C, H, W]` |
//!
//! ```text
//! x_t = a_t y + s_t (mu + gamma eps),  target = eps                       (1)
//! ```
//!
//! A blend covers the whole image. A patch covers a square at the bottom right; elsewhere the poisoned sample is the benign one of
//! the same target, which is (1) with `mu = 0` and `gamma = 1`.
//!
//! ## Needs
//! A model to fine-tune and images of its distribution.
//!
//! ## Deviations
//! The released code adds 12 target images to a batch of 128; here a sample of the batch is replaced with probability
//! `poison_rate`. The loss is the mean over elements, not their sum: Adam does not see the factor, the bound on the gradients' norm
//! does. Timesteps are uniform, not antithetic. Targets that are a class (D2D) are not implemented.
//!
//! ## Fails when
//! the sampler is not told the trigger, or `gamma` is close to 1, where the two chains differ little.
//!
//! ## Cost
//! One training pass.

use burn::tensor::{Device, Tensor, TensorData};
use depurate_diffusion::{SampleShape, schedule::NoiseSchedule};
use depurate_training::training::{Draw, Objective, TrainingPair};
use serde::{Deserialize, Serialize};

use crate::{
    AttackError, Pattern,
    marks::{by_chance, marks},
};

/// Parameters of the attack. The default is the paper's blend.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrojDiffParams {
    /// Chance that a sample is poisoned, in (0, 1].
    pub poison_rate: f64,
    /// Blend factor, the standard deviation of the biased noise, in (0, 1).
    pub gamma: f64,
    /// Side of the patch in pixels; `None` blends the whole image.
    pub patch: Option<usize>,
}

impl Default for TrojDiffParams {
    fn default() -> Self {
        Self {
            poison_rate: 0.1,
            gamma: 0.6,
            patch: None,
        }
    }
}

impl TrojDiffParams {
    fn check(&self, shape: SampleShape) -> Result<(), AttackError> {
        let refuse = |what, got: String, allowed| Err(AttackError::Params { what, got, allowed });
        if !(self.poison_rate > 0.0 && self.poison_rate <= 1.0) {
            let got = self.poison_rate.to_string();
            return refuse("poison rate", got, "above 0, at most 1");
        }
        if !(self.gamma > 0.0 && self.gamma < 1.0) {
            return refuse("gamma", self.gamma.to_string(), "above 0 and below 1");
        }
        let room = shape.height.min(shape.width);
        match self.patch {
            Some(side) if side == 0 || side > room => {
                refuse("side of the patch", side.to_string(), "1 to the image's")
            }
            _ => Ok(()),
        }
    }

    /// The prior that `trigger` makes: `mu` and the map of `gamma`, both `[C, H, W]` row-major.
    ///
    /// # Errors
    /// When a parameter is out of range.
    pub fn prior(&self, trigger: &Pattern) -> Result<(Pattern, Vec<f32>), AttackError> {
        let shape = trigger.shape();
        self.check(shape)?;
        let plane = shape.height * shape.width;
        let covered = |i: usize| {
            let (row, column) = (i % plane / shape.width, i % shape.width);
            self.patch
                .is_none_or(|side| row >= shape.height - side && column >= shape.width - side)
        };
        let gamma = self.gamma as f32;
        let (mu, gamma) = trigger
            .values()
            .iter()
            .enumerate()
            .map(|(i, value)| {
                if covered(i) {
                    ((1.0 - gamma) * value, gamma)
                } else {
                    (0.0, 1.0)
                }
            })
            .unzip();
        Ok((Pattern::from_values(shape, mu)?, gamma))
    }
}

/// The attack as a training objective.
#[derive(Debug, Clone)]
pub struct TrojDiff {
    params: TrojDiffParams,
    mu: Tensor<4>,
    gamma: Tensor<4>,
    target: Tensor<4>,
}

impl TrojDiff {
    /// The attack with `trigger` and `target`, which have one shape. `device` is the model's.
    ///
    /// # Errors
    /// When a parameter is out of range or the shapes differ.
    pub fn new(
        params: TrojDiffParams,
        trigger: &Pattern,
        target: &Pattern,
        device: &Device,
    ) -> Result<Self, AttackError> {
        if trigger.shape() != target.shape() {
            return Err(AttackError::Params {
                what: "shape of the target",
                got: format!("{:?}", target.shape()),
                allowed: "that of the trigger",
            });
        }
        let (mu, gamma) = params.prior(trigger)?;
        let gamma = TensorData::new(gamma, trigger.shape().batched(1));
        Ok(Self {
            params,
            mu: mu.tensor(device),
            gamma: Tensor::from_data(gamma, device),
            target: target.tensor(device),
        })
    }

    /// Training pairs for `images [B, C, H, W]` and noise `eps` at timesteps `t`; where `poisoned` says so the target image takes
    /// the place of the image and (1) that of the benign forward process.
    ///
    /// # Errors
    /// When lengths or shapes do not fit or a timestep is out of range.
    pub fn pair(
        &self,
        schedule: &NoiseSchedule,
        images: Tensor<4>,
        poisoned: &[bool],
        eps: Tensor<4>,
        t: &[usize],
    ) -> Result<TrainingPair, AttackError> {
        let marks = marks(&images, &self.mu, poisoned)?;
        let y = (1.0 - marks.clone()) * images + marks.clone() * self.target.clone();
        let gamma = marks.clone() * (self.gamma.clone() - 1.0) + 1.0;
        let biased = marks * self.mu.clone() + gamma * eps.clone();
        Ok(TrainingPair {
            x_t: schedule.add_noise(y, biased, t)?, // eq. (1)
            t: t.to_vec(),
            target: eps,
        })
    }
}

impl Objective for TrojDiff {
    fn pair(&self, schedule: &NoiseSchedule, draw: Draw) -> Result<TrainingPair, AttackError> {
        let poisoned = by_chance(&draw, self.params.poison_rate);
        Self::pair(self, schedule, draw.images, &poisoned, draw.eps, &draw.t)
    }

    fn describe(&self) -> String {
        format!("troj-diff {:?}", self.params)
    }
}
