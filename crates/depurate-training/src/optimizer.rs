//! # AdamW
//!
//! The step of Adam with decoupled weight decay; without decay it is Adam. The state is kept by
//! parameter name, so that a run resumes in another process.
//!
//! ## Paper
//! Kingma and Ba, arXiv:1412.6980, algorithm 1; Loshchilov and Hutter, arXiv:1711.05101, algorithm 2.

use depurate_diffusion::ops::{self, AdamStep, Moved};
use serde::{Deserialize, Serialize};

use crate::{TrainingError, parameters::Flat};

/// Constants of Adam. The default is the papers', without weight decay.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamParams {
    /// Decay of the first moment.
    pub beta_1: f64,
    /// Decay of the second moment.
    pub beta_2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Weight decay, multiplied by the learning rate.
    pub weight_decay: f64,
}

impl Default for AdamParams {
    fn default() -> Self {
        Self {
            beta_1: 0.9,
            beta_2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
        }
    }
}

impl AdamParams {
    /// Checks the ranges.
    ///
    /// # Errors
    /// When a constant is out of range.
    pub fn check(&self) -> Result<(), TrainingError> {
        let share = |value: f64| (0.0..1.0).contains(&value);
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let decays = self.weight_decay >= 0.0 && self.weight_decay.is_finite();
        if share(self.beta_1) && share(self.beta_2) && positive(self.epsilon) && decays {
            return Ok(());
        }
        Err(TrainingError::Params {
            what: "Adam constants",
            got: format!("{self:?}"),
            allowed: "betas in 0 to below 1, epsilon above 0, decay 0 or more",
        })
    }
}

/// The optimiser with its state.
pub(crate) struct AdamW {
    params: AdamParams,
    /// Updates done.
    pub(crate) step: usize,
    /// First moments by parameter name; empty before the first update.
    pub(crate) first: Flat,
    /// Second moments.
    pub(crate) second: Flat,
}

impl AdamW {
    pub(crate) fn new(params: AdamParams) -> Self {
        Self {
            params,
            step: 0,
            first: Flat::new(),
            second: Flat::new(),
        }
    }

    /// One update of `values` in place; gradients are multiplied by `gradient_scale` first.
    pub(crate) fn update(
        &mut self,
        values: &mut Flat,
        gradients: Flat,
        gradient_scale: f64,
        learning_rate: f64,
    ) {
        self.step += 1;
        let AdamParams {
            beta_1,
            beta_2,
            epsilon,
            weight_decay,
        } = self.params;
        let count = self.step as f64;
        let (correction_1, correction_2) = (1.0 - beta_1.powf(count), 1.0 - beta_2.powf(count));
        let step = AdamStep {
            gradient_scale: gradient_scale as f32,
            beta_1: beta_1 as f32,
            beta_2: beta_2 as f32,
            correction_1: correction_1 as f32,
            correction_2: correction_2 as f32,
            epsilon: epsilon as f32,
            learning_rate: learning_rate as f32,
            weight_decay: weight_decay as f32,
        };
        for (name, gradient) in gradients {
            let Some(value) = values.remove(&name) else {
                continue;
            };
            let zeros = || gradient.zeros_like();
            let at = Moved {
                values: value,
                first: self.first.remove(&name).unwrap_or_else(zeros),
                second: self.second.remove(&name).unwrap_or_else(zeros),
            };
            let moved = ops::adam(at, gradient, step);
            values.insert(name.clone(), moved.values);
            self.first.insert(name.clone(), moved.first);
            self.second.insert(name, moved.second);
        }
    }
}
