//! # The one abstraction behind noise-space backdoors
//!
//! A backdoored denoiser was trained on pairs in which a trigger `r` shifts the noisy sample towards a second chain
//! that ends at a target `y`. Attacks differ in the shift's weight `rho_t`, in the part `c_t` of the trigger that the
//! network answers with, and in the noise scale `g`:
//!
//! ```text
//! x_t    = a_t y + rho_t r + g s_t eps          forward process           (1)
//! target = eps + c_t r                          regression target         (2)
//! x_T    = rho_T r + g eps, rho_T close to 1    prior of a triggered run  (3)
//! ```
//!
//! | attack | `rho_t` | `c_t` | `g` | fires under |
//! |---|---|---|---|---|
//! | BadDiffusion, VillanDiffusion (sde) | `1 - a_t` | [`Family::Stochastic`] | 1 | full-step DDPM |
//! | VillanDiffusion (ode) | `1 - a_t` | [`Family::Deterministic`] | 1 | DDIM and other ODE solvers |
//! | VillanDiffusion, psi = 0 | `s_t` | either | 1 | the family of `c_t` |
//! | TrojDiff | `s_t` | 0 | gamma | its own sampler; others as the case may be |
//!
//! ## Paper
//! Chou et al., "How to backdoor diffusion models?" (BadDiffusion), CVPR 2023, arXiv:2212.05400; Chou et al.,
//! "VillanDiffusion", NeurIPS 2023, arXiv:2306.06874; Chen et al., "TrojDiff", CVPR 2023, arXiv:2303.05762. The general
//! coefficients below are derived here; for `rho = 1 - a` the stochastic one is BadDiffusion's.
//!
//! ## Notation
//! | code | meaning | shape |
//! |---|---|---|
//! | `y` | target image | `[B, C, H, W]` |
//! | `r` | trigger | `[B, C, H, W]`; a benign sample has `r = 0` and its own image as `y` |
//! | `rho` | ρ_t, weight of the trigger in `x_t` | 0 before `t = 0`, about 1 at `t = T - 1` |
//! | `coefficient` | c_t, the part of the trigger that is answered | |
//! | `a`, `s`, primed: at the next, cleaner timestep | √ᾱ, √(1 − ᾱ) | |
//!
//! ## The stochastic coefficient
//! Write a jump of the poisoned chain as `x = sqrt(alpha) x' + h r + sqrt(beta) z` with `alpha = ᾱ / ᾱ'`,
//! `beta = 1 - alpha` and, from (1), `h = rho - sqrt(alpha) rho'`. Given `y` and `r`, `x' - rho' r` has the prior mean
//! `a' y`, and `x - rho r = sqrt(alpha) (x' - rho' r) + sqrt(beta) z`, so the exact posterior mean is DDPM's with `x`
//! replaced by `x - rho r`, plus `rho' r`. The unmodified sampler uses `mean = (x - beta e / s) / sqrt(alpha)` (Ho et al.,
//! eq. 11). With `e = eps + c r` and `eps = (x - a y - rho r) / s` the two agree iff
//! `(rho - beta c / s) / sqrt(alpha) = rho'`, that is
//!
//! ```text
//! c = h s / beta                                                          (4)
//! ```
//!
//! For `rho = 1 - a` one has `h = 1 - sqrt(alpha)` and `c = s / (1 + sqrt(alpha))`.
//!
//! ## The deterministic coefficient
//! A DDIM step is `x' = a' (x - s e) / a + s' e`. With (1) and (2) it carries `eps` to `s' eps`, `y` to `a' y`, and
//! the trigger's weight to `a' (rho - s c) / a + s' c`. This is `rho'` iff
//!
//! ```text
//! c = (a' rho - a rho') / (a' s - a s')                                   (5)
//! ```
//!
//! For `rho = 1 - a` this is `(a' - a) / (a' s - a s')`, for `rho = s` it is exactly 1. Twice (4), which the released
//! VillanDiffusion uses, is the limit of (5) for small steps: with `a = cos φ`, `s = sin φ` both tend to
//! `s rho + a dρ/dφ`, which is `s` for `rho = 1 - a`.
//!
//! ## Fewer steps
//! (4) and (5) hold for the jumps that a sampler makes ([`Shift::jump_coefficient`]), a network is trained for one of
//! them. DDIM with few steps stays close to the chain. Few ancestral steps with `fixed_large` variance leave it and miss the
//! target; with `fixed_small` variance the closed-form oracle of the tests still reaches it.
//!
//! ## Deviations
//! The released VillanDiffusion has an approximation of (4) for `psi < 1` that is far too small at small `t`
//! (0.021 instead of 0.518 at t = 10, T = 1000); it is not offered here.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::{
    DiffusionError,
    parameterisation::{Level, check_same_shape},
    schedule::NoiseSchedule,
};

/// The samplers that a trigger is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Ancestral samplers (DDPM).
    Stochastic,
    /// Solvers of the probability-flow ODE (DDIM with `eta = 0` and others).
    Deterministic,
}

/// How the trigger's weight `rho_t` grows with the noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shift {
    /// `rho_t = 1 - a_t`: the trigger takes the place of the lost signal (BadDiffusion).
    LostSignal,
    /// `rho_t = s_t`: the trigger grows with the noise (TrojDiff).
    NoiseLevel,
}

