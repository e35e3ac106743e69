//! Losses (2) to (4) of TERD with their gradients, and the divergence of its model detector.

use burn::tensor::{Tensor, TensorData};
use depurate_diffusion::{Denoiser, differentiable::sample_gradient, sampler::Ddim};

use super::GAMMA_MIN;
use crate::DefenseError;

/// What the loss (2) is taken of.
pub struct Pairs {
    /// `x_0`, `[B, C, H, W]`.
    pub x_0: Tensor<4>,
    /// The two noises, `[B, C, H, W]`.
    pub eps: [Tensor<4>; 2],
    /// One timestep a sample.
    pub t: Vec<usize>,
}

/// Loss (2), a scalar `[1]`. `shift` and `gamma` are `[1, C, H, W]`; `weight` is b(t).
///
/// # Errors
/// When shapes do not fit.
pub fn reversed_loss(
    model: &dyn Denoiser,
    pairs: &Pairs,
    shift: &Tensor<4>,
    gamma: Option<&Tensor<4>>,
    weight: f64,
) -> Result<Tensor<1>, DefenseError> {
    let schedule = model.schedule();
    let batch = pairs.x_0.dims()[0];
    let column = |of: &dyn Fn(usize) -> f64| {
        let values: Vec<f32> = pairs.t.iter().map(|&t| of(t) as f32).collect();
        Tensor::<4>::from_data(
            TensorData::new(values, [batch, 1, 1, 1]),
            &pairs.x_0.device(),
        )
    };
    let mut residuals = Vec::with_capacity(2);
    for eps in &pairs.eps {
        let noise = match gamma {
            Some(gamma) => eps.clone() * gamma.clone(),
            None => eps.clone(),
        };
        let x = pairs.x_0.clone() * column(&|t| schedule.a(t))
            + noise * column(&|t| schedule.s(t))
            + shift.clone() * weight; // eq. (1)
        residuals.push(eps.clone() - model.epsilon(x, &pairs.t)?);
    }
    let second = residuals.remove(1);
    let first = residuals.remove(0);
    Ok((first - second).powi_scalar(2).sum() / (2.0 * batch as f64)) // eq. (2)
}

/// A value of (3) or (4) and its gradients `[1, C, H, W]`.
pub struct Objective {
    /// The value.
    pub value: f64,
    /// Gradient in the shift.
    pub shift: Tensor<4>,
    /// Gradient in `gamma`, where it is inverted.
    pub gamma: Option<Tensor<4>>,
}

fn gradient_of(loss: Tensor<1>, shift: &Tensor<4>, gamma: Option<&Tensor<4>>) -> Objective {
    let value = f64::from(loss.clone().into_scalar::<f32>());
    let gradients = loss.backward();
    let of = |leaf: &Tensor<4>| {
        leaf.grad(&gradients)
            .unwrap_or_else(|| leaf.clone().inner().zeros_like())
    };
    Objective {
        value,
        shift: of(shift),
        gamma: gamma.map(of),
    }
}

/// Objective (3) at `shift` and `gamma`, `[1, C, H, W]` without graph.
///
/// # Errors
/// When shapes do not fit.
pub fn estimation(
    model: &dyn Denoiser,
    pairs: &Pairs,
    shift: &Tensor<4>,
    gamma: Option<&Tensor<4>>,
    lambda: f64,
) -> Result<Objective, DefenseError> {
    let shift = shift.clone().autodiff().require_grad();
    let gamma = gamma.map(|gamma| gamma.clone().autodiff().require_grad());
    let loss = reversed_loss(model, pairs, &shift, gamma.as_ref(), 1.0)?
        - shift.clone().abs().sum() * lambda; // eq. (3)
    Ok(gradient_of(loss, &shift, gamma.as_ref()))
}

/// Objective (4): `noisy` and `clean` give noises and timesteps, their `x_0` is replaced by `G(start + shift)`.
///
/// # Errors
/// When shapes do not fit or the sampler's output is not finite.
#[expect(
    clippy::too_many_arguments,
    reason = "the symbols of eq. (4), each once"
)]
pub fn refinement(
    model: &dyn Denoiser,
    sampler: &Ddim,
    start: Tensor<4>,
    noisy: &Pairs,
    clean: &Pairs,
    shift: &Tensor<4>,
    gamma: Option<&Tensor<4>>,
    lambda: f64,
) -> Result<Objective, DefenseError> {
    let at = |pairs: &Pairs, x_0: &Tensor<4>| Pairs {
        x_0: x_0.clone(),
        eps: pairs.eps.clone(),
        t: pairs.t.clone(),
    };
    let losses = |x_0: Tensor<4>,
                  shift: &Tensor<4>,
                  gamma: Option<&Tensor<4>>|
     -> Result<Tensor<1>, DefenseError> {
        let noisy = reversed_loss(model, &at(noisy, &x_0), shift, gamma, 1.0)?;
        let clean = reversed_loss(model, &at(clean, &x_0), shift, gamma, 0.0)?;
        Ok((noisy + clean) / 2.0)
    };
    // through the sampler
    let mut failed = None;
    let first = match gamma {
        Some(gamma) => start.clone() * gamma.clone() + shift.clone(),
        None => start.clone() + shift.clone(),
    };
    let sampled = sample_gradient(model, sampler, first, |x_0| {
        losses(x_0.clone(), shift, gamma).or_else(|error| {
            failed = Some(error);
            Ok(x_0.sum() * 0.0)
        })
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    // and directly, with the generated images held fixed
    let leaf = shift.clone().autodiff().require_grad();
    let gamma_leaf = gamma.map(|gamma| gamma.clone().autodiff().require_grad());
    let loss = losses(sampled.x_0, &leaf, gamma_leaf.as_ref())? - leaf.clone().abs().sum() * lambda; // eq. (4)
    let mut objective = gradient_of(loss, &leaf, gamma_leaf.as_ref());
    objective.shift = objective.shift + sampled.grad_x_t.clone().sum_dim(0);
    objective.gamma = objective
        .gamma
        .map(|gamma| gamma + (sampled.grad_x_t * start).sum_dim(0));
    Ok(objective)
}

/// Per-dimension divergence of `N(shift, gamma^2)` from the benign prior `N(0, 1)`: its mean `M_r` and
/// population variance `V_r`, without the reference's constants `N_m = -0.4` and `N_v = 0.003` taken off.
pub fn divergence(shift: &[f32], gamma: Option<&[f32]>) -> (f64, f64) {
    let of = |i: usize| {
        let r = f64::from(shift[i]);
        let gamma = gamma.map_or(1.0, |gamma| f64::from(gamma[i]).max(GAMMA_MIN));
        -gamma.ln() + (gamma * gamma + r * r - 1.0) / 2.0
    };
    let n = shift.len() as f64;
    let mean = (0..shift.len()).map(of).sum::<f64>() / n;
    let variance = (0..shift.len())
        .map(|i| (of(i) - mean).powi(2))
        .sum::<f64>()
        / n;
    (mean, variance)
}
