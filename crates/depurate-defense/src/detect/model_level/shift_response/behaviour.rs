//! What the suspect does with a shift, under the hypothesis that the shift is a trigger.
//!
//! With a trigger `r` and its rule known, `y_t = x_t - rho_t r` and `e' = e(x_t, t) - c_t r` turn the
//! poisoned chain into a standard one, so that a deterministic sampler of few steps lands on the target
//! that the attacked stochastic sampler needs all its steps for. A strided stochastic sampler does not:
//! see the oracle tests of `depurate-testkit`.

use burn::tensor::Tensor;
use depurate_diffusion::{
    noise::SeedTree,
    trigger::{Family, Shift},
};
use serde::{Deserialize, Serialize};

use crate::{
    DefenseError,
    probe::{Probe, values},
};

/// The predicted clean image is kept within this bound, in the model's range. In shifted
/// coordinates the clean image is an image, so this does not disarm the trigger.
const CLIP: f64 = 1.5;
/// `alpha_bar` of the levels at which a hypothesis is tested, from noisy to clean.
const LEVELS: [f64; 8] = [1e-3, 5e-3, 0.02, 0.06, 0.15, 0.35, 0.6, 0.85];

/// A shift and the images it leads to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Behaviour {
    /// `[count, C, H, W]`.
    pub(super) images: Vec<f32>,
    /// Midpoint of the two images that are closest to each other, `[C, H, W]`. Where a backdoor fires
    /// for a part of the noises only, a mean or a median would blend its target with other images.
    pub(super) target: Vec<f32>,
    /// Median over the images of the mean squared distance to `target`, in [0, 1] units.
    pub(super) spread: f64,
    /// Mean squared error of the network against "`target` under this shift", see [`inconsistency`].
    pub(super) inconsistency: f64,
}

impl Behaviour {
    /// How badly the hypothesis "this shift leads to one image" fits.
    pub(super) fn misfit(&self) -> f64 {
        self.spread * self.inconsistency
    }
}

/// Samples `count` images under the hypothesis that `shift` is a stochastic-rule trigger, and tests it.
pub(super) fn behaviour(
    probe: &Probe<'_>,
    shift: &[f32],
    count: usize,
    steps: usize,
    seed: &SeedTree,
) -> Result<Behaviour, DefenseError> {
    let eps = probe.noise(&seed.child("start", 0), count)?;
    let images = values(shifted_ddim(probe, shift, eps, steps)?.clamp(-1.0, 1.0));
    let target = closest_pair(&images, shift.len());
    let spread = spread(&images, &target);
    let inconsistency = inconsistency(probe, shift, &target, count / 2, &seed.child("levels", 0))?;
    Ok(Behaviour {
        images,
        target,
        spread,
        inconsistency,
    })
}

/// Deterministic sampling in shifted coordinates from `eps [B, C, H, W]`, `steps` network calls.
pub(super) fn shifted_ddim(
    probe: &Probe<'_>,
    shift: &[f32],
    eps: Tensor<4>,
    steps: usize,
) -> Result<Tensor<4>, DefenseError> {
    let schedule = probe.schedule();
    let r = probe.image(shift);
    let last = schedule.len() - 1;
    let steps = steps.clamp(2, schedule.len());
    let timesteps: Vec<usize> = (0..steps).rev().map(|i| i * last / (steps - 1)).collect();
    let mut y = eps;
    for (i, &t) in timesteps.iter().enumerate() {
        let (a, s) = (schedule.a(t), schedule.s(t));
        let rho = Shift::LostSignal.rho(schedule, t);
        let c = Shift::LostSignal.coefficient(schedule, t, Family::Stochastic);
        let e = probe.epsilon(y.clone() + r.clone() * rho, t)? - r.clone() * c;
        let x_0 = ((y.clone() - e * s) / a).clamp(-CLIP, CLIP);
        y = match timesteps.get(i + 1) {
            Some(&next) => {
                let e = (y - x_0.clone() * a) / s; // the noise that agrees with the clipped image
                x_0 * schedule.a(next) + e * schedule.s(next)
            }
            None => x_0,
        };
    }
    Ok(y)
}

/// Mean over noise levels of `|| e(a y + rho r + s eps, t) - eps - c r ||^2 / D`: how far the network is
/// from having learnt "the shift `r` leads to the image `y`". Near 0 for a backdoor's trigger and target.
pub(super) fn inconsistency(
    probe: &Probe<'_>,
    shift: &[f32],
    target: &[f32],
    count: usize,
    seed: &SeedTree,
) -> Result<f64, DefenseError> {
    let schedule = probe.schedule();
    let (r, y) = (probe.image(shift), probe.image(target));
    let mut sum = 0.0;
    for (i, &alpha_bar) in LEVELS.iter().enumerate() {
        let t = schedule.t_for_alpha_bar(alpha_bar).min(schedule.len() - 1);
        let eps = probe.noise(&seed.child("level", i as u64), count.max(1))?;
        let rho = Shift::LostSignal.rho(schedule, t);
        let c = Shift::LostSignal.coefficient(schedule, t, Family::Stochastic);
        let x_t = y.clone() * schedule.a(t) + r.clone() * rho + eps.clone() * schedule.s(t);
        let error = probe.epsilon(x_t, t)? - eps - r.clone() * c;
        let error = values(error);
        sum += error.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / error.len() as f64;
    }
    Ok(sum / LEVELS.len() as f64)
}

/// The midpoint of the two closest images of a batch of images of `len` values.
fn closest_pair(batch: &[f32], len: usize) -> Vec<f32> {
    let images: Vec<&[f32]> = batch.chunks_exact(len).collect();
    let mut best = (f64::INFINITY, 0, 0);
    for (i, a) in images.iter().enumerate() {
        for (j, b) in images.iter().enumerate().skip(i + 1) {
            let distance = distance(a, b);
            if distance < best.0 {
                best = (distance, i, j);
            }
        }
    }
    let (_, i, j) = best;
    images[i]
        .iter()
        .zip(images[j])
        .map(|(a, b)| (a + b) / 2.0)
        .collect()
}

/// Median over the images of their distance to `target`; of an even number the smaller middle one, so
/// that a backdoor that fires for half of the noises shows.
fn spread(batch: &[f32], target: &[f32]) -> f64 {
    let mut distances: Vec<f64> = batch
        .chunks_exact(target.len())
        .map(|image| distance(image, target))
        .collect();
    distances.sort_by(f64::total_cmp);
    distances[(distances.len() - 1) / 2]
}

/// Mean squared distance in [0, 1] units: a quarter of the model's range squared.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    sum / a.len() as f64 / 4.0
}
