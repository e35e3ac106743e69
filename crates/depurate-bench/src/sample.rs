//! `sample`: what a model draws.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use depurate_attack::Pattern;
use depurate_diffusion::{
    Denoiser, Tensor,
    noise::{NoiseSource, SeedTree},
    sampler::{Clip, Ddim, Ddpm, Sampler, sample},
};
use miette::{IntoDiagnostic, Result};

use crate::{
    console::{CancelFlag, Progress, say},
    grid, model,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SamplerKind {
    Ddpm,
    Ddim,
}

/// Sample images as a PNG grid.
#[derive(Debug, Args)]
pub(crate) struct Sample {
    /// The model.
    model: PathBuf,
    /// The picture to write.
    #[arg(short, long, value_name = "PNG")]
    output: PathBuf,
    /// Number of images.
    #[arg(short, long, default_value_t = 16)]
    n: usize,
    /// Columns of the grid.
    #[arg(long, default_value_t = 8)]
    columns: usize,
    /// Pixels of the picture for one of the image.
    #[arg(long, default_value_t = 3)]
    zoom: u32,
    /// Add this trigger to the noise: a PNG or a safetensors file with `trigger`.
    #[arg(long, value_name = "FILE")]
    trigger_file: Option<PathBuf>,
    /// The sampler.
    #[arg(long, value_enum, default_value = "ddpm")]
    sampler: SamplerKind,
    /// Sampler steps; the default is every training timestep.
    #[arg(long)]
    steps: Option<usize>,
    /// Share of fresh noise in a DDIM step.
    #[arg(long, default_value_t = 0.0)]
    eta: f64,
    /// Clip the predicted image to [-1, 1] at every step, which disarms triggers.
    #[arg(long)]
    clip: bool,
    /// Seed of the noise.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Sample {
    /// Runs the command.
    pub(crate) fn run(self, cancel: &CancelFlag) -> Result<()> {
        let model = model::load(&self.model)?.frozen();
        let clip = if self.clip {
            Clip::Range(1.0)
        } else {
            Clip::None
        };
        let steps = self.steps.unwrap_or(model.schedule().len());
        let sampler: Box<dyn Sampler> = match self.sampler {
            SamplerKind::Ddpm => {
                Box::new(Ddpm::from_config(model.scheduler(), steps, clip).into_diagnostic()?)
            }
            SamplerKind::Ddim => Box::new(
                Ddim::from_config(model.scheduler(), steps, self.eta, clip).into_diagnostic()?,
            ),
        };
        let shape = model.sample_shape();
        let device = model.device();
        let mut noise = SeedTree::new(self.seed).child("sample", 0).noise(0, self.n);
        let mut x_t = noise
            .normal(shape.batched(self.n), &device)
            .into_diagnostic()?;
        if let Some(path) = &self.trigger_file {
            x_t = x_t
                + Pattern::from_file(path, "trigger", shape)
                    .into_diagnostic()?
                    .tensor(&device);
        }
        let progress = Progress::new("sample", 1000, cancel);
        let start = std::time::Instant::now();
        let images: Tensor<4> = sample(&model, sampler.as_ref(), x_t, &mut noise, &mut |at, _| {
            progress.share(at.done as f64 / at.total as f64)
        })
        .into_diagnostic()?;
        progress.finish();
        let calls = (self.n * sampler.timesteps().len()) as f64;
        say(&format!(
            "{:.0} network evaluations/s",
            calls / start.elapsed().as_secs_f64()
        ));
        grid::save(
            &self.output,
            &images,
            self.columns.max(1),
            self.zoom.clamp(1, 32),
        )
    }
}
