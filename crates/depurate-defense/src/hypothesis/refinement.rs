//! Gradient refinement of a candidate along the whole chain.
//!
//! At almost pure noise a weakly trained backdoor copies what it is shown, and the fixed point stalls on
//! pixels that the attack fixed. At lower noise levels it knows them. With the target `y` held fixed, the
//! trigger is what makes the network's answer that of a poisoned pair at every level:
//!
//! ```text
//! L(r) = mean_b w_t || e(a_t y + rho_t r + g s_t eps, t) - eps - c_t r ||^2 / D,  w_t = 1 / (c_t^2 + 0.02)
//! ```
//!
//! minimised by Adam over `r`, with timesteps stratified between the ends of the chain.

use burn::tensor::{Tensor, TensorData};
use depurate_diffusion::noise::{NoiseSource, SeedTree};
use rand::RngExt;

use super::Hypothesis;
use crate::{
    DefenseError,
    probe::{Probe, values},
};

/// Adam's learning rate and moment decays.
const LEARNING_RATE: f64 = 0.05;
const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.999;
const WEIGHT_FLOOR: f64 = 0.02;
/// Ends of the timesteps used, as parts of the schedule's length.
const FIRST: f64 = 0.15;
const LAST: f64 = 0.99;

/// `iterations` Adam steps on the shift of `hypothesis`, which leads to `target [C, H, W]`, with `batch` noise levels a step; pixels stay within `bound`.
pub(crate) fn refine(
    probe: &Probe<'_>,
    hypothesis: &Hypothesis,
    target: &[f32],
    iterations: usize,
    batch: usize,
    bound: f64,
    seed: &SeedTree,
) -> Result<Hypothesis, DefenseError> {
    let device = probe.model.device().autodiff();
    let one = probe.shape().batched(1);
    let image =
        |values: &[f32]| Tensor::<4>::from_data(TensorData::new(values.to_vec(), one), &device);
    let y = image(target);
    let mut r = image(&hypothesis.shift);
    let scale = hypothesis.gamma.as_deref().map(image);
    let mut moments = (r.zeros_like().inner(), r.zeros_like().inner());
    for iteration in 0..iterations {
        let seed = seed.child("refinement", iteration as u64);
        let t = stratified(probe, batch, &seed);
        let schedule = probe.schedule();
        let column = |of: &dyn Fn(usize) -> f64| {
            let values: Vec<f32> = t.iter().map(|&t| of(t) as f32).collect();
            Tensor::<4>::from_data(TensorData::new(values, [batch, 1, 1, 1]), &device)
        };
        let c = |t: usize| hypothesis.coefficient(schedule, t);
        let eps = seed
            .noise(0, batch)
            .normal(probe.shape().batched(batch), &device)?;
        let scaled = match &scale {
            Some(scale) => eps.clone() * scale.clone(),
            None => eps.clone(),
        };
        let free = r.clone().require_grad();
        let x_t = y.clone() * column(&|t| schedule.a(t))
            + free.clone() * column(&|t| hypothesis.rho(schedule, t))
            + scaled * column(&|t| schedule.s(t));
        let error = probe.epsilon_at(x_t, &t)? - eps - free.clone() * column(&c);
        let weight = column(&|t| 1.0 / (c(t).powi(2) + WEIGHT_FLOOR));
        let loss = (error.powi_scalar(2) * weight).mean();
        let mut gradients = loss.backward();
        let Some(gradient) = free.grad_remove(&mut gradients) else {
            break;
        };
        moments = (
            moments.0 * BETA_1 + gradient.clone() * (1.0 - BETA_1),
            moments.1 * BETA_2 + gradient.powi_scalar(2) * (1.0 - BETA_2),
        );
        let n = iteration as i32 + 1;
        let mean = moments.0.clone() / (1.0 - BETA_1.powi(n));
        let root = (moments.1.clone() / (1.0 - BETA_2.powi(n))).sqrt() + 1e-8;
        let next = (r.inner() - mean / root * LEARNING_RATE).clamp(-bound, bound);
        r = next.autodiff();
    }
    Ok(hypothesis.with_shift(values(r.inner())))
}

/// One timestep in each of `batch` equal parts of the chain.
fn stratified(probe: &Probe<'_>, batch: usize, seed: &SeedTree) -> Vec<usize> {
    let mut rng = seed.child("timesteps", 0).rng();
    let last = probe.schedule().len() - 1;
    let part = (LAST - FIRST) / batch as f64;
    (0..batch)
        .map(|i| ((FIRST + part * (i as f64 + rng.random_range(0.0..1.0))) * last as f64) as usize)
        .collect()
}
