//! Numbers as vectors of sines and cosines, and the two layers that networks put on them.
//!
//! ```text
//! angle_k(t) = t exp(-ln(10000) k / (width / 2 - freq_shift)),   k = 0 .. width / 2 - 1
//! e(t) = [sin angle(t), cos angle(t)]   or the cosines first
//! ```

use burn::{
    module::Module,
    tensor::{Device, Tensor, TensorData},
};

use crate::{
    DiffusionError,
    layers::{Init, Linear},
    ops::{self, Activation},
};

/// The sinusoidal embedding of a network.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sinusoid {
    /// Width of a vector; even.
    pub(crate) width: usize,
    /// Subtracted from half the width.
    pub(crate) freq_shift: f64,
    /// Whether the cosines come first.
    pub(crate) cosine_first: bool,
}

impl Sinusoid {
    /// Embeds each number: `[N, width]`.
    pub(crate) fn of(&self, numbers: &[f64], device: &Device) -> Tensor<2> {
        let half = self.width / 2;
        let mut values = Vec::with_capacity(numbers.len() * self.width);
        for number in numbers {
            let angle = |k: usize| {
                number * (-(10_000f64.ln()) * k as f64 / (half as f64 - self.freq_shift)).exp()
            };
            let sines = (0..half).map(|k| angle(k).sin() as f32);
            let cosines = (0..half).map(|k| angle(k).cos() as f32);
            if self.cosine_first {
                values.extend(cosines.chain(sines));
            } else {
                values.extend(sines.chain(cosines));
            }
        }
        Tensor::from_data(TensorData::new(values, [numbers.len(), self.width]), device)
    }
}

/// Training timesteps as times.
pub(crate) fn as_times(t: &[usize]) -> Vec<f64> {
    t.iter().map(|t| *t as f64).collect()
}

/// One time for each of `batch` samples, from as many or from one for all.
pub(crate) fn one_each(times: &[f64], batch: usize) -> Result<Vec<f64>, DiffusionError> {
    match times {
        [one] => Ok(vec![*one; batch]),
        each if each.len() == batch => Ok(each.to_vec()),
        _ => Err(DiffusionError::Shape {
            what: "t",
            expected: format!("[1] or [{batch}]"),
            got: vec![times.len()],
        }),
    }
}

/// Two linear layers with SiLU between them.
#[derive(Module, Debug)]
pub(crate) struct TimeEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimeEmbedding {
    pub(crate) fn new(init: &Init, width_in: usize, width: usize) -> Self {
        Self {
            linear_1: Linear::new(&init.at("linear_1"), width_in, width),
            linear_2: Linear::new(&init.at("linear_2"), width, width),
        }
    }

    /// `x [N, width_in]` → `[N, width]`.
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let hidden = ops::activation(self.linear_1.forward(x), Activation::Silu);
        self.linear_2.forward(hidden)
    }
}
