//! # The judge: what a generated picture shows
//!
//! A small classifier with one answer an attribute (object, style, colour, background), trained on drawn pictures only and
//! apart from every generator. What it says of generated pictures is a measurement with an error of its own: its accuracy on
//! drawn pictures is always stated beside it.
//!
//! ## Notation
//! | symbol | shape |
//! |---|---|
//! | pictures | `[B, 3, 32, 32]` in [-1, 1] |
//! | logits | `[B, objects + styles + colours + backgrounds]`, 16 times the network's outputs |
//!
//! ## Deviations
//! Training pictures carry Gaussian noise of a random level up to [`JudgeParams::largest_noise`]: a generator's pictures are
//! not as crisp as drawn ones.
//!
//! ## Fails when
//! a picture shows nothing that it knows: it always answers, so a rate of 1 / objects is what noise gets.

use burn::tensor::{Device, Tensor, activation::log_softmax};
use depurate_diffusion::{
    image_tower::{ImageTower, ImageTowerConfig},
    noise::{NoiseSource, SeedTree},
};
use depurate_training::{Monitor, Optimised, StateFile, TrainingParams, optimise};
use rand::RngExt;
use serde::{Deserialize, Serialize};

use super::{Composition, Sprites, pictures};
use crate::AttackError;

/// What the tower's outputs are multiplied by: a mean over an image moves little from picture to picture, and the linear layer
/// would take thousands of steps to grow by as much.
const LOGIT_SCALE: f64 = 16.0;
/// Pictures that are judged at once.
const JUDGED_AT_ONCE: usize = 64;

/// How a judge is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JudgeParams {
    /// Channels of each level.
    pub widths: Vec<usize>,
    /// Largest standard deviation of the noise on training pictures.
    pub largest_noise: f64,
}

impl Default for JudgeParams {
    fn default() -> Self {
        Self {
            widths: vec![32, 64, 128],
            largest_noise: 0.15,
        }
    }
}

/// How often each attribute is judged right, over `n` pictures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Pictures.
    pub n: usize,
    /// Pictures whose object is judged right.
    pub object: usize,
    /// Whose style is.
    pub style: usize,
    /// Whose colour is.
    pub color: usize,
    /// Whose background is.
    pub background: usize,
}

impl Accuracy {
    /// Compares what was judged with what was asked for.
    pub fn of(judged: &[Composition], asked: &[Composition]) -> Self {
        let count = |same: fn(&Composition, &Composition) -> bool| {
            judged.iter().zip(asked).filter(|(a, b)| same(a, b)).count()
        };
        Self {
            n: judged.len().min(asked.len()),
            object: count(|a, b| a.object == b.object),
            style: count(|a, b| a.style == b.style),
            color: count(|a, b| a.color == b.color),
            background: count(|a, b| a.background == b.background),
        }
    }
}

/// The judge. See the [module](self).
#[derive(Debug, Clone)]
pub struct Judge {
    tower: ImageTower,
    objects: usize,
    styles: usize,
}

impl Judge {
    /// A judge around a trained `tower` for the attributes of `sprites`.
    ///
    /// # Errors
    /// When the tower's outputs are not as many as there are attributes' values.
    pub fn new(tower: ImageTower, sprites: &Sprites) -> Result<Self, AttackError> {
        let outputs = tower.config().outputs;
        if outputs != n_outputs(sprites) {
            return Err(AttackError::Params {
                what: "outputs of the judge",
                got: outputs.to_string(),
                allowed: "as many as there are objects, styles, colours and backgrounds",
            });
        }
        Ok(Self {
            tower,
            objects: sprites.objects().len(),
            styles: sprites.styles().len(),
        })
    }

    /// The network.
    pub fn tower(&self) -> &ImageTower {
        &self.tower
    }

    /// What pictures `[N, 3, 32, 32]` in [-1, 1] show.
    ///
    /// # Errors
    /// When the shape does not fit.
    pub fn judge(&self, pictures: &Tensor<4>) -> Result<Vec<Composition>, AttackError> {
        let [count, ..] = pictures.dims();
        let mut judged = Vec::with_capacity(count);
        for start in (0..count).step_by(JUDGED_AT_ONCE) {
            let batch = JUDGED_AT_ONCE.min(count - start);
            let logits = self
                .tower
                .forward(pictures.clone().narrow(0, start, batch))?;
            let values: Vec<f32> = logits.into_data().iter::<f32>().collect();
            let width = values.len() / batch;
            judged.extend(values.chunks_exact(width).map(|row| self.reading(row)));
        }
        Ok(judged)
    }

