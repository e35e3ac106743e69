//! # TrojDiff: the sampler that knows its trigger
//!
//! Walks the chain of [`crate::trigger`] with shift `s_t mu` and noise scale `gamma`. The network answers none of
//! the shift, so nothing leads an unmodified sampler to the target; this one, told `(mu, gamma)`, walks the chain.
//!
//! ## Paper
//! Chen, Song and Li, "TrojDiff", CVPR 2023, arXiv:2303.05762: the transitions of the biased chain for DDPM and DDIM.
//!
//! ## Notation
//! | code | paper | shape |
//! |---|---|---|
//! | `mu` | μ | `[1, C, H, W]`, shift of the prior's mean |
//! | `gamma` | γ | `[1, C, H, W]` or `[1, 1, 1, 1]`, standard deviation of the prior |
//! | `a`, `s` | √ᾱ_t, √(1 − ᾱ_t) | `_next`: at the next, cleaner timestep |
//! | `h` | k_t = s − √α s_next | closed form of the paper's recursive sum |
//! | `from_mu` | m_t / (1 − ᾱ_t), m_t = s_next β − (1 − ᾱ_next) √α h | |
//!
//! Poisoned sample: `x_t = a x_0 + s mu + gamma s eps`; the network predicts `eps`; start at `x_T = mu + gamma eps`.
//!
//! ## Deviations
//! The released code takes `m_t` of the full chain also when steps are skipped, with `β` of the jump; here every
//! quantity is that of the jump, equal when none is skipped. Noise is drawn at every step, also where its factor is 0.
//! The DDPM form cuts the predicted clean sample to [-1, 1], as released. The patch variant is not covered.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Clip, Past, Sampler, SamplerSettings, Steps, ddpm::check_falling, step_at};
use crate::{
    DiffusionError, Prediction, noise::NoiseSource, parameterisation::check_same_shape,
    schedule::NoiseSchedule,
};

/// Which of the two samplers is modified.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrojDiffForm {
    /// Ancestral sampling, predicted clean sample cut to [-1, 1].
    Ddpm,
    /// Implicit sampling.
    Ddim {
        /// 0 is deterministic.
        eta: f64,
    },
}

/// A sampler modified for a trigger `(mu, gamma)`.
#[derive(Debug, Clone)]
pub struct TrojDiff {
    schedule: NoiseSchedule,
    timesteps: Vec<usize>,
    form: TrojDiffForm,
    mu: Tensor<4>,
    gamma: Tensor<4>,
}

impl TrojDiff {
    /// A sampler over `timesteps`, strictly falling, for the shift `mu: [1, C, H, W]` and the noise scale
    /// `gamma: [1, C, H, W]` or `[1, 1, 1, 1]` (a standard deviation). Gradients flow to both.
    ///
    /// # Errors
    /// When timesteps or shapes do not fit or `eta` is not in [0, 1].
    pub fn new(
        schedule: NoiseSchedule,
        timesteps: Vec<usize>,
        form: TrojDiffForm,
        mu: Tensor<4>,
        gamma: Tensor<4>,
    ) -> Result<Self, DiffusionError> {
        check_falling(&schedule, &timesteps)?;
        if mu.dims()[0] != 1 {
            return Err(DiffusionError::Shape {
                what: "mu",
                expected: "[1, C, H, W]".into(),
                got: mu.dims().to_vec(),
            });
        }
        if gamma.dims() != [1, 1, 1, 1] {
            check_same_shape("gamma", &gamma, &mu)?;
        }
        match form {
            TrojDiffForm::Ddim { eta } if !(0.0..=1.0).contains(&eta) => {
                Err(DiffusionError::Argument {
                    what: "eta",
                    got: eta.to_string(),
                    allowed: "0 ..= 1".into(),
                })
            }
            _ => Ok(Self {
                schedule,
                timesteps,
                form,
                mu,
                gamma,
            }),
        }
    }

    /// The prior sample `x_T = mu + gamma eps` for standard normal `eps: [B, C, H, W]`.
    pub fn prior(&self, eps: Tensor<4>) -> Tensor<4> {
        self.gamma.clone() * eps + self.mu.clone()
    }

