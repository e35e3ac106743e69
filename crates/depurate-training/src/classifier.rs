//! A small classifier of images, for the features by which sets of images are compared.
//!
//! ## Cost
//! One forward and backward pass of an [`ImageTower`] a sample.

use burn::tensor::{Device, Int, Tensor, TensorData, activation::log_softmax};
use depurate_diffusion::{
    image_tower::{ImageTower, ImageTowerConfig},
    noise::SeedTree,
};

use crate::{
    Dataset, Monitor, Optimised, Order, StateFile, TrainingError, TrainingParams, optimise,
};

/// Trains a classifier of `labels`, one for each image of `data`, by cross-entropy. Images are moved by up to two pixels.
///
/// # Errors
/// When labels do not fit the images or the outputs of `config`, and those of [`optimise`].
pub fn classifier(
    config: &ImageTowerConfig,
    data: &Dataset,
    labels: &[u8],
    params: &TrainingParams,
    device: &Device,
    state: Option<&StateFile>,
    monitor: &dyn Monitor,
) -> Result<Optimised<ImageTower>, TrainingError> {
    params.check()?;
    if labels.len() != data.len()
        || labels
            .iter()
            .any(|&label| usize::from(label) >= config.outputs)
    {
        return Err(TrainingError::Params {
            what: "labels",
            got: format!("{} for {} images", labels.len(), data.len()),
            allowed: "one for each image, below the number of outputs",
        });
    }
    let seed = SeedTree::new(params.seed).child("classifier", 0);
    let mut order = Order::new(data.len(), seed.child("order", 0));
    let tower = ImageTower::new(config, &seed.child("init", 0), device)?;
    let mut loss_of = |tower: &ImageTower, step: usize| {
        let indices = order.batch(step, params.batch);
        let images = moved(data.batch(&indices, &[], device), &seed, step);
        let wanted: Vec<i32> = indices.iter().map(|&i| i32::from(labels[i])).collect();
        let wanted = Tensor::<1, Int>::from_data(TensorData::from(wanted.as_slice()), device);
        let log = log_softmax(tower.forward(images)?, 1);
        Ok(-log.gather(1, wanted.unsqueeze_dim(1)).mean())
    };
    let learning_rate = |step| params.learning_rate_at(step);
    let run = format!("classifier {config:?} {params:?} {} images", data.len());
    let how = params.optimisation(run, &learning_rate);
    optimise(tower, &how, state, monitor, &mut loss_of)
}

/// Share of `data` whose greatest output is its label.
///
/// # Errors
/// When the shapes do not fit.
pub fn accuracy(
    tower: &ImageTower,
    data: &Dataset,
    labels: &[u8],
    device: &Device,
) -> Result<f64, TrainingError> {
    let mut right = 0;
    let all: Vec<usize> = (0..data.len()).collect();
    for indices in all.chunks(64) {
        let output = tower.forward(data.batch(indices, &[], device))?;
        let best: Tensor<1, Int> = output.argmax(1).squeeze_dim(1);
        let best: Vec<i64> = best.into_data().iter::<i64>().collect();
        let hit = |(found, &i): (&i64, &usize)| *found == i64::from(labels[i]);
        right += best.iter().zip(indices).filter(|&pair| hit(pair)).count();
    }
    Ok(right as f64 / data.len().max(1) as f64)
}

/// `images [B, C, H, W]`, all moved by the same -2 to 2 pixels either way, black coming in.
fn moved(images: Tensor<4>, seed: &SeedTree, step: usize) -> Tensor<4> {
    use rand::RngExt;
    const MOST: usize = 2;
    let mut rng = seed.child("moves", step as u64).rng();
    let (down, right) = (
        rng.random_range(0..=2 * MOST),
        rng.random_range(0..=2 * MOST),
    );
    let [batch, channels, height, width] = images.dims();
    let black = Tensor::full(
        [batch, channels, height + 2 * MOST, width + 2 * MOST],
        -1.0,
        &images.device(),
    );
    let framed = black.slice_assign(
        [
            0..batch,
            0..channels,
            MOST..MOST + height,
            MOST..MOST + width,
        ],
        images,
    );
    framed.slice([
        0..batch,
        0..channels,
        down..down + height,
        right..right + width,
    ])
}
