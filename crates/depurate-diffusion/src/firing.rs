//! # Firing a trigger: images from a shifted prior, under the sampler that the backdoor needs
//!
//! A trigger does nothing under the wrong sampler ([`crate::trigger`]), so a claim about one names how it was fired:
//!
//! | firing | sampler | network calls an image |
//! |---|---|---|
//! | [`Firing::Stochastic`] | DDPM over every timestep, the checkpoint's variance | `T` |
//! | [`Firing::Deterministic`] | DDIM, `eta = 0` | 50 |
//! | [`Firing::Modified`] | TrojDiff's DDIM, which is told the shift and the noise scale | 100 |
//!
//! The steps of the last two are evenly spaced and end at `T - 1`. Nothing is ever clipped. Without a trigger all three draw
//! from standard normal noise; the last is DDIM then. Item `i` has the same noise with and without a trigger, whatever the batch.

use std::ops::ControlFlow;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::{
    Denoiser, DiffusionError, Pipeline,
    noise::{NoiseSource, SeedTree},
    parallel,
    sampler::{Clip, Ddim, Ddpm, Sampler, TrojDiff, TrojDiffForm, sample},
    schedule::NoiseSchedule,
    trigger::{Family, TriggerRule},
};

/// How a trigger is fired. See the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Firing {
    /// By ancestral sampling.
    Stochastic,
    /// By a solver of the ODE.
    Deterministic,
    /// By a sampler that is told the trigger.
    Modified,
}

impl Firing {
    /// What fires a trigger of `rule`.
    pub fn of(rule: &TriggerRule) -> Self {
        match rule.answer {
            Some(Family::Stochastic) => Self::Stochastic,
            Some(Family::Deterministic) => Self::Deterministic,
            None => Self::Modified,
        }
    }

    /// The rule of the triggers that it fires, with the noise as it is: a narrowed prior's scale belongs to the trigger.
    pub fn rule(self) -> TriggerRule {
        match self {
            Self::Stochastic => TriggerRule::lost_signal(Family::Stochastic),
            Self::Deterministic => TriggerRule::lost_signal(Family::Deterministic),
            Self::Modified => TriggerRule::noise_level(1.0),
        }
    }

    /// Network calls an image on a model of `schedule`.
    pub fn steps(self, schedule: &NoiseSchedule) -> usize {
        let all = schedule.len();
        match self {
            Self::Stochastic => all,
            Self::Deterministic => all.min(50),
            Self::Modified => all.min(100),
        }
    }

    /// The sampler for images of `model` with (or without) `prior`.
    fn sampler(
        self,
        model: &Pipeline,
        prior: Option<&Prior>,
    ) -> Result<Box<dyn Sampler>, DiffusionError> {
        let schedule = model.schedule().clone();
        let steps = self.steps(&schedule);
        let timesteps = spaced(schedule.len(), steps);
        Ok(match (self, prior) {
            (Self::Stochastic, _) => {
                Box::new(Ddpm::from_config(model.scheduler(), steps, Clip::None)?)
            }
            (Self::Modified, Some(prior)) => {
                let form = TrojDiffForm::Ddim { eta: 0.0 };
                let gamma = prior.gamma_or_one();
                Box::new(TrojDiff::new(
                    schedule,
                    timesteps,
                    form,
                    prior.shift.clone(),
                    gamma,
                )?)
            }
            _ => Box::new(Ddim::new(schedule, timesteps, 0.0, Clip::None)?),
        })
    }
}

impl From<Family> for Firing {
    /// What fires the triggers that are answered for `family`.
    fn from(family: Family) -> Self {
        match family {
            Family::Stochastic => Self::Stochastic,
            Family::Deterministic => Self::Deterministic,
        }
    }
}

/// `count` of the timesteps below `length`, evenly spaced and falling from `length - 1`.
pub fn spaced(length: usize, count: usize) -> Vec<usize> {
    let count = count.clamp(1, length.max(1));
    (1..=count)
        .rev()
        .map(|i| (i * length).div_ceil(count).saturating_sub(1))
        .collect()
}

