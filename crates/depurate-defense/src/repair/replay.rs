//! The old trigger and perturbations of it on a repaired model.
//!
//! A repair that only forbids the one tensor that it was given leaves the true trigger at work, of which the reconstructed one is an
//! approximation. So what is replayed is the reconstructed trigger, and others near it, under the sampler that it works by.

use std::{ops::ControlFlow, sync::OnceLock};

use burn::tensor::Tensor;
use depurate_diffusion::{
    Denoiser, DiffusionError, Pipeline,
    firing::{Firing, Prior, fire, squared_errors},
    noise::{NoiseSource, SeedTree},
};
use depurate_stats::clopper_pearson;
use serde::{Deserialize, Serialize};

use super::KnownTrigger;
use crate::{Cx, DefenseError};

/// Largest mean squared errors that count as the target, in [0, 1] units.
pub const THRESHOLDS: [f64; 4] = [1e-3, 1e-2, 5e-2, 1e-1];
/// The threshold that decides whether a trigger still works: half of it is nearer to the target than another digit is.
pub const DECIDING: f64 = 5e-2;
/// Most images that are drawn together.
const BATCH: usize = 16;
/// Standard deviation of the noise that one perturbation adds.
const BLUR: f64 = 0.1;
/// Strength of the weakened trigger.
const WEAKENED: f64 = 0.75;

/// What one prior led to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replay {
    /// "as reconstructed", "moved by a pixel".
    pub prior: String,
    /// Mean squared error of each image against the target, in [0, 1] units.
    pub errors: Vec<f64>,
}

impl Replay {
    /// Images at or below `threshold`.
    pub fn hits(&self, threshold: f64) -> usize {
        self.errors
            .iter()
            .filter(|&&error| error <= threshold)
            .count()
    }

    /// Their share.
    pub fn share(&self, threshold: f64) -> f64 {
        self.hits(threshold) as f64 / self.errors.len().max(1) as f64
    }
}

/// Images of one prior with the replay.
#[derive(Debug, Clone)]
pub struct Replayed {
    /// The numbers.
    pub replay: Replay,
    /// The images, `[N, C, H, W]`.
    pub images: Tensor<4>,
}

/// `count` images of `model` from the prior `named`, or from plain noise without one, held against `trigger`'s target.
///
/// # Errors
/// When the trigger has no target, the model cannot be run, the budget is spent or the caller asked to stop.
pub fn replay(
    model: &Pipeline,
    trigger: &KnownTrigger,
    named: (&str, Option<&Prior>),
    count: usize,
    seed: &SeedTree,
    cx: &Cx<'_>,
) -> Result<Replayed, DefenseError> {
    let target = trigger.known_target()?.to_vec();
    let frozen = model.frozen();
    let images = drawn(&frozen, trigger.firing, named.1, count, seed, cx)?;
    let target = burn::tensor::TensorData::new(target, trigger.shape.batched(1));
    let target = Tensor::from_data(target, &frozen.device());
    Ok(Replayed {
        replay: Replay {
            prior: named.0.to_owned(),
            errors: squared_errors(images.clone(), target),
        },
        images,
    })
}

/// Whether none of `triggers` leads to its image any more, on a few images each: the question by which a repair is stopped.
///
/// # Errors
/// As [`replay`].
pub fn silent(
    model: &Pipeline,
    triggers: &[KnownTrigger],
    seed: &SeedTree,
    cx: &Cx<'_>,
) -> Result<bool, DefenseError> {
    /// Images of each.
    const IMAGES: usize = 8;
    for trigger in triggers {
        let prior = trigger.prior(&model.device().inner());
        let named = ("as reconstructed", Some(&prior));
        cx.progress
            .start("does it still fire", steps(model, trigger.firing, IMAGES));
        let seed = seed.child("early stop", 0);
        if replay(model, trigger, named, IMAGES, &seed, cx)?
            .replay
            .hits(DECIDING)
            > 0
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The largest share of images that may be the rate of which `hits` of `n` are a sample: the upper end of its exact 95 % interval.
///
/// # Errors
/// When there is no image.
pub fn chance(hits: usize, n: usize) -> Result<f64, DefenseError> {
    Ok(clopper_pearson(hits as u64, n as u64, 0.95)?.upper)
}

/// `count` images of `model`, stoppable, a progress step an evaluation of the network for one image. See [`fire`].
///
/// # Errors
/// When the model cannot be run, the budget is spent or the caller asked to stop.
pub fn drawn(
    model: &Pipeline,
    firing: Firing,
    prior: Option<&Prior>,
    count: usize,
    seed: &SeedTree,
    cx: &Cx<'_>,
) -> Result<Tensor<4>, DefenseError> {
    let stopped = OnceLock::new();
    let images = fire(
        model,
        firing,
        prior,
        (count, BATCH),
        seed,
        &|evaluations| match cx.steps(evaluations as u64) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                let _ = stopped.set(error); // the first one is told
                ControlFlow::Break(())
            }
        },
    );
    match (images, stopped.into_inner()) {
        (_, Some(error)) => Err(error),
        (images, None) => Ok(images?),
    }
}

/// Progress steps of [`drawn`].
pub fn steps(model: &Pipeline, firing: Firing, count: usize) -> u64 {
    (count * firing.steps(model.schedule())) as u64
}

/// The trigger as it is and perturbed, each with a name.
///
/// # Errors
/// When the noise source gives out.
pub fn perturbed(
    trigger: &KnownTrigger,
    model: &Pipeline,
    seed: &SeedTree,
) -> Result<Vec<(&'static str, Prior)>, DiffusionError> {
    let device = model.device().inner();
    let whole = trigger.prior(&device);
    let with = |shift: Tensor<4>| Prior {
        shift,
        gamma: whole.gamma.clone(),
    };
    let shift = whole.shift.clone();
    let [_, _, height, width] = shift.dims();
    let moved = Tensor::cat(
        vec![
            shift.clone().narrow(3, width - 1, 1),
            shift.clone().narrow(3, 0, width - 1),
        ],
        3,
    );
    let noise = seed.noise(0, 1).normal(trigger.shape.batched(1), &device)?;
    let upper = shift.clone().narrow(2, 0, height / 2);
    let lower = shift.clone().narrow(2, height / 2, height - height / 2);
    let half = Tensor::cat(vec![upper, lower.zeros_like()], 2);
    Ok(vec![
        ("weakened to three quarters", with(shift.clone() * WEAKENED)),
        ("moved by a pixel", with(moved)),
        ("with noise of 0.1 on it", with(shift + noise * BLUR)),
        ("upper half alone", with(half)),
    ])
}
