//! # DDPM: ancestral sampling
//!
//! ## Paper
//! Ho et al., NeurIPS 2020, arXiv:2006.11239, eq. (6), (7) and algorithm 2; strided as in Nichol and Dhariwal,
//! arXiv:2102.09672, sec. 4.
//!
//! ## Notation
//! | code | paper | shape |
//! |---|---|---|
//! | `alpha_bar`, `alpha_bar_next` | ᾱ_t, ᾱ_{t−1} | this step's and the next, cleaner step's |
//! | `alpha`, `beta` | α_t, β_t of the jump | `alpha = alpha_bar / alpha_bar_next` |
//! | `from_x0`, `from_x_t` | the two weights of μ̃_t, eq. (7) | |
//! | `std` | √β̃_t or √β_t | 0 at t = 0 |
//!
//! ## Deviations
//! None known: noise is drawn at every step but `t = 0`, as in diffusers. `fixed_large_log`, `learned` and
//! `learned_range` are not offered (the first gives NaN in diffusers).

use burn::tensor::Tensor;

use super::{Clip, Past, Sampler, SamplerSettings, Steps, step_at};
use crate::{
    DiffusionError, Prediction,
    noise::NoiseSource,
    parameterisation::check_same_shape,
    schedule::{NoiseSchedule, SchedulerConfig, VarianceType},
};

/// Ancestral sampling.
#[derive(Debug, Clone)]
pub struct Ddpm {
    schedule: NoiseSchedule,
    timesteps: Vec<usize>,
    steps: Vec<Step>,
    variance: VarianceType,
    clip: Clip,
}

#[derive(Debug, Clone, Copy)]
struct Step {
    t: usize,
    from_x0: f64,
    from_x_t: f64,
    std: f64,
}

impl Ddpm {
    /// The sampler of a checkpoint with `n_steps` steps. Clipping is the caller's choice; `config.clip()` is what the
    /// checkpoint asks for.
    ///
    /// # Errors
    /// When the number of steps or the options are out of range.
    pub fn from_config(
        config: &SchedulerConfig,
        n_steps: usize,
        clip: Clip,
    ) -> Result<Self, DiffusionError> {
        Self::new(
            config.schedule()?,
            config.timesteps(n_steps)?,
            config.variance_type,
            clip,
        )
    }

    /// A sampler over given `timesteps`, strictly falling.
    ///
    /// # Errors
    /// When there is no timestep, one is out of range or they do not fall strictly.
    pub fn new(
        schedule: NoiseSchedule,
        timesteps: Vec<usize>,
        variance: VarianceType,
        clip: Clip,
    ) -> Result<Self, DiffusionError> {
        check_falling(&schedule, &timesteps)?;
        let next = timesteps
            .iter()
            .skip(1)
            .map(|&t| schedule.alpha_bar(t))
            .chain([1.0]);
        let steps = timesteps
            .iter()
            .zip(next)
            .map(|(&t, alpha_bar_next)| {
                let alpha_bar = schedule.alpha_bar(t);
                let alpha = alpha_bar / alpha_bar_next;
                let beta = 1.0 - alpha;
                let variance = match variance {
                    VarianceType::FixedSmall | VarianceType::FixedSmallLog => {
                        ((1.0 - alpha_bar_next) / (1.0 - alpha_bar) * beta).max(1e-20) // eq. (7), right
                    }
                    VarianceType::FixedLarge => beta,
                };
                Step {
                    t,
                    from_x0: alpha_bar_next.sqrt() * beta / (1.0 - alpha_bar),
                    from_x_t: alpha.sqrt() * (1.0 - alpha_bar_next) / (1.0 - alpha_bar),
                    std: variance.sqrt(),
                }
            })
            .collect();
        Ok(Self {
            schedule,
            timesteps,
            steps,
            variance,
            clip,
        })
    }
}

impl Sampler for Ddpm {
    fn timesteps(&self) -> &[usize] {
        &self.timesteps
    }

    fn settings(&self) -> SamplerSettings {
        SamplerSettings::Ddpm {
            steps: Steps::of(&self.timesteps),
            variance: self.variance,
            clip: self.clip,
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
        let x_0 = self.predicted_x0(&prediction, step_index, &x_t)?;
        let (shape, device) = (x_t.dims(), x_t.device());
        let mean = x_0 * step.from_x0 + x_t * step.from_x_t; // eq. (7), left
        if step.t == 0 {
            return Ok(mean);
        }
        let z = noise.normal(shape, &device)?;
        check_same_shape("noise", &z, &mean)?;
        Ok(mean + z * step.std) // eq. (6)
    }
}

/// Refuses lists of timesteps that a sampler cannot walk.
pub(super) fn check_falling(
    schedule: &NoiseSchedule,
    timesteps: &[usize],
) -> Result<(), DiffusionError> {
    schedule.check_timesteps(timesteps)?;
    if timesteps.is_empty() || timesteps.windows(2).any(|pair| pair[0] <= pair[1]) {
        return Err(DiffusionError::Argument {
            what: "timesteps of a sampler",
            got: format!("{} values", timesteps.len()),
            allowed: "one or more, strictly falling".into(),
        });
    }
    Ok(())
}
