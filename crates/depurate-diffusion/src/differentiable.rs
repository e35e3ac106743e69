//! Gradients through a whole sampling run, in the memory of one step.
//!
//! The full autograd graph of `n` steps holds `n` networks' activations. Here the samples `x_t` alone are kept; then
//! the run is walked backwards, each step is recomputed with a graph of its own, and the gradient is carried through it
//! as a vector-Jacobian product:
//!
//! ```text
//! g_next = dL/dx_next       g = (d step(x) / dx)^T g_next = d <step(x), g_next> / dx
//! ```
//!
//! Cost: two forward passes and one backward pass per step; memory: one step's graph and `n + 1` samples
//! `[B, C, H, W]`. The result is that of the full graph up to rounding.

use burn::tensor::{Gradients, Tensor};

use crate::{
    Denoiser, DiffusionError, NoTap,
    noise::NoNoise,
    parameterisation::check_same_shape,
    sampler::{Past, Sampler, advance, scaled},
};

/// A differentiated sampling run. No tensor carries a graph.
#[derive(Debug, Clone)]
pub struct SampledGradient {
    /// The sample, `[B, C, H, W]`.
    pub x_0: Tensor<4>,
    /// The objective's value.
    pub loss: f32,
    /// Gradient of the objective in the sample, `[B, C, H, W]`.
    pub grad_x_0: Tensor<4>,
    /// Gradient of the objective in the starting noise `x_T`, `[B, C, H, W]`.
    pub grad_x_t: Tensor<4>,
}

/// Runs a deterministic `sampler` from `x_t: [B, C, H, W]` and differentiates `loss` of the sample in `x_t`.
///
/// `loss` receives the sample, attached to a graph, and returns a scalar `[1]`.
///
/// # Errors
/// When the sampler is stochastic or multistep, shapes do not fit or the network's output is not finite.
pub fn sample_gradient(
    denoiser: &dyn Denoiser,
    sampler: &dyn Sampler,
    x_t: Tensor<4>,
    loss: impl FnOnce(Tensor<4>) -> Result<Tensor<1>, DiffusionError>,
) -> Result<SampledGradient, DiffusionError> {
    sample_gradient_with(denoiser, sampler, x_t, loss, &mut |_| {})
}

/// As [`sample_gradient`]; `visit` also receives the gradients of every recomputed step, so that the caller can sum those
/// of the network's parameters (they must live on an autodiff device and require gradients).
///
/// # Errors
/// As [`sample_gradient`].
pub fn sample_gradient_with(
    denoiser: &dyn Denoiser,
    sampler: &dyn Sampler,
    x_t: Tensor<4>,
    loss: impl FnOnce(Tensor<4>) -> Result<Tensor<1>, DiffusionError>,
    visit: &mut dyn FnMut(&Gradients),
) -> Result<SampledGradient, DiffusionError> {
    if sampler.is_multistep() {
        return Err(DiffusionError::Argument {
            what: "sampler to differentiate",
            got: "a multistep one".into(),
            allowed: "one whose steps depend on the sample alone, such as DDIM".into(),
        });
    }
    let advance = |index: usize, x: Tensor<4>| -> Result<Tensor<4>, DiffusionError> {
        let (past, noise, tap) = (&mut Past::default(), &mut NoNoise, &mut NoTap);
        advance(denoiser, sampler, index, x, past, noise, tap)
    };

    // forwards, keeping the samples only; `inner` drops whatever graph the network's parameters may have started
    let n_steps = sampler.timesteps().len();
    let mut x = scaled(sampler, x_t.inner());
    let mut visited = Vec::with_capacity(n_steps);
    for index in 0..n_steps {
        visited.push(x.clone());
        x = advance(index, x)?.inner();
    }

    let leaf = x.clone().autodiff().require_grad();
    let objective = loss(leaf.clone())?;
    let value = objective
        .clone()
        .detach()
        .into_data()
        .iter::<f32>()
        .next()
        .unwrap_or(f32::NAN);
    let grad_x_0 = gradient(&objective, &leaf, &mut |_| {});

    let mut grad = grad_x_0.clone();
    for index in (0..n_steps).rev() {
        let Some(x) = visited.pop() else { break };
        let leaf = x.autodiff().require_grad();
        let next = advance(index, leaf.clone())?;
        check_same_shape("sampler step", &next, &leaf)?;
        grad = gradient(&(next * grad).sum(), &leaf, visit);
    }
    Ok(SampledGradient {
        x_0: x,
        loss: value,
        grad_x_0,
        grad_x_t: scaled(sampler, grad),
    })
}

/// Gradient of the scalar `objective` in `leaf`, without graph; zero where the objective does not depend on it.
fn gradient(
    objective: &Tensor<1>,
    leaf: &Tensor<4>,
    visit: &mut dyn FnMut(&Gradients),
) -> Tensor<4> {
    let nothing = || leaf.clone().inner().zeros_like();
    if !objective.is_tracked() {
        return nothing();
    }
    let gradients = objective.backward();
    visit(&gradients);
    leaf.grad(&gradients).unwrap_or_else(nothing)
}
