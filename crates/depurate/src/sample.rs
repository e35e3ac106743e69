//! Images from a model, with or without a trigger in the initial noise.

use std::{ops::ControlFlow, path::PathBuf};

use clap::ValueEnum;
use depurate_checkpoint::{HashCache, Limits};
use depurate_diffusion::{
    Denoiser, DiffusionError, Pipeline, Tensor,
    noise::{NoiseSource, SeedTree},
    sampler::{Clip, Ddim, Ddpm, Sampler, SamplerSettings, sample},
};
use image::RgbImage;

use crate::{
    Error,
    device::Device,
    images,
    scan::Watch,
    subject,
    triggers::{self, Trigger},
};

/// A family of samplers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum SamplerName {
    /// Ancestral sampling; all training steps unless said otherwise.
    #[default]
    Ddpm,
    /// Deterministic sampling (eta = 0); 50 steps unless said otherwise.
    Ddim,
}

/// Steps of [`SamplerName::Ddim`] unless said otherwise.
const DDIM_STEPS: usize = 50;
/// Images that a network is given at once.
const BATCH: usize = 16;

/// How to sample.
#[derive(Debug, Clone)]
pub struct SampleSettings {
    /// A report's triggers.safetensors.
    pub trigger: Option<PathBuf>,
    /// The sampler.
    pub sampler: SamplerName,
    /// Its steps.
    pub steps: Option<usize>,
    /// Clipping of the predicted clean sample; `None` is what the checkpoint asks for.
    pub clip: Option<Clip>,
    /// Root of all randomness.
    pub seed: u64,
    /// Number of images.
    pub count: usize,
    /// Where the model runs.
    pub device: Device,
    /// Bounds on what its files may ask for.
    pub limits: Limits,
}

/// Samples from the model at `path`: a sheet of images, and the sampler that made them. Image `i` depends on the seed
/// and `i` only; with and without trigger it starts from the same noise.
///
/// # Errors
/// When the model cannot be opened or run, the trigger does not fit it, or the caller asked to stop.
pub fn sample_sheet(
    path: &std::path::Path,
    settings: &SampleSettings,
    hashes: Option<&HashCache>,
    watch: Watch<'_>,
) -> Result<(RgbImage, SamplerSettings), Error> {
    let pipeline = subject::open(path, &settings.limits, settings.device, hashes)?.pipeline;
    let shape = pipeline.sample_shape();
    let trigger = settings
        .trigger
        .as_deref()
        .map(|file| triggers::read(file, shape, &settings.limits))
        .transpose()?;
    let sampler = sampler(&pipeline, settings)?;
    watch.progress.start(
        "sampling",
        (sampler.timesteps().len() * settings.count) as u64,
    );
    let mut pixels = Vec::with_capacity(settings.count * shape.len());
    for first in (0..settings.count).step_by(BATCH) {
        let batch = BATCH.min(settings.count - first);
        let mut noise = SeedTree::new(settings.seed)
            .child("sample", 0)
            .noise(first as u64, batch);
        let eps = noise.normal(shape.batched(batch), &pipeline.device())?;
        let x_t = match &trigger {
            Some(trigger) => add(trigger, eps, &pipeline),
            None => eps,
        };
        let x_0 = sample(&pipeline, sampler.as_ref(), x_t, &mut noise, &mut |_, _| {
            watch.progress.advance(batch as u64);
            if watch.cancel.is_cancelled() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        let x_0 = x_0.map_err(|error| match error {
            DiffusionError::Cancelled => Error::Interrupted,
            other => other.into(),
        })?;
        pixels.extend(x_0.into_data().iter::<f32>());
    }
    let sheet = images::sheet(
        "samples",
        &pixels,
        shape,
        images::square(settings.count),
        (-1.0, 1.0),
    )?;
    Ok((sheet, sampler.settings()))
}

fn sampler(pipeline: &Pipeline, settings: &SampleSettings) -> Result<Box<dyn Sampler>, Error> {
    let config = pipeline.scheduler();
    let clip = settings.clip.unwrap_or_else(|| config.clip());
    Ok(match settings.sampler {
        SamplerName::Ddpm => {
            let steps = settings.steps.unwrap_or(pipeline.schedule().len());
            Box::new(Ddpm::from_config(config, steps, clip)?)
        }
        SamplerName::Ddim => Box::new(Ddim::from_config(
            config,
            settings.steps.unwrap_or(DDIM_STEPS),
            0.0,
            clip,
        )?),
    })
}

/// `gamma * eps + shift` for every image of `eps: [B, C, H, W]`.
fn add(trigger: &Trigger, eps: Tensor<4>, pipeline: &Pipeline) -> Tensor<4> {
    let shape = pipeline.sample_shape().batched(1);
    let image = |values: &[f32]| -> Tensor<4> {
        Tensor::<1>::from_data(values, &pipeline.device()).reshape(shape)
    };
    let scaled = match &trigger.gamma {
        Some(gamma) => eps * image(gamma),
        None => eps,
    };
    scaled + image(&trigger.shift)
}
