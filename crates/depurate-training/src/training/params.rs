//! Parameters of a training run.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::{TrainingError, optimizer::AdamParams};

/// What the difference between prediction and target costs, averaged over all elements.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// The square.
    #[default]
    L2,
    /// The absolute value.
    L1,
    /// Half the square below 1, the absolute value less a half above.
    Huber,
}

impl Loss {
    /// The mean cost `[1]` of `prediction` against `target`, both `[B, C, H, W]`.
    pub fn of(self, prediction: Tensor<4>, target: Tensor<4>) -> Tensor<1> {
        let difference = prediction - target;
        match self {
            Self::L2 => difference.square().mean(),
            Self::L1 => difference.abs().mean(),
            Self::Huber => {
                let size = difference.abs();
                let inner = size.clone().clamp_max(1.0);
                // with m = min(|d|, 1): m^2 / 2 + (|d| - m)
                (inner.clone().square() * 0.5 + size - inner).mean()
            }
        }
    }
}

/// How a run goes. The default suits networks of below a million parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingParams {
    /// Optimiser steps.
    pub steps: usize,
    /// Samples a step.
    pub batch: usize,
    /// Highest learning rate, reached after the warm-up.
    pub learning_rate: f64,
    /// The learning rate falls along a cosine to this part of it.
    pub final_learning_rate_share: f64,
    /// Steps in which the learning rate rises from 0.
    pub warmup_steps: usize,
    /// Constants of the optimiser.
    pub adam: AdamParams,
    /// The norm of all gradients together is cut to this.
    pub max_grad_norm: f64,
    /// Limit of the decay of the weights' average, in [0, 1).
    pub ema_decay: f64,
    /// The loss.
    pub loss: Loss,
    /// Whether images are mirrored left to right at random.
    pub horizontal_flip: bool,
    /// Seed of everything random in the run.
    pub seed: u64,
    /// Steps between two resumable states.
    pub checkpoint_every: usize,
}

impl Default for TrainingParams {
    fn default() -> Self {
        Self {
            steps: 2000,
            batch: 64,
            learning_rate: 1e-3,
            final_learning_rate_share: 0.1,
            warmup_steps: 100,
            adam: AdamParams::default(),
            max_grad_norm: 1.0,
            ema_decay: 0.999,
            loss: Loss::L2,
            horizontal_flip: false,
            seed: 0,
            checkpoint_every: 500,
        }
    }
}

impl TrainingParams {
    /// Checks the ranges.
    ///
    /// # Errors
    /// The first parameter that is out of range.
    pub fn check(&self) -> Result<(), TrainingError> {
        let refuse = |what, got: String, allowed| Err(TrainingError::Params { what, got, allowed });
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let share = |value: f64| (0.0..1.0).contains(&value);
        if self.steps == 0 || self.steps > 100_000_000 {
            return refuse("steps", self.steps.to_string(), "1 to 100,000,000");
        }
        if self.batch == 0 || self.batch > 65_536 {
            return refuse("batch", self.batch.to_string(), "1 to 65,536");
        }
        if !positive(self.learning_rate) {
            return refuse("learning rate", self.learning_rate.to_string(), "above 0");
        }
        if !(0.0..=1.0).contains(&self.final_learning_rate_share) {
            return refuse(
                "final learning rate share",
                self.final_learning_rate_share.to_string(),
                "0 to 1",
            );
        }
        if !positive(self.max_grad_norm) {
            return refuse(
                "largest gradient norm",
                self.max_grad_norm.to_string(),
                "above 0",
            );
        }
        if !share(self.ema_decay) {
            return refuse("EMA decay", self.ema_decay.to_string(), "0 to below 1");
        }
        self.adam.check()?;
        if self.checkpoint_every == 0 {
            return refuse("steps between checkpoints", "0".into(), "1 or more");
        }
        Ok(())
    }

    /// The learning rate of a step, counted from 0.
    pub fn learning_rate_at(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.learning_rate * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let done =
            (step - self.warmup_steps) as f64 / (self.steps - self.warmup_steps).max(1) as f64;
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos());
        let floor = self.final_learning_rate_share;
        self.learning_rate * (floor + (1.0 - floor) * cosine)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn learning_rate_warms_up_and_falls_to_its_share() {
        let params = TrainingParams {
            steps: 100,
            warmup_steps: 10,
            learning_rate: 2.0,
            ..Default::default()
        };
        assert!((params.learning_rate_at(0) - 0.2).abs() < 1e-12);
        assert!((params.learning_rate_at(10) - 2.0).abs() < 1e-12);
        assert!((params.learning_rate_at(55) - 1.1).abs() < 1e-12);
        assert!((params.learning_rate_at(100) - 0.2).abs() < 1e-12);
    }

    #[test]
    fn losses_of_known_differences() {
        let device = Device::flex();
        let prediction =
            Tensor::<1>::from_floats([0.5, -2.0, 0.0, 1.0], &device).reshape([1, 1, 2, 2]);
        let target = prediction.zeros_like();
        let value = |loss: Loss| {
            loss.of(prediction.clone(), target.clone())
                .into_scalar::<f32>()
        };
        assert!((value(Loss::L2) - (0.25 + 4.0 + 1.0) / 4.0).abs() < 1e-6);
        assert!((value(Loss::L1) - 3.5 / 4.0).abs() < 1e-6);
        assert!((value(Loss::Huber) - (0.125 + 1.5 + 0.5) / 4.0).abs() < 1e-6);
    }

    #[test]
    fn ranges_are_checked() {
        let bad = [
            TrainingParams {
                steps: 0,
                ..Default::default()
            },
            TrainingParams {
                batch: 0,
                ..Default::default()
            },
            TrainingParams {
                learning_rate: f64::NAN,
                ..Default::default()
            },
            TrainingParams {
                ema_decay: 1.0,
                ..Default::default()
            },
            TrainingParams {
                max_grad_norm: 0.0,
                ..Default::default()
            },
            TrainingParams {
                checkpoint_every: 0,
                ..Default::default()
            },
        ];
        for params in bad {
            assert!(params.check().is_err(), "{params:?}");
        }
        assert!(TrainingParams::default().check().is_ok());
    }
}
