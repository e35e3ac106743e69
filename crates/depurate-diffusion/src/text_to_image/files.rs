//! A pipeline's directory, read and written as diffusers' `StableDiffusionPipeline` does.

use std::path::Path;

use burn::tensor::Device;
use depurate_checkpoint::{
    AddedTokens, Checkpoint, Layers, Limits, ModelPart, ModelWeights, SaveComponent, SaveDtype,
    TRANSFORMERS_STEM, UNET_STEM, Weights, save_pipeline,
};
use serde_json::{Value, json};

use super::{Parts, TextToImage};
use crate::{
    DiffusionError,
    autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig},
    clip_text::{ClipText, ClipTextConfig},
    clip_tokenizer::ClipTokenizer,
    noise::SeedTree,
    schedule::SchedulerConfig,
    unet2d_condition::{UNet2DCondition, UNet2DConditionConfig},
};

const TOKENIZER: &str = "tokenizer";
const TEXT_ENCODER: &str = "text_encoder";
const UNET: &str = "unet";
const VAE: &str = "vae";
const SCHEDULER: &str = "scheduler";

impl TextToImage {
    /// Loads a diffusers directory.
    ///
    /// # Errors
    /// When it is no text-to-image pipeline, or a file is missing, malformed, unsupported or does not fit the others.
    pub fn load(path: &Path, limits: &Limits, device: &Device) -> Result<Self, DiffusionError> {
        Self::from_checkpoint(&Checkpoint::open(path, limits)?, limits, device)
    }

    /// Loads an opened checkpoint. Weights are memory mapped and read component by component.
    ///
    /// # Errors
    /// As [`TextToImage::load`].
    pub fn from_checkpoint(
        checkpoint: &Checkpoint,
        limits: &Limits,
        device: &Device,
    ) -> Result<Self, DiffusionError> {
        Ok(Self::layered(checkpoint, &Layers::default(), limits, device)?.0)
    }

    /// Loads an opened checkpoint with other files laid over it, and says which tokens the text encoder has got by that. The
    /// tokenizer does not know their names: their ids are what prompts must hold.
    ///
    /// # Errors
    /// As [`TextToImage::load`], and when a layer cannot be read or does not fit.
    pub fn layered(
        checkpoint: &Checkpoint,
        layers: &Layers,
        limits: &Limits,
        device: &Device,
    ) -> Result<(Self, Vec<AddedTokens>), DiffusionError> {
        if !checkpoint.is_text_conditional() {
            return Err(DiffusionError::Unconditional {
                path: checkpoint.root.clone(),
            });
        }
        let open = |name, stem| checkpoint.component_weights(name, stem, limits);
        let mut weights = ModelWeights {
            unet: open(UNET, UNET_STEM)?,
            text_encoder: Some(open(TEXT_ENCODER, TRANSFORMERS_STEM)?),
            vae: Some(open(VAE, UNET_STEM)?),
        };
        let added = layers.apply(&mut weights, limits)?;
        let path = &checkpoint.root;
        let scheduler_dir = checkpoint.component_dir(SCHEDULER)?;
        let scheduler = SchedulerConfig::from_json(
            &depurate_checkpoint::read_json(&scheduler_dir.join("scheduler_config.json"), limits)?,
            &scheduler_dir.join("scheduler_config.json"),
        )?;
        let parts = Parts {
            tokenizer: ClipTokenizer::load(&checkpoint.component_dir(TOKENIZER)?, limits)?,
            text_encoder: text_encoder(
                checkpoint,
                weights.get_mut(ModelPart::TextEncoder, path)?,
                &added,
                limits,
                device,
            )?,
            unet: unet(checkpoint, &weights.unet, limits, device)?,
            vae: vae(
                checkpoint,
                weights.get_mut(ModelPart::Vae, path)?,
                limits,
                device,
            )?,
            scheduler,
        };
        Ok((Self::from_parts(parts, device)?, added))
    }

    /// Writes a directory that diffusers' `StableDiffusionPipeline.from_pretrained` loads. Never overwrites.
    ///
    /// # Errors
    /// When `dir` exists or cannot be written.
    pub fn save(&self, dir: &Path, dtype: SaveDtype) -> Result<(), DiffusionError> {
        let Parts {
            tokenizer,
            text_encoder,
            unet,
            vae,
            scheduler,
        } = &self.parts;
        let config = "config.json";
        let tokenizer_files = tokenizer.files().into_iter();
        let components = [
            tokenizer_files.fold(SaveComponent::new(TOKENIZER), |component, (name, bytes)| {
                component.file(name, bytes)
            }),
            SaveComponent::new(TEXT_ENCODER)
                .json(config, &text_encoder.config().to_json())
                .weights(TRANSFORMERS_STEM, || text_encoder.to_tensors()),
            SaveComponent::new(UNET)
                .json(config, &unet.config().to_json())
                .weights(UNET_STEM, || unet.to_tensors()),
            SaveComponent::new(VAE)
                .json(config, &vae.config().to_json())
                .weights(UNET_STEM, || vae.to_tensors()),
            SaveComponent::new(SCHEDULER)
                .json("scheduler_config.json", &scheduler.to_json().into()),
        ];
        let index = json!({
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.30.0",
            "feature_extractor": [Value::Null, Value::Null],
            "requires_safety_checker": false,
            "safety_checker": [Value::Null, Value::Null],
            "scheduler": ["diffusers", scheduler.class],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        });
        save_pipeline(dir, &index, &components, dtype)?;
        Ok(())
    }
}

fn text_encoder(
    checkpoint: &Checkpoint,
    weights: &Weights,
    added: &[AddedTokens],
    limits: &Limits,
    device: &Device,
) -> Result<ClipText, DiffusionError> {
    let dir = checkpoint.component_dir(TEXT_ENCODER)?;
    let mut config = ClipTextConfig::read(&dir.join("config.json"), limits)?;
    config.vocab_size += added.iter().map(|added| added.ids.len()).sum::<usize>();
    ClipText::new(&config, &unused_seed(), device).load(weights, &dir)
}

fn unet(
    checkpoint: &Checkpoint,
    weights: &Weights,
    limits: &Limits,
    device: &Device,
) -> Result<UNet2DCondition, DiffusionError> {
    let dir = checkpoint.component_dir(UNET)?;
    let map = checkpoint.component_config(UNET, limits)?;
    let config = UNet2DConditionConfig::from_json(&map, &dir.join("config.json"))?;
    UNet2DCondition::new(&config, &unused_seed(), device).load(weights, &dir)
}

fn vae(
    checkpoint: &Checkpoint,
    weights: &Weights,
    limits: &Limits,
    device: &Device,
) -> Result<AutoencoderKl, DiffusionError> {
    let dir = checkpoint.component_dir(VAE)?;
    let map = checkpoint.component_config(VAE, limits)?;
    let config = AutoencoderKlConfig::from_json(&map, &dir.join("config.json"))?;
    AutoencoderKl::new(&config, &unused_seed(), device).load(weights, &dir)
}

/// Every parameter is replaced before the random one in its place would be drawn.
fn unused_seed() -> SeedTree {
    SeedTree::new(0)
}
