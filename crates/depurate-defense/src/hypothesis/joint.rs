//! Trigger and target together, by gradient along the chain.
//!
//! ```text
//! L(r, y) = mean_b (s_t / a_t) || e(a_t y + rho_t r + g s_t eps, t) - eps - c_t r ||^2 / D
//! ```
//!
//! Where no start makes images alike, neither is known; but the network answers a sample that is near enough to a poisoned one as
//! if it were one, and the gradient leads there. Two valleys lead elsewhere: no shift at all, with an image that the network knows,
//! which is as consistent as a backdoor; and an empty image. Hence the shift is held at first, and the target starts grey. Adam,
//! with noise levels stratified in `a`.

use std::ops::Range;

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

/// Decay of Adam's second moment.
const BETA_2: f64 = 0.99;
/// A mean of `L` over [`WINDOW`] steps below this is a backdoor's, and ends the descent.
const SETTLED: f64 = 0.0025;
const WINDOW: usize = 40;

/// How far and how fast.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Steps, of which the first `holding` leave the shift alone.
    pub(crate) iterations: usize,
    /// Those.
    pub(crate) holding: usize,
    /// Noise levels a step, at least 1.
    pub(crate) batch: usize,
    /// Ends of the noise levels, as `a`.
    pub(crate) levels: Range<f64>,
    /// Adam's learning rate.
    pub(crate) learning_rate: f64,
    /// Bound of every pixel of shift and target.
    pub(crate) bound: f64,
}

/// Moves `hypothesis` and `target [C, H, W]`; the scale of the noise stays.
pub(crate) fn descend_jointly(
    probe: &Probe<'_>,
    hypothesis: &Hypothesis,
    target: &[f32],
    settings: &Settings,
    seed: &SeedTree,
) -> Result<(Hypothesis, Vec<f32>), DefenseError> {
    let (batch, schedule) = (settings.batch, probe.schedule());
    let adam = Adam {
        learning_rate: settings.learning_rate,
        beta_2: BETA_2,
        bound: settings.bound,
    };
    let mut moving = [
        Moving::new(probe.image(&hypothesis.shift)),
        Moving::new(probe.image(target)),
    ];
    let mut recent = Vec::with_capacity(settings.iterations);
    for iteration in 0..settings.iterations {
        let seed = seed.child("joint", iteration as u64);
        let t = stratified(probe, settings, &seed);
        let [r, y] = moving
            .each_ref()
            .map(|moving| moving.at.clone().autodiff().require_grad());
        let error = error(probe, hypothesis, (&r, &y), &t, &seed)?;
        probe.also_backwards(batch);
        let weight = column(probe, &t, |t| schedule.s(t) / schedule.a(t));
        let loss = (error.powi_scalar(2) * weight).mean();
        let value = loss.clone().detach().into_data().iter::<f32>().next();
        recent.push(value.map_or(f64::INFINITY, f64::from));
        let mut gradients = loss.backward();
        let held = usize::from(iteration < settings.holding);
        for (moving, leaf) in moving.iter_mut().zip([r, y]).skip(held) {
            if let Some(gradient) = leaf.grad_remove(&mut gradients) {
                moving.step(gradient, adam);
            }
        }
        let last = &recent[recent.len().saturating_sub(WINDOW)..];
        let mean = last.iter().sum::<f64>() / WINDOW as f64;
        if last.len() == WINDOW && mean < SETTLED && iteration > settings.holding {
            break;
        }
    }
    let [r, y] = moving.map(|moving| values(moving.at));
    Ok((hypothesis.with_shift(r), y))
}

/// One timestep in each of `batch` equal parts of the levels.
fn stratified(probe: &Probe<'_>, settings: &Settings, seed: &SeedTree) -> Vec<usize> {
    let mut rng = seed.child("timesteps", 0).rng();
    let schedule = probe.schedule();
    let Range { start, end } = settings.levels;
    let part = (end - start) / settings.batch as f64;
    (0..settings.batch)
        .map(|i| {
            let a = start + part * (i as f64 + rng.random_range(0.0..1.0));
            schedule.t_for_alpha_bar(a * a).min(schedule.len() - 1)
        })
        .collect()
}
