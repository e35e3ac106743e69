//! # Elijah's removal: the shift of the answer is undone at the last timestep
//!
//! A backdoored network answers differently to noise with the trigger than to noise without it. A frozen copy of it says what it
//! answers without; the network is trained to say the same with the trigger.
//!
//! ## Paper
//! An et al., "Elijah: eliminating backdoors injected in diffusion models via distribution shift", AAAI 2024, arXiv:2312.00050.
//! Implements the removal.
//!
//! ## Notation
//! | code | paper | shape |
//! |---|---|---|
//! | `tau`, `gamma` | the inverted trigger; a noise scale of 1 in the paper | `[1, C, H, W]` |
//! | `eps` | noise, the same in all three terms | `[B, C, H, W]` |
//! | teacher | frozen copy of the backdoored network | |
//!
//! ```text
//! L = MSE(e(a_t x_0 + s_t eps, t), eps)                                   (1)
//!   + MSE(e(gamma eps + tau, T), e_old(eps, T))                           (2)
//!   + MSE(e(eps, T), e_old(eps, T))                                       (3)
//! ```
//!
//! ## Needs
//! A trigger, clean images (generated ones will do), gradients of the network in its weights.
//!
//! ## Deviations
//! The three terms are averaged, not added: a factor of 1/3, which Adam does not see. (1) may take the teacher's answer for `eps`
//! ([`super::FineTuning::teacher_share`]; 0 is the paper). Several triggers share a batch. A fitted noise scale enters (2).
//!
//! ## Fails when
//! the trigger is answered at lower noise, too: nothing is taught there. After (2) the shift stays in the sample, and the earlier
//! timesteps of the chain meet it untrained.
//!
//! ## Cost
//! Three forward and backward passes and one evaluation of the teacher a sample.

use depurate_diffusion::{Denoiser, Pipeline, firing::Prior};
use depurate_report::Paper;
use depurate_training::{TrainingError, TrainingPair};

use super::{KnownTrigger, Lesson, Shown, dealt};

/// The repair's id.
pub const ID: &str = "elijah-removal";
/// The paper behind it.
pub const PAPER: Paper = Paper {
    implements: "removal",
    ..crate::invert::elijah::PAPER
};

/// Terms (2) and (3).
#[derive(Debug, Clone)]
pub struct ElijahRemoval {
    triggers: Vec<Prior>,
}

impl ElijahRemoval {
    /// For one or more triggers, checked.
    ///
    /// # Errors
    /// When there is no trigger or one is malformed.
    pub fn new(triggers: &[KnownTrigger], teacher: &Pipeline) -> Result<Self, crate::DefenseError> {
        Ok(Self {
            triggers: super::fine_tuning::priors(triggers, teacher)?,
        })
    }
}

impl Lesson for ElijahRemoval {
    fn pairs(&self, teacher: &Pipeline, shown: &Shown) -> Result<Vec<TrainingPair>, TrainingError> {
        let (eps, last) = (shown.draw.eps.clone(), teacher.schedule().len() - 1);
        let old = teacher.epsilon(eps.clone(), &[last])?;
        let t = vec![last; eps.dims()[0]];
        let mut pairs = Vec::new();
        if let Some(prior) = dealt(&self.triggers, t.len()) {
            pairs.push(TrainingPair {
                x_t: prior.apply(eps.clone()),
                t: t.clone(),
                target: old.clone(), // eq. (2)
            });
        }
        pairs.push(TrainingPair {
            x_t: eps,
            t,
            target: old, // eq. (3)
        });
        Ok(pairs)
    }

    fn teacher_evaluations(&self) -> u64 {
        1
    }

    fn blocks(&self) -> u64 {
        2
    }

    fn describe(&self) -> String {
        format!("{ID}, {} triggers", self.triggers.len())
    }
}
