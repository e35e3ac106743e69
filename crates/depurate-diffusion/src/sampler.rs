//! Samplers: from noise `x_T` to a sample, one network call per step.
//!
//! [`from_config`] gives the sampler that a checkpoint names. [`sample`] makes a whole run; a [`Chain`] makes it step by step, for
//! callers who look at the network with a [`Tap`] or stop early.
//!
//! A backdoor is bound to a family of samplers (see [`crate::trigger`]), and clipping can disarm it; so the
//! sampler, its steps and its clipping are always chosen by the caller and recorded in [`SamplerSettings`].

mod chain;
pub mod ddim;
pub mod ddpm;
pub mod dpm_solver;
pub mod euler;
pub mod pndm;
mod sigmas;
pub mod trojdiff;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

pub use chain::{Chain, Past, Progress, never_stop, sample};
pub(crate) use chain::{advance, scaled};
pub use ddim::Ddim;
pub use ddpm::Ddpm;
pub use dpm_solver::DpmSolver;
pub use euler::Euler;
pub use pndm::Pndm;
pub use trojdiff::{TrojDiff, TrojDiffForm};

use crate::{
    DiffusionError, Prediction,
    noise::NoiseSource,
    schedule::{SchedulerClass, SchedulerConfig, VarianceType},
};

/// One way from noise to a sample. Steps are counted from 0, the noisiest.
pub trait Sampler {
    /// The training timesteps visited, from noisy (`t` near `T - 1`) to clean: one a step, which is one a network call. Where
    /// [`Sampler::time`] lies between two, the nearer one.
    fn timesteps(&self) -> &[usize];

    /// What this sampler is, for a report.
    fn settings(&self) -> SamplerSettings;

    /// The time that the network is told at a step, in training timesteps.
    ///
    /// # Errors
    /// When there is no such step.
    fn time(&self, step_index: usize) -> Result<f64, DiffusionError> {
        step_at(self.timesteps(), step_index).map(|t| *t as f64)
    }

    /// What standard normal noise is multiplied by to start a run.
    fn initial_scale(&self) -> f64 {
        1.0
    }

    /// The network's input `[B, C, H, W]` for `x_t: [B, C, H, W]` in the sampler's own scale.
    ///
    /// # Errors
    /// When there is no such step.
    fn scale_input(&self, _step_index: usize, x_t: Tensor<4>) -> Result<Tensor<4>, DiffusionError> {
        Ok(x_t)
    }

    /// Whether a step uses answers from steps before it.
    fn is_multistep(&self) -> bool {
        false
    }

    /// The clean sample `[B, C, H, W]` that step `step_index` works with: predicted, then clipped.
    ///
    /// # Errors
    /// When shapes do not fit or there is no such step.
    fn predicted_x0(
        &self,
        prediction: &Prediction,
        step_index: usize,
        x_t: &Tensor<4>,
    ) -> Result<Tensor<4>, DiffusionError>;

    /// One step: the sample `[B, C, H, W]` at the next, cleaner timestep. `past` is that of the run, and the steps of a run
    /// are made in order.
    ///
    /// # Errors
    /// When shapes do not fit, there is no such step, a step before it is missing, or the noise source gives out.
    fn step(
        &self,
        prediction: Prediction,
        step_index: usize,
        x_t: Tensor<4>,
        past: &mut Past,
        noise: &mut dyn NoiseSource,
    ) -> Result<Tensor<4>, DiffusionError>;
}

/// What is done to the predicted clean sample at every step.
///
/// Clipping is also a defence: it disarms triggers whose chain leaves the data range. Off unless asked for.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clip {
    /// Nothing.
    #[default]
    None,
    /// Cut to `[-range, range]`.
    Range(f32),
    /// Dynamic thresholding (Imagen, arXiv:2205.11487, sec. 2.3): cut at a quantile of the sample's own
    /// absolute values, between 1 and `max`, and divide by it. Gradients treat the cut as a constant.
    Threshold {
        /// The quantile, in (0, 1].
        ratio: f32,
        /// Upper bound of the cut, at least 1.
        max: f32,
    },
}

