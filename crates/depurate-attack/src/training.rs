//! # Training a denoiser
//!
//! ## Paper
//! Ho et al., NeurIPS 2020, arXiv:2006.11239, algorithm 1 and eq. (14); warm-up and cosine decay after
//! Loshchilov and Hutter, arXiv:1608.03983.
//!
//! The loop is the same for benign training, fine-tuning and attacks: they differ in the [`Objective`],
//! which turns images and noise into the network's input and its regression target. The randomness of a
//! step depends on the seed and the step's number alone, so a resumed run continues as if it had never
//! been stopped.
//!
//! ## Cost
//! One forward and one backward pass of the network a sample.

use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor};
use depurate_diffusion::{
    Denoiser, NoTap, Pipeline, Prediction,
    noise::{NoiseSource, SeedTree},
    schedule::NoiseSchedule,
};
use rand::{RngExt, seq::SliceRandom};
use serde::{Deserialize, Serialize};

pub use crate::optimizer::AdamParams;
use crate::{
    AttackError, Dataset,
    checkpointing::{State, StateFile},
    ema::Ema,
    optimizer::AdamW,
    parameters::{self, Flat},
};

/// What the difference between prediction and target costs, averaged over all elements.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// The square.
    #[default]
    L2,
    /// The absolute value.
    L1,
    /// Half the square below 1, the absolute value less a half above.
    Huber,
}

impl Loss {
    /// The mean cost `[1]` of `prediction` against `target`, both `[B, C, H, W]`.
    pub fn of(self, prediction: Tensor<4>, target: Tensor<4>) -> Tensor<1> {
        let difference = prediction - target;
        match self {
            Self::L2 => difference.square().mean(),
            Self::L1 => difference.abs().mean(),
            Self::Huber => {
                let size = difference.abs();
                let inner = size.clone().clamp_max(1.0);
                // with m = min(|d|, 1): m^2 / 2 + (|d| - m)
                (inner.clone().square() * 0.5 + size - inner).mean()
            }
        }
    }
}

/// How a run goes. The default suits networks of below a million parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingParams {
    /// Optimiser steps.
    pub steps: usize,
    /// Samples a step.
    pub batch: usize,
    /// Highest learning rate, reached after the warm-up.
    pub learning_rate: f64,
    /// The learning rate falls along a cosine to this part of it.
    pub final_learning_rate_share: f64,
    /// Steps in which the learning rate rises from 0.
    pub warmup_steps: usize,
    /// Constants of the optimiser.
    pub adam: AdamParams,
    /// The norm of all gradients together is cut to this.
    pub max_grad_norm: f64,
    /// Limit of the decay of the weights' average, in [0, 1).
    pub ema_decay: f64,
    /// The loss.
    pub loss: Loss,
    /// Whether images are mirrored left to right at random.
    pub horizontal_flip: bool,
    /// Seed of everything random in the run.
    pub seed: u64,
    /// Steps between two resumable states.
    pub checkpoint_every: usize,
}

impl Default for TrainingParams {
    fn default() -> Self {
        Self {
            steps: 2000,
            batch: 64,
            learning_rate: 1e-3,
            final_learning_rate_share: 0.1,
            warmup_steps: 100,
            adam: AdamParams::default(),
            max_grad_norm: 1.0,
            ema_decay: 0.999,
            loss: Loss::L2,
            horizontal_flip: false,
            seed: 0,
            checkpoint_every: 500,
        }
    }
}

impl TrainingParams {
    /// Checks the ranges.
    ///
    /// # Errors
    /// The first parameter that is out of range.
    pub fn check(&self) -> Result<(), AttackError> {
        let refuse = |what, got: String, allowed| Err(AttackError::Params { what, got, allowed });
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let share = |value: f64| (0.0..1.0).contains(&value);
        if self.steps == 0 || self.steps > 100_000_000 {
            return refuse("steps", self.steps.to_string(), "1 to 100,000,000");
        }
        if self.batch == 0 || self.batch > 65_536 {
            return refuse("batch", self.batch.to_string(), "1 to 65,536");
        }
        if !positive(self.learning_rate) {
            return refuse("learning rate", self.learning_rate.to_string(), "above 0");
        }
        if !(0.0..=1.0).contains(&self.final_learning_rate_share) {
            return refuse("final learning rate share", self.final_learning_rate_share.to_string(), "0 to 1");
        }
        if !positive(self.max_grad_norm) {
            return refuse("largest gradient norm", self.max_grad_norm.to_string(), "above 0");
        }
        if !share(self.ema_decay) {
            return refuse("EMA decay", self.ema_decay.to_string(), "0 to below 1");
        }
        let AdamParams { beta_1, beta_2, epsilon, weight_decay } = self.adam;
        if !(share(beta_1) && share(beta_2) && positive(epsilon) && weight_decay >= 0.0) {
            return refuse("Adam constants", format!("{:?}", self.adam), "betas in 0 to below 1, epsilon above 0, decay 0 or more");
        }
        if self.checkpoint_every == 0 {
            return refuse("steps between checkpoints", "0".into(), "1 or more");
        }
        Ok(())
    }