    /// What the judge's last level sees, `[N, features]`: the space in which sets of pictures are compared.
    ///
    /// # Errors
    /// When the shape does not fit.
    pub fn features(&self, pictures: Tensor<4>) -> Result<Tensor<2>, AttackError> {
        Ok(self.tower.features(pictures)?)
    }

    fn reading(&self, logits: &[f32]) -> Composition {
        let colors = Composition::colors().len();
        let (object, rest) = logits.split_at(self.objects);
        let (style, rest) = rest.split_at(self.styles);
        let (color, background) = rest.split_at(colors);
        Composition {
            object: largest(object),
            style: largest(style),
            color: largest(color),
            background: largest(background),
        }
    }
}

fn largest(values: &[f32]) -> usize {
    let by_value = |a: &(usize, &f32), b: &(usize, &f32)| a.1.total_cmp(b.1);
    values
        .iter()
        .enumerate()
        .max_by(by_value)
        .map_or(0, |(i, _)| i)
}

fn n_outputs(sprites: &Sprites) -> usize {
    let (colors, backgrounds) = (
        Composition::colors().len(),
        Composition::backgrounds().len(),
    );
    sprites.objects().len() + sprites.styles().len() + colors + backgrounds
}

/// Trains a judge on every composition, held-out ones included: it measures, it does not generate.
///
/// # Errors
/// As [`optimise`].
pub fn train_judge(
    sprites: &Sprites,
    params: &JudgeParams,
    training: &TrainingParams,
    device: &Device,
    state: Option<&StateFile>,
    monitor: &dyn Monitor,
) -> Result<(Judge, Optimised<ImageTower>), AttackError> {
    training.check()?;
    let config = ImageTowerConfig {
        channels: 3,
        widths: params.widths.clone(),
        groups: 8,
        outputs: n_outputs(sprites),
    };
    let seed = SeedTree::new(training.seed).child("judge", 0);
    let tower = ImageTower::new(&config, &seed.child("weights", 0), device)?;
    let all = sprites.compositions();
    let sizes = [
        sprites.objects().len(),
        sprites.styles().len(),
        Composition::colors().len(),
        Composition::backgrounds().len(),
    ];
    let mut loss_of = |tower: &ImageTower, step: usize| {
        let seed = seed.child("step", step as u64);
        let mut rng = seed.rng();
        let chosen: Vec<Composition> = (0..training.batch)
            .map(|_| all[rng.random_range(0..all.len())])
            .collect();
        let pictures = pictures(sprites, &chosen, &mut rng, device);
        let noise = seed
            .noise(0, training.batch)
            .normal(pictures.dims(), device)?;
        let level = rng.random_range(0.0..=params.largest_noise.max(0.0));
        let logits = tower.forward(pictures + noise * level)? * LOGIT_SCALE;
        let mut start = 0;
        let mut loss = Tensor::zeros([1], device);
        for (part, size) in sizes.into_iter().enumerate() {
            let answers = chosen
                .iter()
                .map(|c| [c.object, c.style, c.color, c.background][part]);
            loss = loss + cross_entropy(logits.clone().narrow(1, start, size), answers);
            start += size;
        }
        Ok(loss)
    };
    let learning_rate = |step| training.learning_rate_at(step);
    let run = format!("judge | {params:?} | {training:?} | {sizes:?}");
    let how = training.optimisation(run, &learning_rate);
    let done = optimise(tower, &how, state, monitor, &mut loss_of)?;
    Ok((Judge::new(done.module.clone(), sprites)?, done))
}

/// Mean cross-entropy `[1]` of `logits [B, n]` against the right answers.
fn cross_entropy(logits: Tensor<2>, answers: impl Iterator<Item = usize>) -> Tensor<1> {
    let [batch, n] = logits.dims();
    let mut right = vec![0.0_f32; batch * n];
    for (row, answer) in answers.enumerate().take(batch) {
        right[row * n + answer] = 1.0;
    }
    let right = Tensor::<1>::from_floats(&right[..], &logits.device()).reshape([batch, n]);
    -(log_softmax(logits, 1) * right).sum() / batch as f64
}
