//! `UNet2DModel`'s `config.json`.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::{
    DiffusionError, SampleShape,
    channel_graph::{ChannelGraph, NOTE, Removal},
    config_options::{MAX_CHANNELS, MAX_LAYERS, Reader},
};

/// Every option that diffusers writes; keys with a leading underscore are its own notes.
const KNOWN: &[&str] = &[
    "act_fn",
    "add_attention",
    "attention_head_dim",
    "attn_norm_num_groups",
    "block_out_channels",
    "center_input_sample",
    "class_embed_type",
    "down_block_types",
    "downsample_padding",
    "downsample_type",
    "dropout",
    "flip_sin_to_cos",
    "freq_shift",
    "in_channels",
    "layers_per_block",
    "mid_block_scale_factor",
    "mid_block_type",
    "norm_eps",
    "norm_num_groups",
    "num_class_embeds",
    "num_train_timesteps",
    "out_channels",
    "resnet_time_scale_shift",
    "sample_size",
    "time_embedding_dim",
    "time_embedding_type",
    "up_block_types",
    "upsample_type",
];

/// Type of a down or up block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// `DownBlock2D` or `UpBlock2D`.
    Plain,
    /// `AttnDownBlock2D` or `AttnUpBlock2D`.
    Attention,
}

/// How the time embedding enters a residual block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeInjection {
    /// `default`: added after the first convolution.
    Add,
    /// `scale_shift`: scales and shifts the second normalisation.
    ScaleShift,
}

/// Configuration of a [`super::UNet2D`], as diffusers writes it.
#[derive(Debug, Clone, PartialEq)]
pub struct UNet2DConfig {
    /// Image size `(rows, columns)`.
    pub sample_size: (usize, usize),
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Whether the input is mapped to `2 x - 1` first.
    pub center_input_sample: bool,
    /// `freq_shift` of the sinusoidal embedding: the frequencies' divisor is `half - freq_shift`.
    pub freq_shift: f64,
    /// Whether the embedding is `[cos, sin]` (true) or `[sin, cos]`.
    pub flip_sin_to_cos: bool,
    /// Width of the time embedding; `None` is four times the first level's channels.
    pub time_embedding_dim: Option<usize>,
    /// Blocks of the way down.
    pub down_blocks: Vec<BlockKind>,
    /// Blocks of the way up.
    pub up_blocks: Vec<BlockKind>,
    /// Channels of each level.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks a level.
    pub layers_per_block: usize,
    /// Divides the residual sums of the middle block.
    pub mid_block_scale_factor: f64,
    /// 1: padding on every side; 0: after the image only.
    pub downsample_padding: usize,
    /// Width of one attention head; `None` is a single head.
    pub attention_head_dim: Option<usize>,
    /// Groups of every group normalisation.
    pub norm_num_groups: usize,
    /// Groups of the middle attention's normalisation, where it differs.
    pub attn_norm_num_groups: Option<usize>,
    /// Added to the variance in every normalisation.
    pub norm_eps: f64,
    /// How the time embedding enters the residual blocks.
    pub time_injection: TimeInjection,
    /// Whether the middle block has attention.
    pub add_attention: bool,
    /// Dropout of the residual blocks in training. Read and written back, never applied here.
    pub dropout: f64,
    /// Units that were taken out of the network that the other options describe; key `_depurate_removed`. See
    /// [`crate::channel_graph`].
    pub removed: Removal,
}

impl UNet2DConfig {
    /// Parses `config.json`; `path` is named in errors.
    ///
    /// # Errors
    /// On an option that is unknown, unsupported, out of range or inconsistent with others.
    pub fn from_json(map: &Map<String, Value>, path: &Path) -> Result<Self, DiffusionError> {
        let read = Reader { map, path };
        read.refuse_unknown(KNOWN)?;
        read.only("_class_name", &["UNet2DModel"])?;
        read.only("act_fn", &["silu", "swish"])?;
        read.only("time_embedding_type", &["positional"])?;
        read.only("downsample_type", &["conv"])?;
        read.only("upsample_type", &["conv"])?;
        read.only("mid_block_type", &["UNetMidBlock2D"])?;
        for option in ["class_embed_type", "num_class_embeds"] {
            if map.get(option).is_some_and(|value| !value.is_null()) {
                return Err(
                    read.error(option, "class conditioning is not supported: expected null")
                );
            }
        }
        let levels = read.sizes("block_out_channels", &[224, 448, 672, 896], MAX_CHANNELS)?;
        let config = Self {
            sample_size: read.sample_size()?,
            in_channels: read.size("in_channels", 3, 64)?,
            out_channels: read.size("out_channels", 3, 64)?,
            center_input_sample: read.flag("center_input_sample", false)?,
            freq_shift: read.number("freq_shift", 0.0)?,
            flip_sin_to_cos: read.flag("flip_sin_to_cos", true)?,
            time_embedding_dim: read.optional_size("time_embedding_dim", None, 4 * MAX_CHANNELS)?,
            down_blocks: read.blocks(
                "down_block_types",
                &[
                    ("DownBlock2D", BlockKind::Plain),
                    ("AttnDownBlock2D", BlockKind::Attention),
                ],
            )?,
            up_blocks: read.blocks(
                "up_block_types",
                &[
                    ("UpBlock2D", BlockKind::Plain),
                    ("AttnUpBlock2D", BlockKind::Attention),
                ],
            )?,
            block_out_channels: levels,
            layers_per_block: read.size("layers_per_block", 2, MAX_LAYERS)?,
            mid_block_scale_factor: read.number("mid_block_scale_factor", 1.0)?,
            downsample_padding: read.count("downsample_padding", 1)?,
            attention_head_dim: read.optional_size("attention_head_dim", Some(8), MAX_CHANNELS)?,
            norm_num_groups: read.size("norm_num_groups", 32, MAX_CHANNELS)?,
            attn_norm_num_groups: read.optional_size("attn_norm_num_groups", None, MAX_CHANNELS)?,
            norm_eps: read.number("norm_eps", 1e-5)?,
            time_injection: match read.text("resnet_time_scale_shift", "default")? {
                "default" => TimeInjection::Add,
                "scale_shift" => TimeInjection::ScaleShift,
                _ => {
                    return Err(read.error(
                        "resnet_time_scale_shift",
                        "expected \"default\" or \"scale_shift\"",
                    ));
                }
            },
            add_attention: read.flag("add_attention", true)?,
            dropout: read.number("dropout", 0.0)?,
            removed: Removal::noted(&read)?,
        };
        config.check(&read)?;
        if !config.removed.is_empty() {
            ChannelGraph::of(&config).map_err(|error| read.error(NOTE, &error.to_string()))?;
        }
        Ok(config)
    }

