//! Images from a text-to-image model.

use depurate_checkpoint::Checkpoint;
use depurate_diffusion::{
    TextToImage, noise::NoiseSource, sampler::SamplerSettings, schedule::SchedulerConfig,
};
use image::RgbImage;

use super::{BATCH, Prompt, SampleSettings, SamplerName, batches, run, sampler_choice, start};
use crate::{Error, images, scan::Watch};

/// Values of latents that a network is given at once, if one latent has fewer.
const BATCH_VALUES: usize = 16_384;

pub(super) fn sample_sheet(
    checkpoint: &Checkpoint,
    prompt: &Prompt,
    settings: &SampleSettings,
    watch: Watch<'_>,
) -> Result<(RgbImage, SamplerSettings), Error> {
    let device = settings.device.open();
    let (pipeline, _) =
        TextToImage::layered(checkpoint, &settings.layers, &settings.limits, &device)?;
    let pipeline = pipeline.frozen();
    let name = settings.sampler.unwrap_or(SamplerName::Own);
    let sampler = sampler_choice::make(name, checkpoint, settings, SchedulerConfig::for_latents)?;
    start(watch, sampler.as_ref(), settings.count);
    let states = |text: &str| pipeline.encode(&[text]).map(|encoded| encoded.states);
    let guidance = prompt.guidance;
    let denoiser = pipeline.guided(states(&prompt.text)?, states(&prompt.negative)?, guidance)?;
    let (latent, shape) = (pipeline.latent_shape(), pipeline.image_shape());
    let most = (BATCH_VALUES / latent.len().max(1)).clamp(1, BATCH);
    let mut pixels = Vec::with_capacity(settings.count * shape.len());
    for (mut noise, batch) in batches(settings, most) {
        let eps = noise.normal(latent.batched(batch), &device)?;
        let latents = run(&denoiser, sampler.as_ref(), eps, &mut noise, watch)?;
        let decoded = pipeline.decode(latents)?;
        pixels.extend(decoded.into_data().iter::<f32>());
    }
    let columns = images::square(settings.count);
    let sheet = images::sheet("samples", &pixels, shape, columns, (-1.0, 1.0))?;
    Ok((sheet, sampler.settings()))
}
