//! The model whose prompts are screened: opened, hashed, and with one way to run it.

use std::path::Path;

use depurate_checkpoint::{
    Checkpoint, HashCache, Layers, Limits, TRANSFORMERS_STEM, UNET_STEM, Weights, sha256_file,
};
use depurate_defense::{
    calibration::prompts::RunSetting,
    detect::input_level::{PromptRun, RunOptions, SiteSelection},
};
use depurate_diffusion::{TextToImage, sampler};
use sha2::{Digest, Sha256};

use crate::{Error, device::Device, journal::sha256_of};

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
    /// Opens, hashes and loads a text-to-image pipeline with what is laid over its weights.
    ///
    /// # Errors
    /// When it is none, its files are malformed or do not fit together, or `choice` is out of range; and for textual inversions,
    /// whose tokens no prompt is cut into.
    pub fn open(
        path: &Path,
        layers: &Layers,
        choice: &RunChoice,
        device: Device,
        limits: &Limits,
        hashes: Option<&HashCache>,
    ) -> Result<Self, Error> {
        let checkpoint = Checkpoint::open(path, limits)?;
        if !layers.embeddings.is_empty() {
            return Err(Error::Usage {
                problem: "prompts with the tokens of a textual inversion cannot be screened".into(),
                mend: "leave out --embedding",
            });
        }
        let (pipeline, _) = TextToImage::layered(&checkpoint, layers, limits, &device.open())?;
        let scheduler = pipeline.scheduler().clone().for_latents();
        let sampler = sampler::from_config(&scheduler, choice.steps)?;
        let sites = SiteSelection::of_unet(pipeline.unet().config(), choice.reduction)?;
        let options = RunOptions {
            guidance: choice.guidance,
            seed: choice.seed,
            sites,
        };
        let files = pipeline.tokenizer().files();
        let tokenizer = sha256_of(files.iter().map(|(_, bytes)| bytes.as_slice()));
        let model = if layers.is_empty() {
            model_sha256(&checkpoint, limits, hashes)?
        } else {
            layered_sha256(&pipeline)
        };
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

/// sha256 over the tensors of UNet and text encoder: what files were laid over makes no file of its own.
fn layered_sha256(pipeline: &TextToImage) -> String {
    let mut hasher = Sha256::new();
    let parts = [
        pipeline.unet().to_tensors(),
        pipeline.text_encoder().to_tensors(),
    ];
    for tensor in parts.iter().flatten() {
        hasher.update(tensor.name.as_bytes());
        hasher.update((tensor.data.len() as u64).to_le_bytes());
        for value in &tensor.data {
            hasher.update(value.to_le_bytes());
        }
    }
    let configs = [
        pipeline.unet().config().to_json(),
        pipeline.text_encoder().config().to_json(),
    ];
    for config in configs {
        hasher.update(config.to_string().as_bytes());
    }
    let digest = hasher.finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
