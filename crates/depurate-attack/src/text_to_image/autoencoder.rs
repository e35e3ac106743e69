//! # Training an autoencoder of pictures
//!
//! ## Paper
//! Rombach et al., CVPR 2022, arXiv:2112.10752, sec. 3.1 and appendix G, the KL-regularised form.
//!
//! `loss = mean |x - x'| + mean (x - x')^2 + w KL(q(z|x) || N(0, 1)) / latent values`, with `w` = [`KL_WEIGHT`].
//!
//! ## Deviations
//! No perceptual and no adversarial term: pictures of 32 pixels are halved once only, and come back sharp without.

use burn::tensor::Device;
use depurate_diffusion::{
    autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig},
    noise::{NoiseSource, SeedTree},
};
use depurate_training::{Monitor, Optimised, StateFile, TrainingParams, optimise};
use rand::RngExt;

use super::{Composition, Sprites, pictures};
use crate::AttackError;

/// Weight of the divergence from the standard Gaussian.
pub const KL_WEIGHT: f64 = 1e-4;
/// Pictures from which the latents' scale is measured, and that are encoded at once.
const SCALE_BATCH: usize = 64;
const SCALE_BATCHES: usize = 8;

/// Trains an autoencoder on pictures of compositions that are not held out, and sets its scaling factor to the inverse of
/// the latents' standard deviation.
///
/// # Errors
/// As [`optimise`].
pub fn train_autoencoder(
    sprites: &Sprites,
    config: &AutoencoderKlConfig,
    training: &TrainingParams,
    device: &Device,
    state: Option<&StateFile>,
    monitor: &dyn Monitor,
) -> Result<(Optimised<AutoencoderKl>, AutoencoderKlConfig), AttackError> {
    training.check()?;
    let seed = SeedTree::new(training.seed).child("autoencoder", 0);
    let start = AutoencoderKl::new(config, &seed.child("weights", 0), device);
    let shown = shown(sprites);
    let mut loss_of = |autoencoder: &AutoencoderKl, step: usize| {
        let seed = seed.child("step", step as u64);
        let mut rng = seed.rng();
        let chosen: Vec<Composition> = (0..training.batch)
            .map(|_| shown[rng.random_range(0..shown.len())])
            .collect();
        let x = pictures(sprites, &chosen, &mut rng, device);
        let posterior = autoencoder.encode(x.clone())?;
        let shape = posterior.mean.dims();
        let eps = seed.noise(0, training.batch).normal(shape, device)?;
        let divergence = posterior.divergence().mean() / (shape[1] * shape[2] * shape[3]) as f64;
        let difference = autoencoder.decode(posterior.sample(eps))? - x;
        let error = difference.clone().abs().mean() + difference.square().mean();
        Ok(error + divergence * KL_WEIGHT)
    };
    let learning_rate = |step| training.learning_rate_at(step);
    let run = format!("autoencoder | {config:?} | {training:?}");
    let how = training.optimisation(run, &learning_rate);
    let done = optimise(start, &how, state, monitor, &mut loss_of)?;
    let scaled = AutoencoderKlConfig {
        scaling_factor: 1.0 / latent_deviation(&done.module, sprites, &seed, device)?,
        ..config.clone()
    };
    Ok((done, scaled))
}

/// The compositions that training may show.
pub(super) fn shown(sprites: &Sprites) -> Vec<Composition> {
    let all = sprites.compositions().into_iter();
    all.filter(|composition| !composition.is_held_out())
        .collect()
}

/// Root of the mean square of the latents about their mean.
fn latent_deviation(
    autoencoder: &AutoencoderKl,
    sprites: &Sprites,
    seed: &SeedTree,
    device: &Device,
) -> Result<f64, AttackError> {
    let shown = shown(sprites);
    let mut rng = seed.child("scale", 0).rng();
    let (mut sum, mut squares, mut count) = (0.0_f64, 0.0_f64, 0.0_f64);
    for _ in 0..SCALE_BATCHES {
        let chosen: Vec<Composition> = (0..SCALE_BATCH)
            .map(|_| shown[rng.random_range(0..shown.len())])
            .collect();
        let mean = autoencoder
            .encode(pictures(sprites, &chosen, &mut rng, device))?
            .mean;
        for value in mean.into_data().iter::<f32>().map(f64::from) {
            sum += value;
            squares += value * value;
            count += 1.0;
        }
    }
    Ok((squares / count - (sum / count).powi(2))
        .max(f64::MIN_POSITIVE)
        .sqrt())
}