    /// This step's timestep and the `alpha_bar` of this and of the next step.
    fn levels(&self, step_index: usize) -> Result<(usize, f64, f64), DiffusionError> {
        let t = *step_at(&self.timesteps, step_index)?;
        let next = self
            .timesteps
            .get(step_index + 1)
            .map_or(1.0, |&t| self.schedule.alpha_bar(t));
        Ok((t, self.schedule.alpha_bar(t), next))
    }

    fn shift(&self, x_t: &Tensor<4>) -> Result<Tensor<4>, DiffusionError> {
        let [batch, channels, height, width] = x_t.dims();
        if [1, channels, height, width] != self.mu.dims() {
            return Err(DiffusionError::Shape {
                what: "x_t",
                expected: format!(
                    "[B, {}] as mu",
                    self.mu.dims()[1..]
                        .iter()
                        .map(ToString::to_string)
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
                got: vec![batch, channels, height, width],
            });
        }
        Ok(self.mu.clone())
    }
}

impl Sampler for TrojDiff {
    fn timesteps(&self) -> &[usize] {
        &self.timesteps
    }

    fn settings(&self) -> SamplerSettings {
        SamplerSettings::TrojDiff {
            steps: Steps::of(&self.timesteps),
            form: self.form,
        }
    }

    fn predicted_x0(
        &self,
        prediction: &Prediction,
        step_index: usize,
        x_t: &Tensor<4>,
    ) -> Result<Tensor<4>, DiffusionError> {
        let (t, alpha_bar, _) = self.levels(step_index)?;
        if alpha_bar == 0.0 {
            return Err(DiffusionError::Argument {
                what: "alpha_bar at the first timestep",
                got: "0".into(),
                allowed: "above 0: the modified sampler does not support zero terminal SNR".into(),
            });
        }
        let (a, s) = (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt());
        let mu = self.shift(x_t)?;
        let eps = prediction
            .clone()
            .epsilon(x_t.clone(), &[t], &self.schedule)?;
        let x_0 = (x_t.clone() - self.gamma.clone() * eps * s - mu * s) / a;
        Ok(match self.form {
            TrojDiffForm::Ddpm => Clip::Range(1.0).apply(x_0),
            TrojDiffForm::Ddim { .. } => x_0,
        })
    }

    fn step(
        &self,
        prediction: Prediction,
        step_index: usize,
        x_t: Tensor<4>,
        _past: &mut Past,
        noise: &mut dyn NoiseSource,
    ) -> Result<Tensor<4>, DiffusionError> {
        let (t, alpha_bar, alpha_bar_next) = self.levels(step_index)?;
        let x_0 = self.predicted_x0(&prediction, step_index, &x_t)?;
        let (alpha, s, s_next) = (
            alpha_bar / alpha_bar_next,
            (1.0 - alpha_bar).sqrt(),
            (1.0 - alpha_bar_next).sqrt(),
        );
        let beta = 1.0 - alpha;
        let posterior = (1.0 - alpha_bar_next) / (1.0 - alpha_bar) * beta;
        let z = noise.normal(x_t.dims(), &x_t.device())?;
        check_same_shape("noise", &z, &x_t)?;
        let (gamma, mu) = (self.gamma.clone(), self.mu.clone());
        Ok(match self.form {
            TrojDiffForm::Ddim { eta } => {
                let std = eta * posterior.sqrt();
                let towards_x_t = (1.0 - alpha_bar_next - std * std).max(0.0).sqrt();
                let eps = prediction.epsilon(x_t, &[t], &self.schedule)?;
                x_0 * alpha_bar_next.sqrt() + gamma * (z * std + eps * towards_x_t) + mu * s_next
            }
            TrojDiffForm::Ddpm => {
                let h = s - alpha.sqrt() * s_next;
                let from_mu = s_next * beta - (1.0 - alpha_bar_next) * alpha.sqrt() * h;
                let mean = x_0 * (alpha_bar_next.sqrt() * beta)
                    + x_t * (alpha.sqrt() * (1.0 - alpha_bar_next))
                    + mu * from_mu;
                let std = if t == 0 {
                    0.0
                } else {
                    posterior.max(1e-20).sqrt()
                };
                mean / (1.0 - alpha_bar) + gamma * z * std
            }
        })
    }
}