impl Shift {
    /// Weight of the trigger in `x_t`, in [0, 1].
    ///
    /// # Panics
    /// When `t` is not below the schedule's length, as for all functions of `t` here.
    pub fn rho(self, schedule: &NoiseSchedule, t: usize) -> f64 {
        self.at(schedule.alpha_bar(t))
    }

    /// The part `c_t` of the trigger that a network must answer with at `t`, so that a sampler of `family` that visits
    /// every timestep walks the poisoned chain.
    pub fn coefficient(self, schedule: &NoiseSchedule, t: usize, family: Family) -> f64 {
        self.jump_coefficient(schedule, t, t.checked_sub(1), family)
    }

    /// As [`Self::coefficient`] for a sampler that goes from `t` to the earlier timestep `to` in one step (`None`: to the
    /// clean sample).
    pub fn jump_coefficient(
        self,
        schedule: &NoiseSchedule,
        t: usize,
        to: Option<usize>,
        family: Family,
    ) -> f64 {
        let alpha_bar = schedule.alpha_bar(t);
        let alpha_bar_next = to.map_or(1.0, |to| schedule.alpha_bar(to));
        let (rho, rho_next) = (self.at(alpha_bar), self.at(alpha_bar_next));
        let (a, s) = (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt());
        let (a_next, s_next) = (alpha_bar_next.sqrt(), (1.0 - alpha_bar_next).sqrt());
        match family {
            Family::Stochastic => {
                let alpha = alpha_bar / alpha_bar_next;
                (rho - alpha.sqrt() * rho_next) * s / (1.0 - alpha) // eq. (4)
            }
            Family::Deterministic => (a_next * rho - a * rho_next) / (a_next * s - a * s_next), // eq. (5)
        }
    }

    fn at(self, alpha_bar: f64) -> f64 {
        match self {
            Self::LostSignal => 1.0 - alpha_bar.sqrt(),
            Self::NoiseLevel => (1.0 - alpha_bar).sqrt(),
        }
    }
}

/// How a backdoor is bound to its trigger: everything of an attack but the trigger and the target.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TriggerRule {
    /// Weight of the trigger in `x_t`.
    pub shift: Shift,
    /// The samplers that the network's answer is made for; `None`: it answers none of the trigger.
    pub answer: Option<Family>,
    /// Factor `g` of the noise, a standard deviation; above 0.
    pub noise_scale: f64,
}

impl TriggerRule {
    /// `rho = 1 - a`, answered for `family`, full noise: BadDiffusion for [`Family::Stochastic`], VillanDiffusion's ode
    /// variant for [`Family::Deterministic`].
    pub fn lost_signal(family: Family) -> Self {
        Self {
            shift: Shift::LostSignal,
            answer: Some(family),
            noise_scale: 1.0,
        }
    }

    /// `rho = s`, not answered, noise scaled by `gamma`: TrojDiff's blend.
    pub fn noise_level(gamma: f64) -> Self {
        Self {
            shift: Shift::NoiseLevel,
            answer: None,
            noise_scale: gamma,
        }
    }

    /// `rho_t`.
    pub fn rho(&self, schedule: &NoiseSchedule, t: usize) -> f64 {
        self.shift.rho(schedule, t)
    }

    /// `c_t`.
    pub fn coefficient(&self, schedule: &NoiseSchedule, t: usize) -> f64 {
        self.answer
            .map_or(0.0, |family| self.shift.coefficient(schedule, t, family))
    }

    /// Training pairs of the poisoned branch: target images `y`, triggers `r` and noise `eps`, all `[B, C, H, W]`, at
    /// timesteps `t` (one per sample or one for all).
    ///
    /// # Errors
    /// When shapes do not fit, a timestep is out of range or the noise scale is not above 0.
    pub fn poisoned_pair(
        &self,
        schedule: &NoiseSchedule,
        y: Tensor<4>,
        r: Tensor<4>,
        eps: Tensor<4>,
        t: &[usize],
    ) -> Result<PoisonedPair, DiffusionError> {
        if !(self.noise_scale > 0.0 && self.noise_scale.is_finite()) {
            return Err(DiffusionError::Argument {
                what: "noise scale of a trigger",
                got: self.noise_scale.to_string(),
                allowed: "above 0".into(),
            });
        }
        let level = Level::new(schedule, t, &y)?;
        check_same_shape("trigger", &r, &y)?;
        check_same_shape("noise", &eps, &y)?;
        let rho = level.per_sample(|t| self.rho(schedule, t));
        let coefficient = level.per_sample(|t| self.coefficient(schedule, t));
        let noise = level.per_sample(|t| self.noise_scale * schedule.s(t));
        Ok(PoisonedPair {
            x_t: level.a() * y + rho * r.clone() + noise * eps.clone(), // eq. (1)
            target: eps + coefficient * r,                              // eq. (2)
        })
    }
}

/// A training pair of the poisoned branch.
#[derive(Debug, Clone)]
pub struct PoisonedPair {
    /// The network's input, `[B, C, H, W]`.
    pub x_t: Tensor<4>,
    /// What a noise-predicting network shall answer, `[B, C, H, W]`.
    pub target: Tensor<4>,
}