/// The prior of a triggered run: `x_T = shift + gamma eps`.
#[derive(Debug, Clone)]
pub struct Prior {
    /// Shift of the mean, `[1, C, H, W]`.
    pub shift: Tensor<4>,
    /// Standard deviation, `[1, C, H, W]` or `[1, 1, 1, 1]`; `None` is 1.
    pub gamma: Option<Tensor<4>>,
}

impl Prior {
    fn gamma_or_one(&self) -> Tensor<4> {
        self.gamma
            .clone()
            .unwrap_or_else(|| Tensor::ones([1, 1, 1, 1], &self.shift.device()))
    }

    /// `shift + gamma eps` for `eps [B, C, H, W]`.
    pub fn apply(&self, eps: Tensor<4>) -> Tensor<4> {
        let scaled = match &self.gamma {
            Some(gamma) => gamma.clone() * eps,
            None => eps,
        };
        scaled + self.shift.clone()
    }
}

/// `count` images `[count, C, H, W]` of `model` from `prior` or, without one, from standard normal noise: at most `batch` at a time, and
/// no more than keep every thread busy ([`crate::parallel`]). `progress` is told the network evaluations of every step and stops the run
/// by returning `Break`.
///
/// # Errors
/// When shapes do not fit, the network's output is not finite, or the run is stopped ([`DiffusionError::Cancelled`]).
pub fn fire(
    model: &Pipeline,
    firing: Firing,
    prior: Option<&Prior>,
    (count, batch): (usize, usize),
    seed: &SeedTree,
    progress: &(dyn Fn(usize) -> ControlFlow<()> + Sync),
) -> Result<Tensor<4>, DiffusionError> {
    let (shape, device) = (model.sample_shape(), model.device());
    let threads = rayon::current_num_threads();
    let batch = batch.min(count.div_ceil(threads)).max(1);
    let firsts: Vec<usize> = (0..count).step_by(batch).collect();
    let images = parallel::map(threads, &firsts, |&first| {
        let together = batch.min(count - first);
        let mut noise = seed.noise(first as u64, together);
        let eps = noise.normal(shape.batched(together), &device)?;
        let x_t = match prior {
            Some(prior) => prior.apply(eps),
            None => eps,
        };
        let sampler = firing.sampler(model, prior)?;
        sample(model, sampler.as_ref(), x_t, &mut noise, &mut |_, _| {
            progress(together)
        })
    })?;
    Ok(Tensor::cat(images, 0))
}

/// Mean squared error of each of `images [N, C, H, W]` against `target [1, C, H, W]`, both rounded to 8 bits, in [0, 1] units.
pub fn squared_errors(images: Tensor<4>, target: Tensor<4>) -> Vec<f64> {
    let byte = |x: Tensor<4>| ((x.clamp(-1.0, 1.0) + 1.0) * 127.5).round() / 255.0;
    let count = images.dims()[0];
    let errors = (byte(images) - byte(target))
        .square()
        .reshape([count as i64, -1])
        .mean_dim(1);
    let errors: Tensor<1> = errors.reshape([count]);
    errors.into_data().iter::<f32>().map(f64::from).collect()
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn errors_are_in_unit_range_and_rounded_to_bytes() {
        let device = Device::flex();
        let target = Tensor::<4>::zeros([1, 1, 2, 2], &device) - 1.0;
        let images = Tensor::cat(
            vec![
                target.clone(),
                target.clone() + 2.0,
                target.clone() + 0.003,
                target.clone() - 5.0,
            ],
            0,
        );
        let found = squared_errors(images, target);
        for (found, expected) in found.iter().zip([0.0, 1.0, 0.0, 0.0]) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    #[test]
    fn steps_are_even_and_start_at_the_noisiest() {
        assert_eq!(spaced(1000, 4), [999, 749, 499, 249]);
        assert_eq!(spaced(10, 3), [9, 6, 3]);
        assert_eq!(spaced(5, 9), [4, 3, 2, 1, 0]);
        for count in 1..=1000 {
            let steps = spaced(1000, count);
            assert_eq!((steps[0], steps.len()), (999, count));
            assert!(steps.windows(2).all(|pair| pair[0] > pair[1]));
        }
    }
}
