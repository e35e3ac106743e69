//! Every custom operation: its gradients, and its agreement with the tensor framework.
#![allow(clippy::unwrap_used, missing_docs)]

mod framework;
mod gradients;

use burn::tensor::{Device, Tensor, TensorData};

/// Repeatable values in about [-1, 1].
pub fn filled(n: usize, seed: usize) -> Vec<f32> {
    (0..n)
        .map(|i| ((i * 7 + seed * 31) as f32 * 0.618).sin())
        .collect()
}

pub fn tensor<const D: usize>(values: &[f32], shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

pub fn read<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_into_vec().unwrap()
}

/// An operation on flat operands, as a loss: a weighted sum of its output.
pub type Loss<'a> = &'a dyn Fn(&[Tensor<1>]) -> Tensor<1>;

pub fn weighted<const D: usize>(y: Tensor<D>) -> Tensor<1> {
    let n = y.dims().iter().product();
    let weights = tensor(&filled(n, 9), [n], &y.device());
    (y.reshape([n]) * weights).sum()
}