    /// The learning rate of a step, counted from 0.
    pub fn learning_rate_at(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.learning_rate * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let done = (step - self.warmup_steps) as f64 / (self.steps - self.warmup_steps).max(1) as f64;
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos());
        let floor = self.final_learning_rate_share;
        self.learning_rate * (floor + (1.0 - floor) * cosine)
    }
}

/// What a step was dealt.
#[derive(Debug, Clone)]
pub struct Draw {
    /// Index of each image in the data set.
    pub indices: Vec<usize>,
    /// The images, `[B, C, H, W]` in [-1, 1].
    pub images: Tensor<4>,
    /// Standard normal noise, `[B, C, H, W]`.
    pub eps: Tensor<4>,
    /// Training timestep of each sample, uniform in `0 .. T`.
    pub t: Vec<usize>,
    /// For anything else that the objective draws in this step.
    pub seed: SeedTree,
}

/// A batch as the network sees it.
#[derive(Debug, Clone)]
pub struct TrainingPair {
    /// The network's input, `[B, C, H, W]`.
    pub x_t: Tensor<4>,
    /// The noise that it shall see there, `[B, C, H, W]`.
    pub target: Tensor<4>,
}

/// What a model is trained to do.
pub trait Objective {
    /// The network's input and regression target for a draw.
    ///
    /// # Errors
    /// When the draw does not fit the objective.
    fn pair(&self, schedule: &NoiseSchedule, draw: Draw) -> Result<TrainingPair, AttackError>;
    /// What tells this objective from others in a resumable state.
    fn describe(&self) -> String;
}

/// Benign training, eq. (14): `x_t = a_t x_0 + s_t eps`, target `eps`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Denoising;

impl Objective for Denoising {
    fn pair(&self, schedule: &NoiseSchedule, draw: Draw) -> Result<TrainingPair, AttackError> {
        let x_t = schedule.add_noise(draw.images, draw.eps.clone(), &draw.t)?;
        Ok(TrainingPair { x_t, target: draw.eps })
    }
    fn describe(&self) -> String {
        "denoising".into()
    }
}

/// Watches a run, and may stop it.
pub trait Monitor {
    /// Asked after every step; `true` stops the run with a resumable state.
    fn cancelled(&self) -> bool {
        false
    }
    /// After every step.
    fn step(&self, _report: &StepReport) {}
}

/// The monitor that only looks on.
impl Monitor for () {}

/// One step's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Steps done.
    pub step: usize,
    /// Steps in all.
    pub steps: usize,
    /// Loss of the step's batch.
    pub loss: f32,
    /// Norm of all gradients, before it is cut.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Samples a second since the run was started or resumed.
    pub samples_per_second: f64,
}

/// The outcome of a run.
#[derive(Debug, Clone)]
pub struct Trained {
    /// The model with the averaged weights.
    pub pipeline: Pipeline,
    /// Loss of every step since the run was started or resumed.
    pub losses: Vec<f32>,
    /// Time spent in this process.
    pub elapsed: Duration,
    /// Throughput in this process.
    pub samples_per_second: f64,
}

