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

use depurate_diffusion::noise::SeedTree;
use rand::RngExt;

use super::{
    Hypothesis,
    adam::{Adam, Moving},
    chain::{column, error},
};
use crate::{
    DefenseError,
    probe::{Probe, values},
};

/// Adam's learning rate and the decay of its second moment.
const LEARNING_RATE: f64 = 0.05;
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
    let adam = Adam {
        learning_rate: LEARNING_RATE,
        beta_2: BETA_2,
        bound,
    };
    let schedule = probe.schedule();
    let y = probe.image(target).autodiff();
    let mut r = Moving::new(probe.image(&hypothesis.shift));
    for iteration in 0..iterations {
        let seed = seed.child("refinement", iteration as u64);
        let t = stratified(probe, batch, &seed);
        let free = r.at.clone().autodiff().require_grad();
        let error = error(probe, hypothesis, (&free, &y), &t, &seed)?;
        let weight = column(probe, &t, |t| {
            1.0 / (hypothesis.coefficient(schedule, t).powi(2) + WEIGHT_FLOOR)
        });
        let loss = (error.powi_scalar(2) * weight).mean();
        let mut gradients = loss.backward();
        let Some(gradient) = free.grad_remove(&mut gradients) else {
            break;
        };
        r.step(gradient, adam);
    }
    Ok(hypothesis.with_shift(values(r.at)))
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
