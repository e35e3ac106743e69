//! Parts put together: a pipeline directory, and what its pictures are worth.

use std::path::{Path, PathBuf};

use clap::Args;
use depurate_attack::text_to_image::{Accuracy, Composition};
use depurate_checkpoint::{Limits, SaveDtype};
use depurate_diffusion::{
    Device,
    clip_tokenizer::ClipTokenizer,
    noise::SeedTree,
    schedule::{BetaSchedule, SchedulerClass, SchedulerConfig},
    text_to_image::{Parts, TextToImage},
    unet2d_condition::{UNet2DCondition, UNet2DConditionConfig},
};
use depurate_stats::clopper_pearson;
use miette::{IntoDiagnostic, Result, WrapErr};
use rand::seq::SliceRandom;
use serde_json::json;

use super::{Drawings, Pictures, component, judge};
use crate::{
    console::{CancelFlag, answer},
    grid,
};

/// Pictures in a row of a grid, and how often each pixel is drawn.
const COLUMNS: usize = 16;
const ZOOM: u32 = 2;

/// Put the parts together.
#[derive(Debug, Args)]
pub(crate) struct AssembleCommand {
    /// The tokenizer's folder.
    #[arg(long, value_name = "DIR")]
    tokenizer: PathBuf,
    /// The text encoder's folder.
    #[arg(long, value_name = "DIR")]
    text_encoder: PathBuf,
    /// The autoencoder's folder.
    #[arg(long, value_name = "DIR")]
    autoencoder: PathBuf,
    /// The denoiser's folder.
    #[arg(long, value_name = "DIR")]
    denoiser: PathBuf,
    /// Save weights as half precision.
    #[arg(long)]
    half: bool,
    /// The pipeline's directory, which must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl AssembleCommand {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<()> {
        let device = Device::flex();
        let limits = Limits::default();
        let seed = SeedTree::new(0);
        let unet_config = UNet2DConditionConfig::from_json(
            &component::config(&self.denoiser)?,
            &self.denoiser.join("config.json"),
        )
        .into_diagnostic()?;
        let unet_weights = component::weights(&self.denoiser, component::DIFFUSERS_STEM)?;
        let parts = Parts {
            tokenizer: ClipTokenizer::load(&self.tokenizer, &limits).into_diagnostic()?,
            text_encoder: component::text_encoder(&self.text_encoder, &device)?,
            unet: UNet2DCondition::new(&unet_config, &seed, &device)
                .load(&unet_weights, &self.denoiser)
                .into_diagnostic()?,
            vae: component::autoencoder(&self.autoencoder, &device)?,
            scheduler: scheduler(),
        };
        let dtype = if self.half {
            SaveDtype::F16
        } else {
            SaveDtype::F32
        };
        TextToImage::from_parts(parts, &device)
            .and_then(|pipeline| pipeline.save(&self.out, dtype))
            .into_diagnostic()
    }
}

/// Stable Diffusion 1's schedule, with DDIM as the sampler.
fn scheduler() -> SchedulerConfig {
    SchedulerConfig {
        class: SchedulerClass::Ddim,
        beta_start: 0.00085,
        beta_end: 0.012,
        beta_schedule: BetaSchedule::ScaledLinear,
        clip_sample: false,
        set_alpha_to_one: false,
        steps_offset: 1,
        ..SchedulerConfig::default()
    }
}

/// Loads a pipeline, frozen.
pub(crate) fn load_pipeline(dir: &Path) -> Result<TextToImage> {
    TextToImage::load(dir, &Limits::default(), &Device::flex())
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot load the pipeline {}", dir.display()))
}

/// Measure what a pipeline's pictures show.
#[derive(Debug, Args)]
pub(crate) struct QualityCommand {
    /// The pipeline.
    model: PathBuf,
    #[command(flatten)]
    drawings: Drawings,
    #[command(flatten)]
    how: Pictures,
    /// Pictures of compositions that training showed, and as many that it did not.
    #[arg(long, default_value_t = 512)]
    n: usize,
    /// Also write the first pictures as a grid.
    #[arg(long, value_name = "PNG")]
    grid: Option<PathBuf>,
}

impl QualityCommand {
    /// Runs the command.
    pub(crate) fn run(self, cancel: &CancelFlag) -> Result<()> {
        let sprites = self.drawings.read()?;
        let pipeline = load_pipeline(&self.model)?;
        let judge = judge::load(&self.how.judge, &sprites, &pipeline.device())?;
        for held_out in [false, true] {
            let mut asked: Vec<Composition> = sprites.compositions();
            asked.retain(|composition| composition.is_held_out() == held_out);
            asked.shuffle(&mut SeedTree::new(self.how.seed).child("captions", 0).rng());
            let asked: Vec<Composition> = asked.into_iter().cycle().take(self.n).collect();
            let prompts: Vec<String> = asked.iter().map(|c| sprites.caption(*c)).collect();
            let pictures = self.how.draw("pictures", &pipeline, &prompts, cancel)?;
            let accuracy = Accuracy::of(&judge.judge(&pictures).into_diagnostic()?, &asked);
            let line = json!({
                "captions": if held_out { "held out" } else { "shown in training" },
                "n": accuracy.n,
                "seed": self.how.seed,
                "object": rate(accuracy.object, accuracy.n)?,
                "style": rate(accuracy.style, accuracy.n)?,
                "color": rate(accuracy.color, accuracy.n)?,
                "background": rate(accuracy.background, accuracy.n)?,
            });
            answer(&line.to_string());
            if let (Some(path), false) = (&self.grid, held_out) {
                let shown = pictures.dims()[0].min(COLUMNS * 8);
                grid::save(path, &pictures.narrow(0, 0, shown), COLUMNS, ZOOM)?;
            }
        }
        Ok(())
    }
}

/// A share with its exact 95 % interval.
pub(crate) fn rate(right: usize, n: usize) -> Result<serde_json::Value> {
    let interval = clopper_pearson(right as u64, n as u64, 0.95).into_diagnostic()?;
    let share = right as f64 / n.max(1) as f64;
    Ok(json!([share, interval.lower, interval.upper]))
}