    fn check(&self, read: &Reader<'_>) -> Result<(), DiffusionError> {
        let n_levels = self.block_out_channels.len();
        if self.down_blocks.len() != n_levels || self.up_blocks.len() != n_levels {
            return Err(read.error(
                "block_out_channels",
                "needs one entry for each of down_block_types and up_block_types",
            ));
        }
        if self.downsample_padding > 1 {
            return Err(read.error("downsample_padding", "expected 0 or 1"));
        }
        if self.mid_block_scale_factor <= 0.0 || self.norm_eps <= 0.0 {
            return Err(read.error(
                "mid_block_scale_factor",
                "this and norm_eps must be positive",
            ));
        }
        for &channels in &self.block_out_channels {
            if channels % self.norm_num_groups != 0 {
                return Err(read.error(
                    "norm_num_groups",
                    &format!("does not divide {channels} channels"),
                ));
            }
            if channels % 2 != 0 {
                return Err(read.error(
                    "block_out_channels",
                    "must be even for the sinusoidal time embedding",
                ));
            }
            if self
                .attention_head_dim
                .is_some_and(|width| channels % width != 0)
            {
                return Err(read.error(
                    "attention_head_dim",
                    &format!("does not divide {channels} channels"),
                ));
            }
        }
        let last = self.block_out_channels[n_levels - 1];
        if self
            .attn_norm_num_groups
            .is_some_and(|groups| !last.is_multiple_of(groups))
        {
            return Err(read.error(
                "attn_norm_num_groups",
                &format!("does not divide the {last} channels of the middle"),
            ));
        }
        // A head wider than a level is possible only when it does not divide it, which is refused above.
        let divisor = 1usize << (n_levels - 1);
        let (rows, columns) = self.sample_size;
        if rows % divisor != 0 || columns % divisor != 0 {
            return Err(read.error(
                "sample_size",
                &format!("{rows} x {columns} is not a multiple of {divisor}, which {n_levels} levels need"),
            ));
        }
        if self.freq_shift >= (self.block_out_channels[0] / 2) as f64 {
            return Err(read.error(
                "freq_shift",
                "must be below half the first level's channels",
            ));
        }
        Ok(())
    }

    /// Shape of one sample.
    pub fn sample_shape(&self) -> SampleShape {
        SampleShape {
            channels: self.in_channels,
            height: self.sample_size.0,
            width: self.sample_size.1,
        }
    }

    /// Width of the time embedding.
    pub fn time_width(&self) -> usize {
        self.time_embedding_dim
            .unwrap_or(4 * self.block_out_channels[0])
    }

    /// `config.json` as diffusers writes it, with the note `_depurate_removed` where units were taken out.
    pub fn to_json(&self) -> Value {
        let blocks = |kinds: &[BlockKind], plain: &str, attention: &str| -> Vec<String> {
            let name = |kind: &BlockKind| {
                if *kind == BlockKind::Plain {
                    plain
                } else {
                    attention
                }
            };
            kinds.iter().map(|kind| name(kind).to_owned()).collect()
        };
        let sample_size = match self.sample_size {
            (rows, columns) if rows == columns => json!(rows),
            (rows, columns) => json!([rows, columns]),
        };
        let mut json = json!({
            "_class_name": "UNet2DModel",
            "_diffusers_version": "0.30.0",
            "act_fn": "silu",
            "add_attention": self.add_attention,
            "attention_head_dim": self.attention_head_dim,
            "attn_norm_num_groups": self.attn_norm_num_groups,
            "block_out_channels": self.block_out_channels,
            "center_input_sample": self.center_input_sample,
            "class_embed_type": null,
            "down_block_types": blocks(&self.down_blocks, "DownBlock2D", "AttnDownBlock2D"),
            "downsample_padding": self.downsample_padding,
            "downsample_type": "conv",
            "dropout": self.dropout,
            "flip_sin_to_cos": self.flip_sin_to_cos,
            "freq_shift": self.freq_shift,
            "in_channels": self.in_channels,
            "layers_per_block": self.layers_per_block,
            "mid_block_scale_factor": self.mid_block_scale_factor,
            "norm_eps": self.norm_eps,
            "norm_num_groups": self.norm_num_groups,
            "num_class_embeds": null,
            "num_train_timesteps": null,
            "out_channels": self.out_channels,
            "resnet_time_scale_shift": match self.time_injection {
                TimeInjection::Add => "default",
                TimeInjection::ScaleShift => "scale_shift",
            },
            "sample_size": sample_size,
            "time_embedding_dim": self.time_embedding_dim,
            "time_embedding_type": "positional",
            "up_block_types": blocks(&self.up_blocks, "UpBlock2D", "AttnUpBlock2D"),
            "upsample_type": "conv",
        });
        self.removed.note_in(&mut json);
        json
    }
}
