//! A run, step by step.

use std::ops::ControlFlow;

use burn::tensor::{Tensor, TensorData};

use super::Sampler;
use crate::{Denoiser, DiffusionError, NoTap, Prediction, Tap, noise::NoiseSource};

/// What a multistep sampler keeps of a run's earlier steps. Each run has its own, empty at the start.
#[derive(Debug, Clone, Default)]
pub struct Past {
    /// Earlier answers, in the sampler's own form, the latest last.
    pub(crate) outputs: Vec<Tensor<4>>,
    /// The sample that several calls start from.
    pub(crate) start: Option<Tensor<4>>,
    /// Answers summed up so far.
    pub(crate) sum: Option<Tensor<4>>,
}

impl Past {
    /// Keeps an answer, and at most `most` of them.
    pub(crate) fn keep(&mut self, output: Tensor<4>, most: usize) {
        self.outputs.push(output);
        let surplus = self.outputs.len().saturating_sub(most);
        self.outputs.drain(..surplus);
    }

    /// The error of a step that needs others before it.
    pub(crate) fn missing(step_index: usize) -> DiffusionError {
        DiffusionError::Argument {
            what: "sampler step",
            got: format!("{step_index}, without those before it"),
            allowed: "steps in order, with the past of one run".into(),
        }
    }
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

/// A run that its caller advances.
///
/// Dropping it early costs nothing: only the calls that were made are paid for.
pub struct Chain<'a> {
    denoiser: &'a dyn Denoiser,
    sampler: &'a dyn Sampler,
    x_t: Tensor<4>,
    past: Past,
    done: usize,
}

impl<'a> Chain<'a> {
    /// A run from standard normal noise `[B, C, H, W]` (plus a trigger, if there is one), which is scaled as the sampler says.
    pub fn new(denoiser: &'a dyn Denoiser, sampler: &'a dyn Sampler, noise: Tensor<4>) -> Self {
        Self {
            denoiser,
            sampler,
            x_t: scaled(sampler, noise),
            past: Past::default(),
            done: 0,
        }
    }

    /// Steps left.
    pub fn remaining(&self) -> usize {
        self.sampler.timesteps().len().saturating_sub(self.done)
    }

    /// The sample `[B, C, H, W]` so far, in the sampler's scale.
    pub fn x_t(&self) -> &Tensor<4> {
        &self.x_t
    }

    /// Makes one step: one network call, which `tap` observes.
    ///
    /// # Errors
    /// When no step is left, the network's output is not finite, or network or sampler refuse.
    pub fn advance(
        &mut self,
        noise: &mut dyn NoiseSource,
        tap: &mut dyn Tap,
    ) -> Result<Progress, DiffusionError> {
        let t = *super::step_at(self.sampler.timesteps(), self.done)?;
        let x_t = self.x_t.clone();
        let (denoiser, sampler, past) = (self.denoiser, self.sampler, &mut self.past);
        self.x_t = advance(denoiser, sampler, self.done, x_t, past, noise, tap)?;
        self.done += 1;
        Ok(Progress {
            done: self.done,
            total: self.sampler.timesteps().len(),
            t,
        })
    }
}

/// Runs `sampler` from standard normal noise `x_t: [B, C, H, W]` (plus a trigger, if there is one) to a sample `[B, C, H, W]`.
///
/// `after_step` is called after every step with the new `x_t`, in the sampler's scale; returning `Break` stops the run.
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
    let mut chain = Chain::new(denoiser, sampler, x_t);
    while chain.remaining() > 0 {
        let progress = chain.advance(noise, &mut NoTap)?;
        if after_step(progress, &chain.x_t).is_break() {
            return Err(DiffusionError::Cancelled);
        }
    }
    Ok(chain.x_t)
}

/// The callback of [`sample`] that never stops a run.
pub fn never_stop(_progress: Progress, _x_t: &Tensor<4>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Noise in the scale that the sampler starts from.
pub(crate) fn scaled(sampler: &dyn Sampler, noise: Tensor<4>) -> Tensor<4> {
    let scale = sampler.initial_scale();
    if scale == 1.0 { noise } else { noise * scale }
}

/// One step of a run: one network call, which `tap` observes.
pub(crate) fn advance(
    denoiser: &dyn Denoiser,
    sampler: &dyn Sampler,
    index: usize,
    x_t: Tensor<4>,
    past: &mut Past,
    noise: &mut dyn NoiseSource,
    tap: &mut dyn Tap,
) -> Result<Tensor<4>, DiffusionError> {
    let time = sampler.time(index)?;
    let input = sampler.scale_input(index, x_t.clone())?;
    let prediction = denoiser.predict_at(input, time, tap)?;
    check_finite(&prediction, time.round() as usize)?;
    sampler.step(prediction, index, x_t, past, noise)
}

fn check_finite(prediction: &Prediction, t: usize) -> Result<(), DiffusionError> {
    let largest: TensorData = prediction.value.clone().detach().abs().sum().into_data();
    // a sum keeps any NaN or infinity
    if largest.iter::<f32>().all(f32::is_finite) {
        Ok(())
    } else {
        Err(DiffusionError::NotFinite { t })
    }
}