impl Clip {
    /// Applies the clipping to `x_0: [B, C, H, W]`.
    pub fn apply(self, x_0: Tensor<4>) -> Tensor<4> {
        match self {
            Self::None => x_0,
            Self::Range(range) => x_0.clamp(-range, range),
            Self::Threshold { ratio, max } => {
                let [batch, ..] = x_0.dims();
                let sorted: Tensor<2> = x_0
                    .clone()
                    .detach()
                    .abs()
                    .reshape([batch as i64, -1])
                    .sort(1);
                let n = sorted.dims()[1];
                let position = f64::from(ratio) * (n - 1) as f64;
                let (below, share) = (position.floor() as usize, position.fract() as f32);
                let above = (below + 1).min(n - 1);
                let quantile = sorted.clone().narrow(1, below, 1) * (1.0 - share)
                    + sorted.narrow(1, above, 1) * share;
                let cut: Tensor<4> = quantile.clamp(1.0, max.max(1.0)).reshape([batch, 1, 1, 1]);
                let cut = cut.expand(x_0.dims());
                x_0.min_pair(cut.clone()).max_pair(-cut.clone()) / cut
            }
        }
    }
}

/// Which timesteps a run visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steps {
    /// Number of steps.
    pub count: usize,
    /// First (noisiest) training timestep.
    pub first: usize,
    /// Last (cleanest) training timestep.
    pub last: usize,
}

impl Steps {
    pub(crate) fn of(timesteps: &[usize]) -> Self {
        Self {
            count: timesteps.len(),
            first: timesteps.first().copied().unwrap_or_default(),
            last: timesteps.last().copied().unwrap_or_default(),
        }
    }
}

/// A sampler as a report states it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
#[non_exhaustive]
pub enum SamplerSettings {
    /// [`Ddpm`].
    Ddpm {
        /// Timesteps visited.
        steps: Steps,
        /// Variance of a step.
        variance: VarianceType,
        /// Clipping of the predicted clean sample.
        clip: Clip,
    },
    /// [`Ddim`].
    Ddim {
        /// Timesteps visited.
        steps: Steps,
        /// 0 is deterministic, 1 has the variance of DDPM.
        eta: f64,
        /// Clipping of the predicted clean sample.
        clip: Clip,
        /// Whether the noise is recomputed from the clipped sample.
        use_clipped_model_output: bool,
    },
    /// [`Pndm`].
    Pndm {
        /// Steps; with the timesteps visited.
        steps: Steps,
        /// Whether it starts with Runge-Kutta steps.
        runge_kutta: bool,
    },
    /// [`Euler`].
    Euler {
        /// Timesteps visited.
        steps: Steps,
        /// Whether noise is added at every step.
        ancestral: bool,
        /// Whether levels are spaced as Karras et al. do.
        karras: bool,
    },
    /// [`DpmSolver`].
    DpmSolver {
        /// Timesteps visited.
        steps: Steps,
        /// Its order.
        order: usize,
        /// Whether the SDE is solved.
        stochastic: bool,
        /// Whether levels are spaced as Karras et al. do.
        karras: bool,
    },
    /// [`TrojDiff`]; the trigger itself is not recorded.
    TrojDiff {
        /// Timesteps visited.
        steps: Steps,
        /// DDPM or DDIM.
        form: TrojDiffForm,
    },
}

/// The sampler that a checkpoint names, with its own options and `n_steps` steps (PNDM makes more calls than steps). DDIM is
/// deterministic.
///
/// # Errors
/// When the number of steps or the options are out of range.
pub fn from_config(
    config: &SchedulerConfig,
    n_steps: usize,
) -> Result<Box<dyn Sampler>, DiffusionError> {
    Ok(match config.class {
        SchedulerClass::Ddpm => Box::new(Ddpm::from_config(config, n_steps, config.clip())?),
        SchedulerClass::Ddim => Box::new(Ddim::from_config(config, n_steps, 0.0, config.clip())?),
        SchedulerClass::Pndm => Box::new(Pndm::from_config(config, n_steps)?),
        SchedulerClass::Euler => Box::new(Euler::from_config(config, n_steps)?),
        SchedulerClass::EulerAncestral => Box::new(Euler::ancestral(config, n_steps)?),
        SchedulerClass::DpmSolver => Box::new(DpmSolver::from_config(config, n_steps)?),
    })
}

/// The record of a step, or the error for a step that does not exist.
pub(crate) fn step_at<T>(steps: &[T], index: usize) -> Result<&T, DiffusionError> {
    steps.get(index).ok_or_else(|| DiffusionError::Argument {
        what: "sampler step",
        got: index.to_string(),
        allowed: format!("below {}", steps.len()),
    })
}
