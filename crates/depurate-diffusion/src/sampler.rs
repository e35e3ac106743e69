//! Samplers: from noise `x_T` to a sample, one network call per step.
//!
//! A backdoor is bound to a family of samplers (see [`crate::trigger`]), and clipping can disarm it; so the
//! sampler, its steps and its clipping are always chosen by the caller and recorded in [`SamplerSettings`].

pub mod ddim;
pub mod ddpm;
pub mod trojdiff;

use std::ops::ControlFlow;

use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

pub use ddim::Ddim;
pub use ddpm::Ddpm;
pub use trojdiff::{TrojDiff, TrojDiffForm};

use crate::{
    Denoiser, DiffusionError, NoTap, Prediction, noise::NoiseSource, schedule::VarianceType,
};

/// One way from noise to a sample. Steps are counted from 0, the noisiest.
pub trait Sampler {
    /// The training timesteps visited, from noisy (`t` near `T - 1`) to clean.
    fn timesteps(&self) -> &[usize];

    /// What this sampler is, for a report.
    fn settings(&self) -> SamplerSettings;

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

    /// One step: the sample `[B, C, H, W]` at the next, cleaner timestep.
    ///
    /// # Errors
    /// When shapes do not fit, there is no such step, or the noise source gives out.
    fn step(
        &self,
        prediction: Prediction,
        step_index: usize,
        x_t: Tensor<4>,
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
    /// [`TrojDiff`]; the trigger itself is not recorded.
    TrojDiff {
        /// Timesteps visited.
        steps: Steps,
        /// DDPM or DDIM.
        form: TrojDiffForm,
    },
}

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Steps done.
    pub done: usize,
    /// Steps in all.
    pub total: usize,
    /// Training timestep of the last step done.
    pub t: usize,
}

/// Runs `sampler` from `x_t: [B, C, H, W]` (at the first of its timesteps) to a sample `[B, C, H, W]`.
///
/// `after_step` is called after every step with the new `x_t`; returning `Break` stops the run.
///
/// # Errors
/// [`DiffusionError::Cancelled`] after `Break`, [`DiffusionError::NotFinite`] when the network's output is
/// not finite, and whatever the network or the sampler refuses.
pub fn sample(
    denoiser: &dyn Denoiser,
    sampler: &dyn Sampler,
    x_t: Tensor<4>,
    noise: &mut dyn NoiseSource,
    after_step: &mut dyn FnMut(Progress, &Tensor<4>) -> ControlFlow<()>,
) -> Result<Tensor<4>, DiffusionError> {
    let total = sampler.timesteps().len();
    let mut x_t = x_t;
    for (index, &t) in sampler.timesteps().iter().enumerate() {
        let prediction = denoiser.predict(x_t.clone(), &[t], &mut NoTap)?;
        check_finite(&prediction, t)?;
        x_t = sampler.step(prediction, index, x_t, noise)?;
        if after_step(
            Progress {
                done: index + 1,
                total,
                t,
            },
            &x_t,
        )
        .is_break()
        {
            return Err(DiffusionError::Cancelled);
        }
    }
    Ok(x_t)
}

/// The callback of [`sample`] that never stops a run.
pub fn never_stop(_progress: Progress, _x_t: &Tensor<4>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

pub(crate) fn check_finite(prediction: &Prediction, t: usize) -> Result<(), DiffusionError> {
    let largest: TensorData = prediction.value.clone().detach().abs().sum().into_data();
    // a sum keeps any NaN or infinity
    if largest.iter::<f32>().all(f32::is_finite) {
        Ok(())
    } else {
        Err(DiffusionError::NotFinite { t })
    }
}

/// The record of a step, or the error for a step that does not exist.
pub(crate) fn step_at<T>(steps: &[T], index: usize) -> Result<&T, DiffusionError> {
    steps.get(index).ok_or_else(|| DiffusionError::Argument {
        what: "sampler step",
        got: index.to_string(),
        allowed: format!("below {}", steps.len()),
    })
}
