//! # Euler: one straight step of the probability-flow ODE, deterministic or ancestral
//!
//! ## Paper
//! Karras et al., NeurIPS 2022, arXiv:2206.00364, algorithm 1 (`dx/dsigma = (x - x_0) / sigma`, eq. 3) and eq. (5) for the
//! levels. The ancestral form goes down to `sigma_down` and adds noise of `sigma_up`, as k-diffusion does.
//!
//! ## Notation
//! | code | paper | shape |
//! |---|---|---|
//! | `x_t` | x | `[B, C, H, W]`, `x_0 + sigma eps`: *not* in the scale of the network |
//! | `sigma`, `sigma_next` | t_i, t_{i+1} | falling, the last 0 |
//! | `x_0` | D(x; sigma) | `[B, C, H, W]` |
//!
//! The network takes `x_t / sqrt(sigma^2 + 1)`, see [`Sampler::scale_input`], and may be asked for times between training
//! timesteps, see [`Sampler::time`]. A run starts from noise times [`Sampler::initial_scale`].
//!
//! ## Deviations
//! As in diffusers, levels between timesteps are linear in `sigma`, and with `leading` spacing the start is multiplied by
//! `sqrt(sigma^2 + 1)`. No churn: it is 0 in diffusers unless a caller asks for it.

use burn::tensor::Tensor;

use super::{
    Past, Sampler, SamplerSettings, Steps,
    sigmas::{TrainingSigmas, karras},
    step_at,
};
use crate::{
    DiffusionError, Parameterisation, Prediction,
    noise::NoiseSource,
    parameterisation::check_same_shape,
    schedule::{FinalSigma, SchedulerConfig, TimestepSpacing, linspace},
};

/// Euler's method over noise levels. See the [module](self).
#[derive(Debug, Clone)]
pub struct Euler {
    nearest: Vec<usize>,
    steps: Vec<Step>,
    initial_scale: f64,
    ancestral: bool,
    karras: bool,
}

#[derive(Debug, Clone, Copy)]
struct Step {
    time: f64,
    sigma: f64,
    sigma_next: f64,
}

impl Step {
    /// What the ancestral form goes down to, and the noise that it adds.
    fn down_and_up(self) -> (f64, f64) {
        let (from, to) = (self.sigma.powi(2), self.sigma_next.powi(2));
        let up = (to * (from - to) / from).max(0.0);
        ((to - up).max(0.0).sqrt(), up.sqrt())
    }
}

impl Euler {
    /// The deterministic sampler with a checkpoint's options and `n_steps` steps.
    ///
    /// # Errors
    /// When the number of steps or the options are out of range.
    pub fn from_config(config: &SchedulerConfig, n_steps: usize) -> Result<Self, DiffusionError> {
        Self::new(config, n_steps, false)
    }

    /// The ancestral form, which draws noise at every step.
    ///
    /// # Errors
    /// As [`Euler::from_config`].
    pub fn ancestral(config: &SchedulerConfig, n_steps: usize) -> Result<Self, DiffusionError> {
        Self::new(config, n_steps, true)
    }

    fn new(
        config: &SchedulerConfig,
        n_steps: usize,
        ancestral: bool,
    ) -> Result<Self, DiffusionError> {
        let training = TrainingSigmas::new(&config.schedule()?);
        let mut times: Vec<f64> = match config.timestep_spacing {
            // not rounded, unlike in other samplers
            TimestepSpacing::Linspace => {
                config.check_steps(n_steps)?;
                let last = (config.num_train_timesteps - 1) as f64;
                linspace(0.0, last, n_steps).into_iter().rev().collect()
            }
            _ => config
                .timesteps(n_steps)?
                .into_iter()
                .map(|t| t as f64)
                .collect(),
        };
        let mut sigmas: Vec<f64> = times.iter().map(|time| training.at(*time)).collect();
        let solver = &config.solver;
        if solver.karras_sigmas {
            let (first, last) = (sigmas[0], sigmas[n_steps - 1]);
            let largest = solver.sigma_max.unwrap_or(first);
            let least = solver.sigma_min.unwrap_or(last);
            sigmas = karras(largest, least, n_steps);
            times = sigmas
                .iter()
                .map(|sigma| training.time_of(*sigma))
                .collect();
        }
        let last = match solver.final_sigma {
            FinalSigma::Zero => 0.0,
            FinalSigma::Least => training.least(),
        };
        let largest = sigmas.iter().copied().fold(0.0, f64::max);
        let next = sigmas.iter().skip(1).copied().chain([last]);
        let steps: Vec<Step> = times
            .iter()
            .zip(&sigmas)
            .zip(next)
            .map(|((&time, &sigma), sigma_next)| Step {
                time,
                sigma,
                sigma_next,
            })
            .collect();
        Ok(Self {
            nearest: times.iter().map(|time| time.round() as usize).collect(),
            steps,
            initial_scale: match config.timestep_spacing {
                TimestepSpacing::Leading => largest.hypot(1.0),
                _ => largest,
            },
            ancestral,
            karras: solver.karras_sigmas,
        })
    }

    fn step_of(&self, index: usize) -> Result<Step, DiffusionError> {
        step_at(&self.steps, index).copied()
    }
}

impl Sampler for Euler {
    fn timesteps(&self) -> &[usize] {
        &self.nearest
    }

    fn time(&self, step_index: usize) -> Result<f64, DiffusionError> {
        Ok(self.step_of(step_index)?.time)
    }

    fn initial_scale(&self) -> f64 {
        self.initial_scale
    }

    fn scale_input(&self, step_index: usize, x_t: Tensor<4>) -> Result<Tensor<4>, DiffusionError> {
        Ok(x_t / self.step_of(step_index)?.sigma.hypot(1.0))
    }

    fn settings(&self) -> SamplerSettings {
        SamplerSettings::Euler {
            steps: Steps::of(&self.nearest),
            ancestral: self.ancestral,
            karras: self.karras,
        }
    }

    fn predicted_x0(
        &self,
        prediction: &Prediction,
        step_index: usize,
        x_t: &Tensor<4>,
    ) -> Result<Tensor<4>, DiffusionError> {
        let Step { sigma, .. } = self.step_of(step_index)?;
        let value = prediction.value.clone();
        check_same_shape("prediction", &value, x_t)?;
        let scale = sigma.hypot(1.0);
        Ok(match prediction.kind {
            Parameterisation::Epsilon => x_t.clone() - value * sigma,
            Parameterisation::Sample => value,
            Parameterisation::Velocity => x_t.clone() / scale.powi(2) - value * (sigma / scale),
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
        let step = self.step_of(step_index)?;
        let x_0 = self.predicted_x0(&prediction, step_index, &x_t)?;
        let slope = (x_t.clone() - x_0) / step.sigma; // eq. (3)
        if !self.ancestral {
            return Ok(x_t + slope * (step.sigma_next - step.sigma));
        }
        let (down, up) = step.down_and_up();
        let z = noise.normal(x_t.dims(), &x_t.device())?;
        check_same_shape("noise", &z, &x_t)?;
        Ok(x_t + slope * (down - step.sigma) + z * up)
    }
}
