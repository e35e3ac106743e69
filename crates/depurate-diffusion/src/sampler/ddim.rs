//! # DDIM
//!
//! ## Paper
//! Song, Meng and Ermon, ICLR 2021, arXiv:2010.02502, eq. (12) and (16). `eta = 0` is deterministic, a solver of
//! the probability-flow ODE; `eta = 1` has the variance of DDPM.
//!
//! ## Notation
//! | code | paper | shape |
//! |---|---|---|
//! | `alpha_bar_next` | α_{τ_{i−1}} (the paper's α is the cumulative product) | the next, cleaner step's |
//! | `std` | σ_{τ_i}(η) | |
//! | `x_0`, `eps` | predicted x_0, ε_θ | `[B, C, H, W]` |
//!
//! ## Deviations
//! From a checkpoint's options the next level is that of `t - T / n` (integer division), as in diffusers: with
//! `linspace` or `trailing` spacing this is not always the next timestep visited. [`Ddim::new`] takes the next visited.
//! With `eta > 0` noise is drawn at every step, also where its factor is 0.

use burn::tensor::Tensor;

use super::{Clip, Past, Sampler, SamplerSettings, Steps, ddpm::check_falling, step_at};
use crate::{
    DiffusionError, Parameterisation, Prediction,
    noise::NoiseSource,
    parameterisation::check_same_shape,
    schedule::{NoiseSchedule, SchedulerConfig},
};

/// Deterministic or partly stochastic implicit sampling.
#[derive(Debug, Clone)]
pub struct Ddim {
    schedule: NoiseSchedule,
    timesteps: Vec<usize>,
    steps: Vec<Step>,
    eta: f64,
    clip: Clip,
    use_clipped_model_output: bool,
}

#[derive(Debug, Clone, Copy)]
struct Step {
    t: usize,
    alpha_bar_next: f64,
    std: f64,
}

impl Ddim {
    /// The sampler of a checkpoint with `n_steps` steps and `eta` in [0, 1]. Clipping is the caller's choice;
    /// `config.clip()` is what the checkpoint asks for.
    ///
    /// # Errors
    /// When the number of steps, `eta` or the options are out of range.
    pub fn from_config(
        config: &SchedulerConfig,
        n_steps: usize,
        eta: f64,
        clip: Clip,
    ) -> Result<Self, DiffusionError> {
        let (schedule, timesteps) = (config.schedule()?, config.timesteps(n_steps)?);
        let last = if config.set_alpha_to_one {
            1.0
        } else {
            schedule.alpha_bar(0)
        };
        let stride = config.num_train_timesteps / n_steps;
        let next = timesteps
            .iter()
            .map(|t| {
                t.checked_sub(stride)
                    .map_or(last, |t| schedule.alpha_bar(t))
            })
            .collect();
        Self::over(schedule, timesteps, next, eta, clip)
    }

    /// A sampler over given `timesteps`, strictly falling; the last step goes to the clean sample.
    ///
    /// # Errors
    /// When there is no timestep, one is out of range, they do not fall strictly, or `eta` is not in [0, 1].
    pub fn new(
        schedule: NoiseSchedule,
        timesteps: Vec<usize>,
        eta: f64,
        clip: Clip,
    ) -> Result<Self, DiffusionError> {
        schedule.check_timesteps(&timesteps)?;
        let next = timesteps
            .iter()
            .skip(1)
            .map(|&t| schedule.alpha_bar(t))
            .chain([1.0])
            .collect();
        Self::over(schedule, timesteps, next, eta, clip)
    }

    /// Recomputes the noise from the clipped clean sample (off by default, as in diffusers).
    pub fn with_clipped_model_output(self) -> Self {
        Self {
            use_clipped_model_output: true,
            ..self
        }
    }

    fn over(
        schedule: NoiseSchedule,
        timesteps: Vec<usize>,
        next: Vec<f64>,
        eta: f64,
        clip: Clip,
    ) -> Result<Self, DiffusionError> {
        check_falling(&schedule, &timesteps)?;
        if !(0.0..=1.0).contains(&eta) {
            return Err(DiffusionError::Argument {
                what: "eta",
                got: eta.to_string(),
                allowed: "0 ..= 1".into(),
            });
        }
        let steps = timesteps
            .iter()
            .zip(next)
            .map(|(&t, alpha_bar_next)| {
                let alpha_bar = schedule.alpha_bar(t);
                let variance =
                    (1.0 - alpha_bar_next) / (1.0 - alpha_bar) * (1.0 - alpha_bar / alpha_bar_next);
                Step {
                    t,
                    alpha_bar_next,
                    std: eta * variance.max(0.0).sqrt(),
                } // eq. (16)
            })
            .collect();
        Ok(Self {
            schedule,
            timesteps,
            steps,
            eta,
            clip,
            use_clipped_model_output: false,
        })
    }
}

impl Sampler for Ddim {
    fn timesteps(&self) -> &[usize] {
        &self.timesteps
    }

    fn settings(&self) -> SamplerSettings {
        SamplerSettings::Ddim {
            steps: Steps::of(&self.timesteps),
            eta: self.eta,
            clip: self.clip,
            use_clipped_model_output: self.use_clipped_model_output,
        }
    }

    fn predicted_x0(
        &self,
        prediction: &Prediction,
        step_index: usize,
        x_t: &Tensor<4>,
    ) -> Result<Tensor<4>, DiffusionError> {
        let step = step_at(&self.steps, step_index)?;
        Ok(self.clip.apply(
            prediction
                .clone()
                .x0(x_t.clone(), &[step.t], &self.schedule)?,
        ))
    }

    fn step(
        &self,
        prediction: Prediction,
        step_index: usize,
        x_t: Tensor<4>,
        _past: &mut Past,
        noise: &mut dyn NoiseSource,
    ) -> Result<Tensor<4>, DiffusionError> {
        let step = step_at(&self.steps, step_index)?;
        let (shape, device) = (x_t.dims(), x_t.device());
        let x_0 = self.predicted_x0(&prediction, step_index, &x_t)?;
        let seen = if self.use_clipped_model_output {
            Prediction {
                kind: Parameterisation::Sample,
                value: x_0.clone(),
            }
        } else {
            prediction
        };
        let eps = seen.epsilon(x_t, &[step.t], &self.schedule)?;
        let towards_x_t = (1.0 - step.alpha_bar_next - step.std * step.std)
            .max(0.0)
            .sqrt();
        let mean = x_0 * step.alpha_bar_next.sqrt() + eps * towards_x_t; // eq. (12)
        if self.eta == 0.0 {
            return Ok(mean);
        }
        let z = noise.normal(shape, &device)?;
        check_same_shape("noise", &z, &mean)?;
        Ok(mean + z * step.std)
    }
}
