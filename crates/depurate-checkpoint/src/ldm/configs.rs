//! Which Stable Diffusion a single file is, and the configurations that it does not hold.

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{CheckpointError, Result, Weights};

/// A family of single-file checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LdmFamily {
    /// Stable Diffusion 1: CLIP ViT-L/14, 768 channels.
    Sd1,
    /// Stable Diffusion 2: OpenCLIP ViT-H/14, 1024 channels.
    Sd2,
}

/// Configurations as diffusers and transformers write them.
#[derive(Debug, Clone, PartialEq)]
pub struct LdmConfigs {
    /// Of the UNet.
    pub unet: Map<String, Value>,
    /// Of the text encoder.
    pub text_encoder: Map<String, Value>,
    /// Of the autoencoder.
    pub vae: Map<String, Value>,
}

const UNET_IN: &str = "model.diffusion_model.input_blocks.0.0.weight";
const KEYS_OF_OTHERS: [(&str, &str); 5] = [
    ("conditioner.embedders.", "a checkpoint of SDXL"),
    (
        "model.diffusion_model.joint_blocks.",
        "a checkpoint of Stable Diffusion 3",
    ),
    (
        "model.diffusion_model.double_blocks.",
        "a checkpoint of Flux",
    ),
    ("double_blocks.", "a checkpoint of Flux"),
    ("lora_", "a LoRA"),
];

impl LdmFamily {
    /// Tells the family by the text encoder's names and the widths that belong to them.
    ///
    /// # Errors
    /// The file is of another family, an inpainting or depth variant, or no single-file checkpoint at all.
    pub fn detect(path: &Path, weights: &Weights) -> Result<Self> {
        const ONLY: &str = "give a checkpoint of Stable Diffusion 1 or 2, or a diffusers directory";
        let refuse = |what| CheckpointError::UnsupportedLayout {
            path: path.into(),
            what,
            mend: ONLY,
        };
        let has = |prefix: &str| weights.infos().any(|info| info.name.starts_with(prefix));
        if let Some((_, what)) = KEYS_OF_OTHERS.iter().find(|(prefix, _)| has(prefix)) {
            return Err(refuse(what));
        }
        match weights.get(UNET_IN).map(|info| info.shape.as_slice()) {
            Some([_, 4, _, _]) => {}
            Some(_) => {
                return Err(refuse(
                    "a variant whose UNet takes more than a latent (inpainting, depth, instructions)",
                ));
            }
            None => return Err(refuse("no single-file checkpoint")),
        }
        match (
            has("cond_stage_model.transformer."),
            has("cond_stage_model.model."),
        ) {
            (true, false) => Ok(Self::Sd1),
            (false, true) => Ok(Self::Sd2),
            _ => Err(refuse("a checkpoint without a text encoder that is known")),
        }
    }

    /// The configurations of the published models of this family.
    pub fn configs(self) -> LdmConfigs {
        let sd2 = self == Self::Sd2;
        let unet = json!({
            "_class_name": "UNet2DConditionModel",
            "act_fn": "silu",
            "attention_head_dim": if sd2 { json!([5, 10, 20, 20]) } else { json!(8) },
            "block_out_channels": [320, 640, 1280, 1280],
            "center_input_sample": false,
            "cross_attention_dim": if sd2 { 1024 } else { 768 },
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "downsample_padding": 1,
            "flip_sin_to_cos": true,
            "freq_shift": 0,
            "in_channels": 4,
            "layers_per_block": 2,
            "mid_block_scale_factor": 1,
            "norm_eps": 1e-5,
            "norm_num_groups": 32,
            "out_channels": 4,
            "sample_size": 64,
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            "use_linear_projection": sd2,
        });
        let text_encoder = json!({
            "architectures": ["CLIPTextModel"],
            "bos_token_id": 49406,
            "eos_token_id": 49407,
            "hidden_act": if sd2 { "gelu" } else { "quick_gelu" },
            "hidden_size": if sd2 { 1024 } else { 768 },
            "intermediate_size": if sd2 { 4096 } else { 3072 },
            "layer_norm_eps": 1e-5,
            "max_position_embeddings": 77,
            "model_type": "clip_text_model",
            "num_attention_heads": if sd2 { 16 } else { 12 },
            // Stable Diffusion 2 takes the states before the last of 24 layers
            "num_hidden_layers": if sd2 { 23 } else { 12 },
            "vocab_size": 49408,
        });
        let vae = json!({
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
            "in_channels": 3,
            "latent_channels": 4,
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "out_channels": 3,
            "sample_size": if sd2 { 768 } else { 512 },
            "scaling_factor": 0.18215,
            "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
        });
        LdmConfigs {
            unet: object(unet),
            text_encoder: object(text_encoder),
            vae: object(vae),
        }
    }

    /// The scheduler that the published models of this family come with. Whether a file of Stable Diffusion 2 predicts noise
    /// (`epsilon`, the 512-pixel base) or velocity (`v_prediction`, 768 pixels) does not stand in it, so the caller says so;
    /// Stable Diffusion 1 predicts noise.
    pub fn scheduler_config(self, prediction_type: &str) -> Map<String, Value> {
        let class = match self {
            Self::Sd1 => "PNDMScheduler",
            Self::Sd2 => "DDIMScheduler",
        };
        object(json!({
            "_class_name": class,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "clip_sample": false,
            "num_train_timesteps": 1000,
            "prediction_type": prediction_type,
            "set_alpha_to_one": false,
            "skip_prk_steps": true,
            "steps_offset": 1,
            "trained_betas": null,
        }))
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
