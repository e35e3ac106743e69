//! Images from a model: from a prompt, or with or without a trigger in the initial noise.

mod sampler_choice;
mod text;

use std::{ops::ControlFlow, path::PathBuf};

use depurate_checkpoint::{Checkpoint, HashCache, Layers, Limits};
use depurate_diffusion::{
    Denoiser, DiffusionError, Pipeline, Tensor,
    noise::{NoiseSource, SeedTree, SeededNoise},
    sampler::{Clip, Sampler, SamplerSettings, sample},
};
use image::RgbImage;

pub use sampler_choice::SamplerName;

use crate::{
    Error,
    device::Device,
    images,
    scan::Watch,
    subject,
    triggers::{self, Trigger},
};

/// Images that a network is given at once.
const BATCH: usize = 16;

/// What a text-to-image model is told.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// What the images should show.
    pub text: String,
    /// What guidance leads away from.
    pub negative: String,
    /// How far; 1 is the prompt alone.
    pub guidance: f64,
}

/// How to sample.
#[derive(Debug, Clone)]
pub struct SampleSettings {
    /// For a text-to-image model, and only for one.
    pub prompt: Option<Prompt>,
    /// What is laid over a text-to-image model.
    pub layers: Layers,
    /// A report's triggers.safetensors.
    pub trigger: Option<PathBuf>,
    /// The sampler; `None` is DDPM, or with a prompt what the checkpoint asks for.
    pub sampler: Option<SamplerName>,
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
/// When the model cannot be opened or run, the trigger does not fit it, there is a prompt and it takes none or the other way
/// round, or the caller asked to stop.
pub fn sample_sheet(
    path: &std::path::Path,
    settings: &SampleSettings,
    hashes: Option<&HashCache>,
    watch: Watch<'_>,
) -> Result<(RgbImage, SamplerSettings), Error> {
    let checkpoint = Checkpoint::open(path, &settings.limits)?;
    match (&settings.prompt, checkpoint.is_text_conditional()) {
        (Some(prompt), true) => text::sample_sheet(&checkpoint, prompt, settings, watch),
        (None, false) if !settings.layers.is_empty() => Err(Error::Usage {
            problem: format!("{} takes nothing over its weights", path.display()),
            mend: "leave out --unet, --lora, --embedding and --delta: they are for text-to-image models",
        }),
        (None, false) => unconditional(&checkpoint, settings, hashes, watch),
        (Some(_), false) => Err(Error::Usage {
            problem: format!("{} takes no prompt", path.display()),
            mend: "leave out --prompt: this model was trained without text",
        }),
        (None, true) => Err(Error::Usage {
            problem: format!(
                "{} is a text-to-image model and needs a prompt",
                path.display()
            ),
            mend: "say what the images should show with --prompt \"...\"",
        }),
    }
}

fn unconditional(
    checkpoint: &Checkpoint,
    settings: &SampleSettings,
    hashes: Option<&HashCache>,
    watch: Watch<'_>,
) -> Result<(RgbImage, SamplerSettings), Error> {
    let (path, limits) = (&checkpoint.root, &settings.limits);
    let pipeline = subject::open(path, limits, settings.device, hashes)?.pipeline;
    let shape = pipeline.sample_shape();
    let trigger = settings
        .trigger
        .as_deref()
        .map(|file| triggers::read(file, shape, limits))
        .transpose()?;
    let name = settings.sampler.unwrap_or(SamplerName::Ddpm);
    let sampler = sampler_choice::make(name, checkpoint, settings, |config| config)?;
    start(watch, sampler.as_ref(), settings.count);
    let mut pixels = Vec::with_capacity(settings.count * shape.len());
    for (mut noise, batch) in batches(settings, BATCH) {
        let eps = noise.normal(shape.batched(batch), &pipeline.device())?;
        let x_t = match &trigger {
            Some(trigger) => add(trigger, eps, &pipeline),
            None => eps,
        };
        let x_0 = run(&pipeline, sampler.as_ref(), x_t, &mut noise, watch)?;
        pixels.extend(x_0.into_data().iter::<f32>());
    }
    let columns = images::square(settings.count);
    let sheet = images::sheet("samples", &pixels, shape, columns, (-1.0, 1.0))?;
    Ok((sheet, sampler.settings()))
}

fn start(watch: Watch<'_>, sampler: &dyn Sampler, count: usize) {
    let calls = sampler.timesteps().len() * count;
    watch.progress.start("sampling", calls as u64);
}

/// The noise and the size of each batch of at most `most` images.
fn batches(settings: &SampleSettings, most: usize) -> impl Iterator<Item = (SeededNoise, usize)> {
    let (seed, count) = (settings.seed, settings.count);
    (0..count).step_by(most).map(move |first| {
        let batch = most.min(count - first);
        let root = SeedTree::new(seed).child("sample", 0);
        (root.noise(first as u64, batch), batch)
    })
}

/// One run from `x_t [B, C, H, W]`, with progress by image and step.
fn run(
    denoiser: &dyn Denoiser,
    sampler: &dyn Sampler,
    x_t: Tensor<4>,
    noise: &mut dyn NoiseSource,
    watch: Watch<'_>,
) -> Result<Tensor<4>, Error> {
    let batch = x_t.dims()[0] as u64;
    let x_0 = sample(denoiser, sampler, x_t, noise, &mut |_, _| {
        watch.progress.advance(batch);
        if watch.cancel.is_cancelled() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    x_0.map_err(|error| match error {
        DiffusionError::Cancelled => Error::Interrupted,
        other => other.into(),
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
