//! Classifier-free guidance as a denoiser.

use burn::tensor::{Device, Tensor};

use super::TextToImage;
use crate::{
    Denoiser, DiffusionError, Prediction, SampleShape, Tap, schedule::NoiseSchedule,
    time_embedding::as_times,
};

/// A pipeline's network with prompts: `eps_u + g (eps_c - eps_u)`, or `eps_c` alone. Made by [`TextToImage::guided`].
///
/// A tap sees the one call that [`Denoiser::predict`] makes. With guidance its batch is `[unconditional; conditional]`, as in
/// diffusers: [`Guided::conditional_half`] cuts a map down to the prompts.
#[derive(Debug, Clone)]
pub struct Guided<'a> {
    pipeline: &'a TextToImage,
    conditional: Tensor<3>,
    unconditional: Option<Tensor<3>>,
    guidance: f64,
}

impl<'a> Guided<'a> {
    pub(super) fn new(
        pipeline: &'a TextToImage,
        conditional: Tensor<3>,
        unconditional: Option<Tensor<3>>,
        guidance: f64,
    ) -> Result<Self, DiffusionError> {
        if !guidance.is_finite() {
            return Err(DiffusionError::Argument {
                what: "guidance",
                got: guidance.to_string(),
                allowed: "a finite number".to_owned(),
            });
        }
        let width = pipeline.unet().config().cross_attention_dim;
        let [batch, channels, tokens] = conditional.dims();
        if batch == 0 || channels != width || tokens == 0 {
            return Err(DiffusionError::Shape {
                what: "the prompts' states",
                expected: format!("[B, {width}, T]"),
                got: vec![batch, channels, tokens],
            });
        }
        let unconditional = unconditional.filter(|_| guidance != 1.0);
        let unconditional = match unconditional {
            Some(states) if states.dims() == conditional.dims() => Some(states),
            Some(states) if states.dims() == [1, channels, tokens] => {
                Some(states.expand(conditional.dims()))
            }
            Some(states) => {
                return Err(DiffusionError::Shape {
                    what: "the states without a prompt",
                    expected: format!("[1 or {batch}, {channels}, {tokens}]"),
                    got: states.dims().to_vec(),
                });
            }
            None => None,
        };
        Ok(Self {
            pipeline,
            conditional,
            unconditional,
            guidance,
        })
    }

    /// Whether a call's batch holds an unconditional half, before the conditional one.
    pub fn is_guided(&self) -> bool {
        self.unconditional.is_some()
    }

    /// The prompts' part of what a tap sees, along the first axis: of a map `[B heads, keys, queries]` or an activation
    /// `[B, C, H, W]` of a guided call the second half, without guidance all of it.
    pub fn conditional_half<const D: usize>(&self, seen: Tensor<D>) -> Tensor<D> {
        if self.is_guided() {
            let half = seen.dims()[0] / 2;
            seen.narrow(0, half, half)
        } else {
            seen
        }
    }

    /// One call of the network on `x_t [N, C, H, W]`, at one time or one for each sample.
    fn run(
        &self,
        x_t: Tensor<4>,
        times: &[f64],
        tap: &mut dyn Tap,
    ) -> Result<Prediction, DiffusionError> {
        let (unet, batch) = (self.pipeline.unet(), x_t.dims()[0]);
        let conditional = Self::for_batch(&self.conditional, batch)?;
        let value = match &self.unconditional {
            None => unet.forward_at(x_t, times, conditional, None, tap)?,
            Some(unconditional) => {
                let unconditional = Self::for_batch(unconditional, batch)?;
                let both = Tensor::cat(vec![x_t.clone(), x_t], 0);
                let states = Tensor::cat(vec![unconditional, conditional], 0);
                let times = match times.len() {
                    1 => times.to_vec(),
                    _ => times.repeat(2),
                };
                let out = unet.forward_at(both, &times, states, None, tap)?;
                let without = out.clone().narrow(0, 0, batch);
                let with = out.narrow(0, batch, batch);
                without.clone() + (with - without) * self.guidance // eq. (6), with w = g - 1
            }
        };
        Ok(Prediction {
            kind: self.pipeline.scheduler().prediction_type,
            value,
        })
    }

    /// One row of states for each of `batch` samples.
    fn for_batch(states: &Tensor<3>, batch: usize) -> Result<Tensor<3>, DiffusionError> {
        let [of, channels, tokens] = states.dims();
        match of {
            of if of == batch => Ok(states.clone()),
            1 => Ok(states.clone().expand([batch, channels, tokens])),
            _ => Err(DiffusionError::Shape {
                what: "x_t",
                expected: format!("[{of}, ..], as many as prompts"),
                got: vec![batch],
            }),
        }
    }
}

impl Denoiser for Guided<'_> {
    fn schedule(&self) -> &NoiseSchedule {
        self.pipeline.schedule()
    }

    fn sample_shape(&self) -> SampleShape {
        self.pipeline.latent_shape()
    }

    fn device(&self) -> Device {
        self.pipeline.device()
    }

    fn predict(
        &self,
        x_t: Tensor<4>,
        t: &[usize],
        tap: &mut dyn Tap,
    ) -> Result<Prediction, DiffusionError> {
        self.schedule().check_timesteps(t)?;
        self.run(x_t, &as_times(t), tap)
    }

    fn predict_at(
        &self,
        x_t: Tensor<4>,
        time: f64,
        tap: &mut dyn Tap,
    ) -> Result<Prediction, DiffusionError> {
        self.schedule().check_time(time)?;
        self.run(x_t, &[time], tap)
    }
}
