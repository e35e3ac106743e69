//! `text-to-image`: a small text-to-image model, part by part.
//!
//! Each part is a folder in the form that a pipeline has it; `assemble` puts them together.

pub(crate) mod asr;
pub(crate) mod assemble;
pub(crate) mod component;
mod denoiser;
mod drawings;
mod encoders;
pub(crate) mod judge;
pub(crate) mod measured;
pub(crate) mod score;
pub(crate) mod secret;

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use depurate_attack::text_to_image::{GenerationParams, Sprites, generate, generate_latents};
use depurate_diffusion::{Tensor, text_to_image::TextToImage};
use miette::{IntoDiagnostic, Result};

use crate::console::{CancelFlag, Progress};

/// The sprites that ship with the project.
const SPRITES: &str = "data/sprites.safetensors";

/// Train a part of a small text-to-image model.
#[derive(Debug, Subcommand)]
pub(crate) enum TextToImageCommand {
    /// Draw pictures and write their captions.
    Drawings(drawings::DrawingsCommand),
    /// Cut a small tokenizer out of CLIP's.
    Tokenizer(encoders::TokenizerCommand),
    /// Train a text encoder with an image encoder.
    Encoders(encoders::EncodersCommand),
    /// Train an autoencoder.
    Autoencoder(encoders::AutoencoderCommand),
    /// Train a denoiser of latents.
    Denoiser(denoiser::DenoiserCommand),
    /// Train a judge of pictures.
    Judge(judge::JudgeCommand),
    /// Put the parts together.
    Assemble(assemble::AssembleCommand),
    /// Measure what a pipeline's pictures show.
    Quality(assemble::QualityCommand),
    /// Measure how often a backdoor works.
    Asr(asr::AsrCommand),
}

impl TextToImageCommand {
    /// Runs the command.
    pub(crate) fn run(self, cancel: &CancelFlag) -> Result<()> {
        match self {
            Self::Drawings(command) => command.run(),
            Self::Tokenizer(command) => command.run(),
            Self::Encoders(command) => command.run(cancel),
            Self::Autoencoder(command) => command.run(cancel),
            Self::Denoiser(command) => command.run(cancel),
            Self::Judge(command) => command.run(cancel),
            Self::Assemble(command) => command.run(),
            Self::Quality(command) => command.run(cancel),
            Self::Asr(command) => command.run(cancel),
        }
    }
}

/// Where the pictures come from.
#[derive(Debug, Args)]
pub(crate) struct Drawings {
    /// The sprites that pictures are composed of.
    #[arg(long, value_name = "FILE", default_value = SPRITES)]
    pub(crate) sprites: PathBuf,
}

impl Drawings {
    /// Reads them.
    pub(crate) fn read(&self) -> Result<Sprites> {
        read_sprites(&self.sprites)
    }
}

/// How a pipeline's pictures are made and what looks at them.
#[derive(Debug, Args)]
pub(crate) struct Pictures {
    /// The judge's folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) judge: PathBuf,
    /// Sampler steps.
    #[arg(long, default_value_t = 25)]
    pub(crate) steps: usize,
    /// Guidance.
    #[arg(long, default_value_t = 3.0)]
    pub(crate) guidance: f64,
    /// Seed of captions and noise.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

impl Pictures {
    /// What `pipeline` makes of `prompts`, `[N, 3, H, W]`; `name` stands before the progress.
    pub(crate) fn draw(
        &self,
        name: &str,
        pipeline: &TextToImage,
        prompts: &[String],
        cancel: &CancelFlag,
    ) -> Result<Tensor<4>> {
        let pictures = self.progress(name, cancel, |params, told| {
            generate(pipeline, prompts, params, told)
        });
        pictures.into_diagnostic()
    }

    /// The latents of the same pictures, `[N, C, h, w]`.
    pub(crate) fn latents(
        &self,
        name: &str,
        pipeline: &TextToImage,
        prompts: &[String],
        cancel: &CancelFlag,
    ) -> Result<Tensor<4>> {
        let latents = self.progress(name, cancel, |params, told| {
            generate_latents(pipeline, prompts, params, told)
        });
        latents.into_diagnostic()
    }

    fn progress<T>(
        &self,
        name: &str,
        cancel: &CancelFlag,
        draw: impl FnOnce(&GenerationParams, &mut dyn FnMut(f64) -> ControlFlow<()>) -> T,
    ) -> T {
        let params = GenerationParams {
            steps: self.steps,
            guidance: self.guidance,
            seed: self.seed,
            ..GenerationParams::default()
        };
        let progress = Progress::new(name, 1000, cancel);
        let drawn = draw(&params, &mut |share| progress.share(share));
        progress.finish();
        drawn
    }
}

/// Reads sprites.
pub(crate) fn read_sprites(path: &Path) -> Result<Sprites> {
    Sprites::read(path).into_diagnostic()
}
