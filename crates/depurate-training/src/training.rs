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
mod optimise;
mod params;

use std::time::Duration;

use burn::tensor::Tensor;
use depurate_diffusion::{
    Denoiser, NoTap, Pipeline, Prediction, noise::SeedTree, schedule::NoiseSchedule, unet2d::UNet2D,
};
use serde::{Deserialize, Serialize};

pub use crate::optimizer::AdamParams;
use crate::{Dataset, TrainingError, checkpointing::StateFile};
use draw::draw;
pub use draw::{Draw, Order};
pub use optimise::{Optimisation, Optimised, optimise, optimise_until};
pub use params::{Loss, TrainingParams};

/// A batch as the network sees it; it may be larger than what was drawn.
#[derive(Debug, Clone)]
pub struct TrainingPair {
    /// The network's input, `[B, C, H, W]`.
    pub x_t: Tensor<4>,
    /// Training timestep of each sample.
    pub t: Vec<usize>,
    /// The noise that it shall see there, `[B, C, H, W]`.
    pub target: Tensor<4>,
}

/// What a model is trained to do.
pub trait Objective {
    /// The network's input and regression target for a draw.
    ///
    /// # Errors
    /// When the draw does not fit the objective.
    fn pair(&self, schedule: &NoiseSchedule, draw: Draw) -> Result<TrainingPair, TrainingError>;
    /// What tells this objective from others in a resumable state.
    fn describe(&self) -> String;
}

/// Benign training, eq. (14): `x_t = a_t x_0 + s_t eps`, target `eps`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Denoising;

impl Objective for Denoising {
    fn pair(&self, schedule: &NoiseSchedule, draw: Draw) -> Result<TrainingPair, TrainingError> {
        let x_t = schedule.add_noise(draw.images, draw.eps.clone(), &draw.t)?;
        Ok(TrainingPair {
            x_t,
            t: draw.t,
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
    /// Steps done, earlier processes included.
    pub steps: usize,
}

/// Asked with the averaged weights whenever a state is kept, and with the steps done; `true` ends the run there.
pub type Enough<'a, M, E> = &'a mut dyn FnMut(&M, usize) -> Result<bool, E>;

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
) -> Result<Trained, TrainingError> {
    let never = &mut |_: &Pipeline, _| Ok(false);
    train_until(pipeline, data, objective, params, state, monitor, never)
}

/// As [`train`], and asks `enough` every [`TrainingParams::checkpoint_every`] steps whether to end the run early.
///
/// # Errors
/// As [`train`], and those of `enough` as they are.
pub fn train_until<E: From<TrainingError>>(
    pipeline: &Pipeline,
    data: &Dataset,
    objective: &dyn Objective,
    params: &TrainingParams,
    state: Option<&StateFile>,
    monitor: &dyn Monitor,
    enough: Enough<'_, Pipeline, E>,
) -> Result<Trained, E> {
    params.check()?;
    if data.shape() != pipeline.sample_shape() {
        return Err(TrainingError::Params {
            what: "shape of the images",
            got: format!("{:?}", data.shape()),
            allowed: "the model's",
        }
        .into());
    }
    let device = pipeline.device();
    let seed = SeedTree::new(params.seed).child("training", 0);
    let mut order = Order::new(data.len(), seed.child("order", 0));
    let schedule = pipeline.schedule();
    let kind = pipeline.scheduler().prediction_type;
    let mut loss_of = |unet: &UNet2D, step: usize| -> Result<Tensor<1>, TrainingError> {
        let draw = draw(data, params, schedule, &mut order, &seed, step, &device)?;
        let pair = objective.pair(schedule, draw)?;
        let value = unet.forward(pair.x_t.clone(), &pair.t, &mut NoTap)?;
        let eps = Prediction { kind, value }.epsilon(pair.x_t, &pair.t, schedule)?;
        Ok(params.loss.of(eps, pair.target))
    };
    let mut enough = |unet: &UNet2D, step: usize| enough(&pipeline.with_unet(unet.clone()), step);
    let learning_rate = |step| params.learning_rate_at(step);
    let run = run_description(pipeline, data, objective, params);
    let how = params.optimisation(run, &learning_rate);
    let unet = pipeline.unet().clone();
    let mut loss_of = |unet: &UNet2D, step: usize| loss_of(unet, step).map_err(E::from);
    let done = optimise_until(unet, &how, state, monitor, &mut loss_of, &mut enough)?;
    Ok(Trained {
        pipeline: pipeline.with_unet(done.module),
        losses: done.losses,
        elapsed: done.elapsed,
        samples_per_second: done.samples_per_second,
        steps: done.steps,
    })
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
