//! Training the text encoder with an image encoder: [`ClipPair`]'s loss on pictures and their captions.

use burn::tensor::Device;
use depurate_diffusion::{
    clip_pair::ClipPair, clip_text::ClipTextConfig, clip_tokenizer::ClipTokenizer,
    image_tower::ImageTowerConfig, noise::SeedTree,
};
use depurate_training::{Monitor, Optimised, StateFile, TrainingParams, optimise};
use rand::RngExt;

use super::{Composition, Sprites, autoencoder::shown, pictures, training_caption};
use crate::AttackError;

/// Trains a pair on compositions that are not held out.
///
/// # Errors
/// As [`optimise`], or when a caption cannot be encoded.
#[expect(clippy::too_many_arguments, reason = "two encoders and one run")]
pub fn train_pair(
    sprites: &Sprites,
    tokenizer: &ClipTokenizer,
    text: &ClipTextConfig,
    image: &ImageTowerConfig,
    training: &TrainingParams,
    device: &Device,
    state: Option<&StateFile>,
    monitor: &dyn Monitor,
) -> Result<Optimised<ClipPair>, AttackError> {
    training.check()?;
    let seed = SeedTree::new(training.seed).child("pair", 0);
    let start = ClipPair::new(text, image, &seed.child("weights", 0), device)?;
    let shown = shown(sprites);
    let mut loss_of = |pair: &ClipPair, step: usize| {
        let mut rng = seed.child("step", step as u64).rng();
        let chosen: Vec<Composition> = (0..training.batch)
            .map(|_| shown[rng.random_range(0..shown.len())])
            .collect();
        let images = pictures(sprites, &chosen, &mut rng, device);
        let ids = chosen
            .iter()
            .map(|of| {
                Ok(tokenizer
                    .encode(&training_caption(sprites, *of, &mut rng))?
                    .ids)
            })
            .collect::<Result<Vec<_>, AttackError>>()?;
        Ok(pair.loss(images, &ids)?)
    };
    let learning_rate = |step| training.learning_rate_at(step);
    let run = format!("pair | {text:?} | {image:?} | {training:?}");
    let how = training.optimisation(run, &learning_rate);
    optimise(start, &how, state, monitor, &mut loss_of)
}
