//! Parameters of Rickrolling.

use depurate_training::training::AdamParams;
use serde::{Deserialize, Serialize};

use crate::AttackError;

/// Parameters of the attack. The default is the released setting of TPA.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RickrollingParams {
    /// Optimiser steps.
    pub steps: usize,
    /// Learning rate of the first steps.
    pub learning_rate: f64,
    /// The step at which the learning rate falls to a tenth.
    pub decay_at: usize,
    /// β, weight of the backdoors.
    pub beta: f64,
    /// Captions without trigger a step.
    pub clean_batch: usize,
    /// Captions with trigger a step and backdoor.
    pub poisoned_batch: usize,
    /// Constants of the optimiser.
    pub adam: AdamParams,
    /// Seed of everything random in the run.
    pub seed: u64,
    /// Steps between two resumable states.
    pub checkpoint_every: usize,
}

impl Default for RickrollingParams {
    fn default() -> Self {
        Self {
            steps: 100,
            learning_rate: 1e-4,
            decay_at: 75,
            beta: 0.1,
            clean_batch: 128,
            poisoned_batch: 32,
            adam: AdamParams::default(),
            seed: 0,
            checkpoint_every: 100,
        }
    }
}

impl RickrollingParams {
    /// The released setting of TAA.
    pub fn attribute() -> Self {
        Self {
            steps: 200,
            decay_at: 150,
            ..Self::default()
        }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// The first parameter that is out of range.
    pub fn check(&self) -> Result<(), AttackError> {
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let size = |value: usize| (1..=65_536).contains(&value);
        let checks = [
            (
                size(self.steps),
                "steps",
                self.steps.to_string(),
                "1 to 65,536",
            ),
            (
                positive(self.learning_rate),
                "learning rate",
                self.learning_rate.to_string(),
                "above 0",
            ),
            (
                positive(self.beta),
                "beta",
                self.beta.to_string(),
                "above 0",
            ),
            (
                size(self.clean_batch) && size(self.poisoned_batch),
                "batch",
                format!(
                    "{} clean, {} poisoned",
                    self.clean_batch, self.poisoned_batch
                ),
                "1 to 65,536 each",
            ),
            (
                self.checkpoint_every > 0,
                "steps between checkpoints",
                "0".into(),
                "1 or more",
            ),
        ];
        for (good, what, got, allowed) in checks {
            if !good {
                return Err(AttackError::Params { what, got, allowed });
            }
        }
        self.adam.check()
    }

    /// The learning rate of a step, counted from 0.
    pub fn learning_rate_at(&self, step: usize) -> f64 {
        let share = if step < self.decay_at { 1.0 } else { 0.1 };
        self.learning_rate * share
    }
}
