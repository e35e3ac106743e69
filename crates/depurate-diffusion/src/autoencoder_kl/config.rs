//! `AutoencoderKL`'s `config.json`.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::{
    DiffusionError,
    config_options::{MAX_CHANNELS, MAX_LAYERS, Reader},
};

const KNOWN: &[&str] = &[
    "act_fn",
    "block_out_channels",
    "down_block_types",
    "force_upcast",
    "in_channels",
    "latent_channels",
    "latents_mean",
    "latents_std",
    "layers_per_block",
    "mid_block_add_attention",
    "norm_num_groups",
    "out_channels",
    "sample_size",
    "scaling_factor",
    "shift_factor",
    "up_block_types",
    "use_post_quant_conv",
    "use_quant_conv",
];
/// Stable Diffusion 1's and 2's, and what a configuration without the option means.
const DEFAULT_SCALING_FACTOR: f64 = 0.18215;

/// Configuration of a [`super::AutoencoderKl`], as diffusers writes it.
#[derive(Debug, Clone, PartialEq)]
pub struct AutoencoderKlConfig {
    /// Channels of the images to encode.
    pub in_channels: usize,
    /// Channels of the decoded images.
    pub out_channels: usize,
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Channels of each level.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of an encoder level; a decoder level has one more.
    pub layers_per_block: usize,
    /// Groups of every group normalisation.
    pub norm_num_groups: usize,
    /// Whether the middle attends over its pixels.
    pub mid_block_add_attention: bool,
    /// Whether a 1x1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// What latents are multiplied by for the diffusion model.
    pub scaling_factor: f64,
    /// Side of the images that it was trained on.
    pub sample_size: usize,
}

impl AutoencoderKlConfig {
    /// Parses `config.json`; `path` is named in errors.
    ///
    /// # Errors
    /// On an option that is unknown, unsupported, out of range or inconsistent with others.
    pub fn from_json(map: &Map<String, Value>, path: &Path) -> Result<Self, DiffusionError> {
        let read = Reader { map, path };
        read.refuse_unknown(KNOWN)?;
        read.only("_class_name", &["AutoencoderKL"])?;
        read.only("act_fn", &["silu", "swish"])?;
        for option in ["latents_mean", "latents_std", "shift_factor"] {
            read.one_of(option, &[Value::Null])?;
        }
        let channels = read.sizes("block_out_channels", &[64], MAX_CHANNELS)?;
        for (option, name) in [
            ("down_block_types", "DownEncoderBlock2D"),
            ("up_block_types", "UpDecoderBlock2D"),
        ] {
            if read.blocks(option, &[(name, ())])?.len() != channels.len() {
                return Err(read.error(option, "needs one entry for each of block_out_channels"));
            }
        }
        let config = Self {
            in_channels: read.size("in_channels", 3, 64)?,
            out_channels: read.size("out_channels", 3, 64)?,
            latent_channels: read.size("latent_channels", 4, 64)?,
            layers_per_block: read.size("layers_per_block", 1, MAX_LAYERS)?,
            norm_num_groups: read.size("norm_num_groups", 32, MAX_CHANNELS)?,
            mid_block_add_attention: read.flag("mid_block_add_attention", true)?,
            use_quant_conv: read.flag("use_quant_conv", true)?,
            use_post_quant_conv: read.flag("use_post_quant_conv", true)?,
            scaling_factor: read.number("scaling_factor", DEFAULT_SCALING_FACTOR)?,
            sample_size: read.size("sample_size", 32, 1 << 14)?,
            block_out_channels: channels,
        };
        let divides = |channels: &usize| channels.is_multiple_of(config.norm_num_groups);
        if !config.block_out_channels.iter().all(divides) {
            return Err(read.error("norm_num_groups", "does not divide block_out_channels"));
        }
        if config.scaling_factor <= 0.0 {
            return Err(read.error("scaling_factor", "must be positive"));
        }
        Ok(config)
    }

    /// Side of an image over the side of its latent.
    pub fn size_factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// `config.json` as diffusers writes it.
    pub fn to_json(&self) -> Value {
        let levels = self.block_out_channels.len();
        json!({
            "_class_name": "AutoencoderKL",
            "_diffusers_version": "0.30.0",
            "act_fn": "silu",
            "block_out_channels": self.block_out_channels,
            "down_block_types": vec!["DownEncoderBlock2D"; levels],
            "in_channels": self.in_channels,
            "latent_channels": self.latent_channels,
            "layers_per_block": self.layers_per_block,
            "mid_block_add_attention": self.mid_block_add_attention,
            "norm_num_groups": self.norm_num_groups,
            "out_channels": self.out_channels,
            "sample_size": self.sample_size,
            "scaling_factor": self.scaling_factor,
            "up_block_types": vec!["UpDecoderBlock2D"; levels],
            "use_post_quant_conv": self.use_post_quant_conv,
            "use_quant_conv": self.use_quant_conv,
        })
    }
}