/// Trains `pipeline` (which must be on an autodiff device) on `data`. With a `state` file a resumable state is
/// written there now and then, and a run that finds one continues it; the file is left in place at the end.
///
/// # Errors
/// When parameters or shapes do not fit, a loss is not finite, a file cannot be written, the state is another
/// run's, or the monitor stops the run.
pub fn train(
    pipeline: &Pipeline,
    data: &Dataset,
    objective: &dyn Objective,
    params: &TrainingParams,
    state: Option<&StateFile>,
    monitor: &dyn Monitor,
) -> Result<Trained, AttackError> {
    params.check()?;
    if data.shape() != pipeline.sample_shape() {
        return Err(AttackError::Params {
            what: "shape of the images",
            got: format!("{:?}", data.shape()),
            allowed: "the model's",
        });
    }
    let device = pipeline.device();
    if !device.is_autodiff() {
        return Err(AttackError::Params { what: "device", got: format!("{device:?}"), allowed: "one with autodiff" });
    }
    let run = run_description(pipeline, data, objective, params);
    let mut unet = pipeline.unet().clone();
    let mut values = parameters::values(&unet);
    let mut ema = Ema::new(params.ema_decay, values.clone());
    let mut optimizer = AdamW::new(params.adam);
    let mut step = 0;
    if let Some(State { step: done, values: stored, ema: average, first, second }) =
        state.map(|file| file.load(&run, &values, &device)).transpose()?.flatten()
    {
        step = done;
        values = stored;
        unet = parameters::replaced(unet, &values);
        ema.values = average;
        ema.updates = done;
        optimizer.step = done;
        (optimizer.first, optimizer.second) = (first, second);
        tracing::info!(step, "resumed");
    }
    let save = |step: usize, values: &Flat, ema: &Ema, optimizer: &AdamW| match state {
        Some(file) => file.save(&run, step, values, &ema.values, &optimizer.first, &optimizer.second),
        None => Ok(()),
    };

    let seed = SeedTree::new(params.seed).child("training", 0);
    let mut order = Order::new(data.len(), seed.child("order", 0));
    let schedule = pipeline.schedule();
    let kind = pipeline.scheduler().prediction_type;
    let (start, first_step) = (Instant::now(), step);
    let mut losses = Vec::with_capacity(params.steps.saturating_sub(step).min(1 << 20));
    while step < params.steps {
        let draw = draw(data, params, schedule, &mut order, &seed, step, &device)?;
        let t = draw.t.clone();
        let pair = objective.pair(schedule, draw)?;
        let value = unet.forward(pair.x_t.clone(), &t, &mut NoTap)?;
        let eps = Prediction { kind, value }.epsilon(pair.x_t, &t, schedule)?;
        let loss = params.loss.of(eps, pair.target);
        let loss_value = loss.clone().inner().into_scalar::<f32>();
        if !loss_value.is_finite() {
            return Err(AttackError::Diverged { step, loss: loss_value });
        }
        let gradients = parameters::gradients(&unet, loss.backward());
        let grad_norm = global_norm(&gradients);
        if !grad_norm.is_finite() {
            return Err(AttackError::Diverged { step, loss: f32::NAN });
        }
        let scale = (params.max_grad_norm / grad_norm).min(1.0);
        let learning_rate = params.learning_rate_at(step);
        optimizer.update(&mut values, gradients, scale, learning_rate);
        unet = parameters::replaced(unet, &values);
        ema.update(&values);
        losses.push(loss_value);
        step += 1;

        let samples = ((step - first_step) * params.batch) as f64;
        let samples_per_second = samples / start.elapsed().as_secs_f64().max(1e-9);
        monitor.step(&StepReport { step, steps: params.steps, loss: loss_value, grad_norm, learning_rate, samples_per_second });
        if monitor.cancelled() && step < params.steps {
            save(step, &values, &ema, &optimizer)?;
            return Err(AttackError::Cancelled { step });
        }
        if step % params.checkpoint_every == 0 || step == params.steps {
            save(step, &values, &ema, &optimizer)?;
        }
    }
    let elapsed = start.elapsed();
    let samples = ((step - first_step) * params.batch) as f64;
    Ok(Trained {
        pipeline: pipeline.with_unet(parameters::replaced(unet, &ema.values)),
        losses,
        elapsed,
        samples_per_second: samples / elapsed.as_secs_f64().max(1e-9),
    })
}

fn draw(
    data: &Dataset,
    params: &TrainingParams,
    schedule: &NoiseSchedule,
    order: &mut Order,
    seed: &SeedTree,
    step: usize,
    device: &Device,
) -> Result<Draw, AttackError> {
    let seed = seed.child("step", step as u64);
    let mut rng = seed.child("samples", 0).rng();
    let indices = order.batch(step, params.batch);
    let t = (0..params.batch).map(|_| rng.random_range(0..schedule.len())).collect();
    let flip: Vec<bool> = (0..params.batch).map(|_| params.horizontal_flip && rng.random()).collect();
    let images = data.batch(&indices, &flip, device);
    // One stream for the whole batch: the batch is part of the run's definition.
    let eps = seed.noise(0, 1).normal([1, params.batch * data.shape().channels, data.shape().height, data.shape().width], device)?;
    let eps = eps.reshape(data.shape().batched(params.batch));
    Ok(Draw { indices, images, eps, t, seed })
}

