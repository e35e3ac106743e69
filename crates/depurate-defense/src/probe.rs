//! Calls to the suspect, counted, stoppable, and with plain numbers at the edges.

use std::cell::Cell;

use burn::tensor::{Device, Tensor, TensorData};
use depurate_diffusion::{
    Denoiser, SampleShape,
    noise::{NoiseSource, SeedTree},
    schedule::NoiseSchedule,
};

use crate::{Cx, DefenseError};

/// A suspect under examination.
pub(crate) struct Probe<'a> {
    pub(crate) model: &'a dyn Denoiser,
    cx: &'a Cx<'a>,
    evaluations: Cell<u64>,
}

impl<'a> Probe<'a> {
    pub(crate) fn new(model: &'a dyn Denoiser, cx: &'a Cx<'a>) -> Self {
        Self {
            model,
            cx,
            evaluations: Cell::new(0),
        }
    }

    pub(crate) fn schedule(&self) -> &NoiseSchedule {
        self.model.schedule()
    }

    pub(crate) fn shape(&self) -> SampleShape {
        self.model.sample_shape()
    }

    /// Network evaluations of one image so far.
    pub(crate) fn evaluations(&self) -> u64 {
        self.evaluations.get()
    }

    /// Counts a differentiated evaluation of `images` for three: its forward pass counts itself.
    pub(crate) fn also_backwards(&self, images: usize) {
        self.evaluations
            .set(self.evaluations.get() + 2 * images as u64);
    }

    /// `eps_theta(x_t, t)`, `[B, C, H, W]`; one progress step.
    pub(crate) fn epsilon(&self, x_t: Tensor<4>, t: usize) -> Result<Tensor<4>, DefenseError> {
        self.epsilon_at(x_t, &[t])
    }

    /// As [`Self::epsilon`] with a timestep a sample.
    pub(crate) fn epsilon_at(
        &self,
        x_t: Tensor<4>,
        t: &[usize],
    ) -> Result<Tensor<4>, DefenseError> {
        self.cx.step()?;
        self.evaluations
            .set(self.evaluations.get() + x_t.dims()[0] as u64);
        Ok(self.model.epsilon(x_t, t)?)
    }

    /// Standard normal noise `[count, C, H, W]` of the seed `seed`.
    pub(crate) fn noise(&self, seed: &SeedTree, count: usize) -> Result<Tensor<4>, DefenseError> {
        Ok(seed
            .noise(0, count)
            .normal(self.shape().batched(count), &self.model.device())?)
    }

    /// `count` noises in antithetic pairs: the second half is the first half's negative.
    pub(crate) fn antithetic_noise(
        &self,
        seed: &SeedTree,
        pairs: usize,
    ) -> Result<Tensor<4>, DefenseError> {
        let half = self.noise(seed, pairs)?;
        Ok(Tensor::cat(vec![half.clone(), -half], 0))
    }

    /// One image's values as a tensor `[1, C, H, W]`.
    pub(crate) fn image(&self, values: &[f32]) -> Tensor<4> {
        let device: Device = self.model.device();
        Tensor::from_data(
            TensorData::new(values.to_vec(), self.shape().batched(1)),
            &device,
        )
    }
}

/// A tensor's values, row-major.
pub(crate) fn values(tensor: Tensor<4>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// Euclidean norm.
pub(crate) fn norm(image: &[f32]) -> f64 {
    image
        .iter()
        .map(|&v| f64::from(v).powi(2))
        .sum::<f64>()
        .sqrt()
}

/// Mean over the batch, pixel by pixel, of `batch` holding images of `len` values.
pub(crate) fn batch_mean(batch: &[f32], len: usize) -> Vec<f64> {
    let count = (batch.len() / len) as f64;
    (0..len)
        .map(|i| {
            batch
                .iter()
                .skip(i)
                .step_by(len)
                .map(|&v| f64::from(v))
                .sum::<f64>()
                / count
        })
        .collect()
}
