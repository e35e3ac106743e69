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

mod draw;
mod params;

use std::time::{Duration, Instant};

use burn::tensor::Tensor;
use depurate_diffusion::{
    Denoiser, NoTap, Pipeline, Prediction, noise::SeedTree, ops, schedule::NoiseSchedule,
};
use serde::{Deserialize, Serialize};

pub use crate::optimizer::AdamParams;
use crate::{
    AttackError, Dataset,
    checkpointing::{State, StateFile},
    ema::Ema,
    optimizer::AdamW,
    parameters::{self, Flat},
};
pub use draw::Draw;
use draw::{Order, draw};
pub use params::{Loss, TrainingParams};

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
        Ok(TrainingPair {
            x_t,
            target: draw.eps,
        })
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
        return Err(AttackError::Params {
            what: "device",
            got: format!("{device:?}"),
            allowed: "one with autodiff",
        });
    }
    let run = run_description(pipeline, data, objective, params);
    let mut unet = pipeline.unet().clone();
    let mut values = parameters::values(&unet);
    let mut ema = Ema::new(params.ema_decay, values.clone());
    let mut optimizer = AdamW::new(params.adam);
    let mut step = 0;
    if let Some(State {
        step: done,
        values: stored,
        ema: average,
        first,
        second,
    }) = state
        .map(|file| file.load(&run, &values, &device))
        .transpose()?
        .flatten()
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
        Some(file) => file.save(
            &run,
            step,
            values,
            &ema.values,
            &optimizer.first,
            &optimizer.second,
        ),
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
            return Err(AttackError::Diverged {
                step,
                loss: loss_value,
            });
        }
        let gradients = parameters::gradients(&unet, loss.backward());
        let grad_norm = global_norm(&gradients);
        if !grad_norm.is_finite() {
            return Err(AttackError::Diverged {
                step,
                loss: f32::NAN,
            });
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
        monitor.step(&StepReport {
            step,
            steps: params.steps,
            loss: loss_value,
            grad_norm,
            learning_rate,
            samples_per_second,
        });
        if monitor.cancelled() && step < params.steps {
            save(step, &values, &ema, &optimizer)?;
            return Err(AttackError::Cancelled { step });
        }
        if step.is_multiple_of(params.checkpoint_every) || step == params.steps {
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

/// The root of the sum of the squares of all gradients.
fn global_norm(gradients: &Flat) -> f64 {
    let squares: Vec<Tensor<1>> = gradients
        .values()
        .map(|gradient| ops::sum_of_squares(gradient.clone()))
        .collect();
    if squares.is_empty() {
        return 0.0;
    }
    f64::from(Tensor::cat(squares, 0).sum().into_scalar::<f32>()).sqrt()
}

/// Everything that decides how a run goes, but the data's content.
fn run_description(
    pipeline: &Pipeline,
    data: &Dataset,
    objective: &dyn Objective,
    params: &TrainingParams,
) -> String {
    let params = TrainingParams {
        checkpoint_every: 1,
        ..params.clone()
    }; // does not change the outcome
    format!(
        "{} | {params:?} | {:?} | {:?} | {} images",
        objective.describe(),
        pipeline.config(),
        pipeline.scheduler(),
        data.len()
    )
}