/// The root of the sum of the squares of all gradients.
fn global_norm(gradients: &Flat) -> f64 {
    let squares: Vec<Tensor<1>> = gradients.values().map(|gradient| gradient.clone().square().sum()).collect();
    if squares.is_empty() {
        return 0.0;
    }
    f64::from(Tensor::cat(squares, 0).sum().into_scalar::<f32>()).sqrt()
}

/// Everything that decides how a run goes, but the data's content.
fn run_description(pipeline: &Pipeline, data: &Dataset, objective: &dyn Objective, params: &TrainingParams) -> String {
    let params = TrainingParams { checkpoint_every: 1, ..params.clone() }; // does not change the outcome
    format!("{} | {params:?} | {:?} | {:?} | {} images", objective.describe(), pipeline.config(), pipeline.scheduler(), data.len())
}

/// The order of the images: one permutation an epoch.
struct Order {
    seed: SeedTree,
    count: usize,
    epoch: Option<usize>,
    permutation: Vec<usize>,
}

impl Order {
    fn new(count: usize, seed: SeedTree) -> Self {
        Self { seed, count, epoch: None, permutation: (0..count).collect() }
    }

    fn batch(&mut self, step: usize, batch: usize) -> Vec<usize> {
        (step * batch..(step + 1) * batch).map(|position| self.at(position)).collect()
    }

    fn at(&mut self, position: usize) -> usize {
        let epoch = position / self.count;
        if self.epoch != Some(epoch) {
            self.permutation = (0..self.count).collect();
            self.permutation.shuffle(&mut self.seed.child("epoch", epoch as u64).rng());
            self.epoch = Some(epoch);
        }
        self.permutation[position % self.count]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_sees_every_image_once_and_does_not_depend_on_the_history() {
        let mut order = Order::new(10, SeedTree::new(3));
        let all: Vec<usize> = (0..5).flat_map(|step| order.batch(step, 4)).collect();
        let mut first: Vec<usize> = all[..10].to_vec();
        first.sort_unstable();
        assert_eq!(first, (0..10).collect::<Vec<_>>());
        assert_ne!(all[..10], all[10..20]);
        assert_eq!(Order::new(10, SeedTree::new(3)).batch(3, 4), all[12..16]);
    }

    #[test]
    fn learning_rate_warms_up_and_falls_to_its_share() {
        let params = TrainingParams { steps: 100, warmup_steps: 10, learning_rate: 2.0, ..Default::default() };
        assert!((params.learning_rate_at(0) - 0.2).abs() < 1e-12);
        assert!((params.learning_rate_at(10) - 2.0).abs() < 1e-12);
        assert!((params.learning_rate_at(55) - 1.1).abs() < 1e-12);
        assert!((params.learning_rate_at(100) - 0.2).abs() < 1e-12);
    }

    #[test]
    fn losses_of_known_differences() {
        let device = Device::flex();
        let prediction = Tensor::<1>::from_floats([0.5, -2.0, 0.0, 1.0], &device).reshape([1, 1, 2, 2]);
        let target = prediction.zeros_like();
        let value = |loss: Loss| loss.of(prediction.clone(), target.clone()).into_scalar::<f32>();
        assert!((value(Loss::L2) - (0.25 + 4.0 + 1.0) / 4.0).abs() < 1e-6);
        assert!((value(Loss::L1) - 3.5 / 4.0).abs() < 1e-6);
        assert!((value(Loss::Huber) - (0.125 + 1.5 + 0.5) / 4.0).abs() < 1e-6);
    }

    #[test]
    fn ranges_are_checked() {
        let bad = [
            TrainingParams { steps: 0, ..Default::default() },
            TrainingParams { batch: 0, ..Default::default() },
            TrainingParams { learning_rate: f64::NAN, ..Default::default() },
            TrainingParams { ema_decay: 1.0, ..Default::default() },
            TrainingParams { max_grad_norm: 0.0, ..Default::default() },
            TrainingParams { checkpoint_every: 0, ..Default::default() },
        ];
        for params in bad {
            assert!(params.check().is_err(), "{params:?}");
        }
        assert!(TrainingParams::default().check().is_ok());
    }
}
