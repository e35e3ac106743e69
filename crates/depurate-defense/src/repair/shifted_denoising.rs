//! # Shifted denoising: the trigger becomes noise like any other
//!
//! A network without backdoor that is shown a clean image under biased noise takes the bias for noise and removes it with the rest. A
//! backdoored one was trained to do something else with it. This trains it back, at every timestep, with the suspect's own
//! answer to the same sample without the trigger as teacher.
//!
//! ## Paper
//! Ours. It undoes, pair by pair, what the poisoned pairs of [`depurate_diffusion::trigger`] taught; Elijah
//! ([`super::elijah_removal`]) does so at the last timestep only.
//!
//! ## Notation
//! | code | meaning | shape |
//! |---|---|---|
//! | `x_t` | clean sample, a_t x_0 + s_t eps | `[B, C, H, W]` |
//! | `r`, `gamma` | the inverted trigger and its noise scale | `[1, C, H, W]` |
//! | `k` | strength of the trigger in a sample, uniform in [`STRENGTHS`], or 1 | |
//! | `b` | what the trigger adds to the noise, in units of s_t | `[B, C, H, W]` |
//!
//! ```text
//! b = k rho_t r / s_t + (gamma - 1) eps                                   (1)
//! L = MSE(e(x_t + s_t b, t), e_old(x_t, t) + b)   if the network answers  (2)
//! L = MSE(e(x_t + s_t b, t), e_old(x_t, t))       if the sampler does     (3)
//! ```
//!
//! By (2) the clean image that is predicted under the trigger is the one that was predicted without it. A sampler that is told the
//! trigger subtracts it itself, so that (3) says the same for it: its chain now leads to clean images instead of the target, and
//! nothing else changes. The targets hold no fresh noise, so that few steps are enough and the weights move no further than they must.
//! `rho_t` is the weight of the trigger under the rule that it works by: `1 - a_t`, or `s_t` where the sampler is told the
//! trigger. The strength varies because an inverted trigger is not the true one; under (3) `k` is 1, as the sampler knows it.
//!
//! ## Needs
//! A trigger, clean images (generated ones will do), gradients of the network in its weights.
//!
//! ## Deviations
//! None: there is no reference.
//!
//! ## Fails when
//! the inverted trigger is so far from the true one that the network tells them apart, or the backdoor fires without a trigger, too:
//! then the teacher teaches it.
//!
//! ## Cost
//! Two forward and backward passes and one evaluation of the teacher a sample, the clean one included.

use burn::tensor::{Tensor, TensorData};
use depurate_diffusion::{
    Denoiser, Pipeline,
    firing::{Firing, Prior},
    trigger::Shift,
};
use depurate_report::Paper;
use depurate_training::{TrainingError, TrainingPair};
use rand::RngExt;

use super::{KnownTrigger, Lesson, Shown, dealt};

/// The repair's id.
pub const ID: &str = "shifted-denoising";
/// Where it comes from.
pub const PAPER: Paper = Paper {
    authors: "depurate",
    title: "Shifted denoising",
    venue: "this implementation",
    year: 2026,
    arxiv: None,
    implements: "eq. (1) and (2) of the module's documentation",
};
/// Strengths of the trigger that training shows.
pub const STRENGTHS: std::ops::RangeInclusive<f64> = 0.8..=1.1;

/// Loss (2).
#[derive(Debug, Clone)]
pub struct ShiftedDenoising {
    triggers: Vec<Prior>,
    shifts: Vec<Shift>,
}

impl ShiftedDenoising {
    /// For one or more triggers.
    ///
    /// # Errors
    /// When there is no trigger or one is malformed.
    pub fn new(triggers: &[KnownTrigger], teacher: &Pipeline) -> Result<Self, crate::DefenseError> {
        let shift = |trigger: &KnownTrigger| match trigger.firing {
            Firing::Stochastic | Firing::Deterministic => Shift::LostSignal,
            Firing::Modified => Shift::NoiseLevel,
        };
        Ok(Self {
            triggers: super::fine_tuning::priors(triggers, teacher)?,
            shifts: triggers.iter().map(shift).collect(),
        })
    }
}

impl Lesson for ShiftedDenoising {
    fn pairs(&self, teacher: &Pipeline, shown: &Shown) -> Result<Vec<TrainingPair>, TrainingError> {
        let (schedule, draw, count) = (teacher.schedule(), &shown.draw, shown.draw.t.len());
        let Some(prior) = dealt(&self.triggers, count) else {
            return Ok(Vec::new());
        };
        let mut rng = draw.seed.child("strength", 0).rng();
        let kind = |i: usize| self.shifts[i % self.shifts.len()];
        let strength: Vec<f64> = (0..count)
            .map(|i| match kind(i) {
                Shift::LostSignal => rng.random_range(STRENGTHS),
                Shift::NoiseLevel => 1.0,
            })
            .collect();
        let column = |of: &dyn Fn(usize) -> f64| {
            let values: Vec<f32> = (0..count).map(|i| of(i) as f32).collect();
            let data = TensorData::new(values, [count, 1, 1, 1]);
            Tensor::<4>::from_data(data, &draw.eps.device())
        };
        let weight = column(&|i| {
            let t = draw.t[i];
            strength[i] * kind(i).rho(schedule, t) / schedule.s(t)
        });
        let mut bias = weight * prior.shift;
        if let Some(gamma) = prior.gamma {
            bias = bias + (gamma - 1.0) * draw.eps.clone(); // eq. (1)
        }
        let s = column(&|i| schedule.s(draw.t[i]));
        let answered = column(&|i| f64::from(u8::from(kind(i) == Shift::LostSignal)));
        Ok(vec![TrainingPair {
            x_t: shown.x_t.clone() + s * bias.clone(),
            t: draw.t.clone(),
            target: shown.old.clone() + answered * bias, // eq. (2), (3)
        }])
    }

    fn teacher_evaluations(&self) -> u64 {
        0
    }

    fn blocks(&self) -> u64 {
        1
    }

    fn describe(&self) -> String {
        format!("{ID}, {} triggers", self.triggers.len())
    }
}
