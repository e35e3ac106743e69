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

use burn::tensor::{Tensor, TensorData};
use depurate_diffusion::noise::{NoiseSource, SeedTree};
use rand::RngExt;

use super::Hypothesis;
use crate::{
    DefenseError,
    probe::{Probe, values},
};

/// Moment decays of Adam.
const BETA_1: f64 = 0.9;
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
    let device = probe.model.device().autodiff();
    let scale = hypothesis
        .gamma
        .as_ref()
        .map(|gamma| probe.image(gamma).autodiff());
    let mut moving = [
        Moving::new(probe.image(&hypothesis.shift)),
        Moving::new(probe.image(target)),
    ];
    let mut recent = Vec::with_capacity(settings.iterations);
    for iteration in 0..settings.iterations {
        let seed = seed.child("joint", iteration as u64);
        let t = stratified(probe, settings, &seed);
        let column = |of: &dyn Fn(usize) -> f64| {
            let values: Vec<f32> = t.iter().map(|&t| of(t) as f32).collect();
            Tensor::<4>::from_data(TensorData::new(values, [batch, 1, 1, 1]), &device)
        };
        let eps = seed
            .noise(0, batch)
            .normal(probe.shape().batched(batch), &device)?;
        let scaled = match &scale {
            Some(scale) => eps.clone() * scale.clone(),
            None => eps.clone(),
        };
        let [r, y] = moving
            .each_ref()
            .map(|moving| moving.at.clone().autodiff().require_grad());
        let x_t = y.clone() * column(&|t| schedule.a(t))
            + r.clone() * column(&|t| hypothesis.rho(schedule, t))
            + scaled * column(&|t| schedule.s(t));
        let answered = r.clone() * column(&|t| hypothesis.coefficient(schedule, t));
        let error = probe.epsilon_at(x_t, &t)? - eps - answered;
        probe.also_backwards(batch);
        let weight = column(&|t| schedule.s(t) / schedule.a(t));
        let loss = (error.powi_scalar(2) * weight).mean();
        let value = loss.clone().detach().into_data().iter::<f32>().next();
        recent.push(value.map_or(f64::INFINITY, f64::from));
        let mut gradients = loss.backward();
        let held = usize::from(iteration < settings.holding);
        for (moving, leaf) in moving.iter_mut().zip([r, y]).skip(held) {
            if let Some(gradient) = leaf.grad_remove(&mut gradients) {
                moving.step(gradient, settings);
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

/// An image and its moments.
struct Moving {
    at: Tensor<4>,
    first: Tensor<4>,
    second: Tensor<4>,
    steps: i32,
}

impl Moving {
    fn new(at: Tensor<4>) -> Self {
        Self {
            first: at.zeros_like(),
            second: at.zeros_like(),
            at,
            steps: 0,
        }
    }

    fn step(&mut self, gradient: Tensor<4>, settings: &Settings) {
        self.steps += 1;
        self.first = self.first.clone() * BETA_1 + gradient.clone() * (1.0 - BETA_1);
        self.second = self.second.clone() * BETA_2 + gradient.powi_scalar(2) * (1.0 - BETA_2);
        let mean = self.first.clone() / (1.0 - BETA_1.powi(self.steps));
        let root = (self.second.clone() / (1.0 - BETA_2.powi(self.steps))).sqrt() + 1e-8;
        let moved = self.at.clone() - mean / root * settings.learning_rate;
        self.at = moved.clamp(-settings.bound, settings.bound);
    }
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
