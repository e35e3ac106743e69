//! # Training the denoiser of latents
//!
//! ## Paper
//! Rombach et al., CVPR 2022, arXiv:2112.10752, eq. (3): `E || eps - eps_theta(z_t, t, tau(y)) ||^2`. A part of the captions is
//! the empty prompt: classifier-free guidance, Ho and Salimans, arXiv:2207.12598, algorithm 1.
//!
//! ## Deviations
//! The pictures are drawn and encoded once (the posterior's mean, scaled); captions and noise are new at every step. The text
//! encoder and the autoencoder are frozen.

use burn::tensor::{Device, Tensor, TensorData};
use depurate_diffusion::{
    NoTap,
    autoencoder_kl::AutoencoderKl,
    clip_text::ClipText,
    clip_tokenizer::ClipTokenizer,
    noise::{NoiseSource, SeedTree},
    schedule::NoiseSchedule,
    unet2d_condition::{UNet2DCondition, UNet2DConditionConfig},
};
use depurate_training::{Monitor, Optimised, StateFile, TrainingParams, optimise};
use rand::RngExt;

use super::{Composition, Sprites, autoencoder::shown, pictures, training_caption};
use crate::AttackError;

/// Pictures that are encoded at once.
const ENCODED_AT_ONCE: usize = 64;

/// Latents of drawn pictures, with what they show.
#[derive(Debug, Clone)]
pub struct Latents {
    shape: [usize; 3],
    values: Vec<f32>,
    of: Vec<Composition>,
}

impl Latents {
    /// Draws every composition that is not held out `each` times and encodes the pictures; latents are multiplied by the
    /// autoencoder's scaling factor. `each_batch` is told the share that is done.
    ///
    /// # Errors
    /// When the autoencoder does not take such pictures.
    pub fn encode(
        sprites: &Sprites,
        autoencoder: &AutoencoderKl,
        each: usize,
        seed: &SeedTree,
        device: &Device,
        each_batch: &mut dyn FnMut(f64),
    ) -> Result<Self, AttackError> {
        let of: Vec<Composition> = shown(sprites).repeat(each.max(1));
        let mut rng = seed.rng();
        let (mut shape, mut values) = ([0; 3], vec![]);
        let mut done = 0;
        for batch in of.chunks(ENCODED_AT_ONCE) {
            let mean = autoencoder
                .encode(pictures(sprites, batch, &mut rng, device))?
                .mean;
            let [_, channels, height, width] = mean.dims();
            shape = [channels, height, width];
            let scaled = mean * autoencoder.config().scaling_factor;
            values.extend(scaled.into_data().iter::<f32>());
            done += batch.len();
            each_batch(done as f64 / of.len() as f64);
        }
        Ok(Self { shape, values, of })
    }

    /// Latents `[B, C, h, w]` at `indices`.
    fn batch(&self, indices: &[usize], device: &Device) -> Tensor<4> {
        let size: usize = self.shape.iter().product();
        let values: Vec<f32> = indices
            .iter()
            .flat_map(|i| &self.values[i * size..(i + 1) * size])
            .copied()
            .collect();
        let [channels, height, width] = self.shape;
        let shape = [indices.len(), channels, height, width];
        Tensor::from_data(TensorData::new(values, shape), device)
    }
}

/// What the denoiser is conditioned by, frozen.
#[derive(Debug, Clone, Copy)]
pub struct Frozen<'a> {
    /// The tokenizer.
    pub tokenizer: &'a ClipTokenizer,
    /// The text encoder, without autodiff.
    pub text_encoder: &'a ClipText,
    /// The noise schedule.
    pub schedule: &'a NoiseSchedule,
    /// Share of captions that are replaced by the empty prompt.
    pub dropout: f64,
}

/// Trains `start` to predict the noise in latents, given captions.
///
/// # Errors
/// As [`optimise`], or when a caption cannot be encoded.
#[expect(clippy::too_many_arguments, reason = "data, conditioning and one run")]
pub fn train_denoiser(
    start: UNet2DCondition,
    sprites: &Sprites,
    latents: &Latents,
    frozen: Frozen<'_>,
    training: &TrainingParams,
    device: &Device,
    state: Option<&StateFile>,
    monitor: &dyn Monitor,
) -> Result<Optimised<UNet2DCondition>, AttackError> {
    training.check()?;
    let config: UNet2DConditionConfig = start.config().clone();
    let seed = SeedTree::new(training.seed).child("denoiser", 0);
    let Frozen {
        tokenizer,
        text_encoder,
        schedule,
        dropout,
    } = frozen;
    let mut loss_of = |unet: &UNet2DCondition, step: usize| {
        let seed = seed.child("step", step as u64);
        let mut rng = seed.rng();
        let chosen: Vec<usize> = (0..training.batch)
            .map(|_| rng.random_range(0..latents.of.len()))
            .collect();
        let t: Vec<usize> = (0..training.batch)
            .map(|_| rng.random_range(0..schedule.len()))
            .collect();
        let ids = chosen
            .iter()
            .map(|&i| {
                let caption = training_caption(sprites, latents.of[i], &mut rng);
                let shown = if rng.random_bool(dropout) {
                    ""
                } else {
                    &caption
                };
                Ok(tokenizer.encode(shown)?.ids)
            })
            .collect::<Result<Vec<_>, AttackError>>()?;
        let states = Tensor::from_inner(text_encoder.forward(&ids)?.last);
        let z = latents.batch(&chosen, device);
        let eps = seed.noise(0, training.batch).normal(z.dims(), device)?;
        let z_t = schedule.add_noise(z, eps.clone(), &t)?;
        let predicted = unet.forward(z_t, &t, states, None, &mut NoTap)?;
        Ok(training.loss.of(predicted, eps))
    };
    let learning_rate = |step| training.learning_rate_at(step);
    let run = format!(
        "denoiser | {config:?} | {training:?} | {} latents",
        latents.of.len()
    );
    let how = training.optimisation(run, &learning_rate);
    optimise(start, &how, state, monitor, &mut loss_of)
}
