//! The model whose prompts are screened: opened, hashed, and with one way to run it.

use std::path::Path;

use depurate_checkpoint::{
    Checkpoint, HashCache, Limits, TRANSFORMERS_STEM, UNET_STEM, Weights, sha256_file,
};
use depurate_defense::{
    calibration::prompts::RunSetting,
    detect::input_level::{PromptRun, RunOptions, SiteSelection},
};
use depurate_diffusion::TextToImage;

use crate::{
    Error,
    device::Device,
    journal::sha256_of,
    sample::{SamplerName, latent_sampler},
};

/// How a model is run on every prompt. A calibration belongs to one way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunChoice {
    /// Steps of the checkpoint's own sampler.
    pub steps: usize,
    /// Scale of classifier-free guidance; 1 is without.
    pub guidance: f64,
    /// Seed of the initial noise.
    pub seed: u64,
    /// Side of the UNet's input over the side of the layers whose maps are averaged; `None` is [`SiteSelection::of_unet`]'s.
    pub reduction: Option<usize>,
}

impl Default for RunChoice {
    fn default() -> Self {
        Self {
            steps: 50,
            guidance: 7.5,
            seed: 0,
            reduction: None,
        }
    }
}

/// A model ready to be run on prompts.
pub struct PromptModel {
    run: PromptRun,
    setting: RunSetting,
}

impl PromptModel {
    /// Opens, hashes and loads a text-to-image pipeline.
    ///
    /// # Errors
    /// When it is none, its files are malformed or do not fit together, or `choice` is out of range.
    pub fn open(
        path: &Path,
        choice: &RunChoice,
        device: Device,
        limits: &Limits,
        hashes: Option<&HashCache>,
    ) -> Result<Self, Error> {
        let checkpoint = Checkpoint::open(path, limits)?;
        let pipeline = TextToImage::from_checkpoint(&checkpoint, limits, &device.open())?;
        let chosen = (Some(choice.steps), None);
        let sampler = latent_sampler(SamplerName::Own, &checkpoint, chosen)?;
        let sites = SiteSelection::of_unet(pipeline.unet().config(), choice.reduction)?;
        let options = RunOptions {
            guidance: choice.guidance,
            seed: choice.seed,
            sites,
        };
        let files = pipeline.tokenizer().files().into_iter();
        let tokenizer = sha256_of(
            files
                .map(|(_, bytes)| bytes)
                .collect::<Vec<_>>()
                .iter()
                .map(Vec::as_slice),
        );
        let model = model_sha256(&checkpoint, limits, hashes)?;
        let run = PromptRun::new(pipeline, sampler, options)?;
        let setting = run.setting(model, tokenizer);
        Ok(Self { run, setting })
    }

    /// The way to run it.
    pub fn run(&self) -> &PromptRun {
        &self.run
    }

    /// What a score depends on besides the prompt and the detector.
    pub fn setting(&self) -> &RunSetting {
        &self.setting
    }
}

/// sha256 over weights and configurations of UNet and text encoder.
fn model_sha256(
    checkpoint: &Checkpoint,
    limits: &Limits,
    hashes: Option<&HashCache>,
) -> Result<String, Error> {
    let mut parts = Vec::new();
    let mut add = |weights: Weights| -> Result<(), Error> {
        for file in weights.files() {
            parts.push(sha256_file(file, hashes)?);
        }
        Ok(())
    };
    add(checkpoint.component_weights("unet", UNET_STEM, limits)?)?;
    add(checkpoint.component_weights("text_encoder", TRANSFORMERS_STEM, limits)?)?;
    for component in ["unet", "text_encoder"] {
        let config = checkpoint.component_config(component, limits)?;
        parts.push(serde_json::Value::Object(config).to_string());
    }
    Ok(sha256_of(parts.iter().map(String::as_bytes)))
}
