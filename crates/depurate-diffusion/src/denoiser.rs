//! The one interface between a network and everything that samples, inverts or attacks it.

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{DiffusionError, NoTap, Tap, schedule::NoiseSchedule};

/// What a network was trained to output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parameterisation {
    /// The noise `eps`.
    Epsilon,
    /// `v = a_t eps - s_t x_0`.
    #[serde(rename = "v_prediction")]
    Velocity,
    /// The clean sample `x_0`.
    Sample,
}

/// Shape of one sample, without the batch axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleShape {
    /// Channels.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl SampleShape {
    /// Number of values in one sample, `C * H * W`.
    pub fn len(&self) -> usize {
        self.channels * self.height * self.width
    }
    /// Whether a sample holds no value at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// `[batch, C, H, W]`.
    pub fn batched(&self, batch: usize) -> [usize; 4] {
        [batch, self.channels, self.height, self.width]
    }
}

/// A network's raw output `[B, C, H, W]`, tagged with what it means.
#[derive(Debug, Clone)]
pub struct Prediction {
    /// What `value` is.
    pub kind: Parameterisation,
    /// The output, `[B, C, H, W]`.
    pub value: Tensor<4>,
}

/// A diffusion model as samplers, inverters and detectors see it.
pub trait Denoiser {
    /// The training noise schedule.
    fn schedule(&self) -> &NoiseSchedule;
    /// Shape of one sample.
    fn sample_shape(&self) -> SampleShape;
    /// Where the network's tensors live.
    fn device(&self) -> Device;
    /// The network's output for `x_t: [B, C, H, W]` at training timesteps `t` (one per sample, or one
    /// for all; `t = T - 1` is almost pure noise).
    ///
    /// # Errors
    /// When shapes do not fit or a timestep is out of range.
    fn predict(
        &self,
        x_t: Tensor<4>,
        t: &[usize],
        tap: &mut dyn Tap,
    ) -> Result<Prediction, DiffusionError>;

    /// As [`Denoiser::predict`] for all samples at one `time`, which may lie between training timesteps: some samplers ask for
    /// such times.
    ///
    /// # Errors
    /// As [`Denoiser::predict`], and when the network does not take times between timesteps.
    fn predict_at(
        &self,
        x_t: Tensor<4>,
        time: f64,
        tap: &mut dyn Tap,
    ) -> Result<Prediction, DiffusionError> {
        if time >= 0.0 && time.fract() == 0.0 {
            return self.predict(x_t, &[time as usize], tap);
        }
        Err(DiffusionError::Argument {
            what: "time",
            got: time.to_string(),
            allowed: "whole timesteps, for this denoiser; use another sampler".into(),
        })
    }

    /// The noise `eps: [B, C, H, W]` that the network sees in `x_t`, whatever its parameterisation.
    ///
    /// # Errors
    /// As [`Denoiser::predict`].
    fn epsilon(&self, x_t: Tensor<4>, t: &[usize]) -> Result<Tensor<4>, DiffusionError> {
        let prediction = self.predict(x_t.clone(), t, &mut NoTap)?;
        prediction.epsilon(x_t, t, self.schedule())
    }
}
