//! `UNet2DConditionModel`'s `config.json`.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::{
    DiffusionError, SampleShape,
    channel_graph::{ChannelGraph, NOTE, Removal},
    config_options::{MAX_CHANNELS, MAX_LAYERS, Reader},
};

/// Options that change nothing at their only supported value, or for us.
const FIXED: &[(&str, &[Value])] = &[
    ("addition_embed_type_num_heads", &[]),
    ("attention_type", &[]),
    ("class_embed_type", &[Value::Null]),
    (
        "class_embeddings_concat",
        &[Value::Null, Value::Bool(false)],
    ),
    ("cross_attention_norm", &[Value::Null]),
    ("dual_cross_attention", &[Value::Null, Value::Bool(false)]),
    ("encoder_hid_dim", &[Value::Null]),
    ("encoder_hid_dim_type", &[Value::Null]),
    (
        "mid_block_only_cross_attention",
        &[Value::Null, Value::Bool(false)],
    ),
    ("num_class_embeds", &[Value::Null]),
    ("only_cross_attention", &[Value::Null, Value::Bool(false)]),
    ("resnet_skip_time_act", &[Value::Null, Value::Bool(false)]),
    ("reverse_transformer_layers_per_block", &[Value::Null]),
    ("time_cond_proj_dim", &[Value::Null]),
    ("time_embedding_act_fn", &[Value::Null]),
    ("timestep_post_act", &[Value::Null]),
    // computing scores in single precision is what we do anyway
    ("upcast_attention", &[]),
];

/// The options that [`UNet2DConditionConfig`] reads.
const READ: &[&str] = &[
    "act_fn",
    "addition_embed_type",
    "addition_time_embed_dim",
    "attention_head_dim",
    "block_out_channels",
    "center_input_sample",
    "conv_in_kernel",
    "conv_out_kernel",
    "cross_attention_dim",
    "down_block_types",
    "downsample_padding",
    "dropout",
    "flip_sin_to_cos",
    "freq_shift",
    "in_channels",
    "layers_per_block",
    "mid_block_scale_factor",
    "mid_block_type",
    "norm_eps",
    "norm_num_groups",
    "num_attention_heads",
    "out_channels",
    "projection_class_embeddings_input_dim",
    "resnet_out_scale_factor",
    "resnet_time_scale_shift",
    "sample_size",
    "time_embedding_dim",
    "time_embedding_type",
    "transformer_layers_per_block",
    "up_block_types",
    "use_linear_projection",
];

/// The added conditioning of SDXL: sizes as sinusoids, joined to a pooled prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddedConditioning {
    /// Width of the sinusoid of each number.
    pub time_width: usize,
    /// Width of the pooled prompt and all sinusoids together.
    pub input_width: usize,
}

/// Configuration of a [`super::UNet2DCondition`], as diffusers writes it.
#[derive(Debug, Clone, PartialEq)]
pub struct UNet2DConditionConfig {
    /// Size of the latent `(rows, columns)`.
    pub sample_size: (usize, usize),
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Whether the input is mapped to `2 x - 1` first.
    pub center_input_sample: bool,
    /// `freq_shift` of the sinusoidal embedding.
    pub freq_shift: f64,
    /// Whether the embedding is `[cos, sin]` (true) or `[sin, cos]`.
    pub flip_sin_to_cos: bool,
    /// Width of the time embedding; `None` is four times the first level's channels.
    pub time_embedding_dim: Option<usize>,
    /// Which levels of the way down attend to the prompt.
    pub down_attention: Vec<bool>,
    /// Which levels of the way up do, from the deepest.
    pub up_attention: Vec<bool>,
    /// Channels of each level.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each level of the way down; the way up has one more.
    pub layers_per_block: Vec<usize>,
    /// Transformer blocks of each attention of a level.
    pub transformer_layers_per_block: Vec<usize>,
    /// Heads of each level (`attention_head_dim`, a misnomer of diffusers).
    pub heads: Vec<usize>,
    /// Channels of the text encoder's states.
    pub cross_attention_dim: usize,
    /// Whether the projections around a transformer are linear layers instead of 1x1 convolutions.
    pub use_linear_projection: bool,
    /// Divides the residual sums of the middle block.
    pub mid_block_scale_factor: f64,
    /// 1: padding on every side; 0: after the image only.
    pub downsample_padding: usize,
    /// Groups of every group normalisation.
    pub norm_num_groups: usize,
    /// Added to the variance in the residual blocks.
    pub norm_eps: f64,
    /// SDXL's added conditioning.
    pub added: Option<AddedConditioning>,
    /// Dropout in training. Read and written back, never applied here.
    pub dropout: f64,
    /// Units that were taken out of the network that the other options describe; key `_depurate_removed`. See
    /// [`crate::channel_graph`].
    pub removed: Removal,
}

impl UNet2DConditionConfig {
    /// Parses `config.json`; `path` is named in errors.
    ///
    /// # Errors
    /// On an option that is unknown, unsupported, out of range or inconsistent with others.
    pub fn from_json(map: &Map<String, Value>, path: &Path) -> Result<Self, DiffusionError> {
        let read = Reader { map, path };
        let fixed = FIXED.iter().map(|(name, _)| *name);
        let known: Vec<&str> = fixed.chain(READ.iter().copied()).collect();
        read.refuse_unknown(&known)?;
        for (name, allowed) in FIXED.iter().filter(|(_, allowed)| !allowed.is_empty()) {
            read.one_of(name, allowed)?;
        }
        read.only("_class_name", &["UNet2DConditionModel"])?;
        read.only("act_fn", &["silu", "swish"])?;
        read.only("time_embedding_type", &["positional"])?;
        read.only("resnet_time_scale_shift", &["default"])?;
        read.only("mid_block_type", &["UNetMidBlock2DCrossAttn"])?;
        for option in ["conv_in_kernel", "conv_out_kernel"] {
            if read.size(option, 3, 99)? != 3 {
                return Err(read.error(option, "expected 3"));
            }
        }
        if read.number("resnet_out_scale_factor", 1.0)? != 1.0 {
            return Err(read.error("resnet_out_scale_factor", "expected 1"));
        }
        let channels = read.sizes("block_out_channels", &[320, 640, 1280, 1280], MAX_CHANNELS)?;
        let per_level =
            |option, default, most| read.sizes_or_one(option, default, most, channels.len());
        let heads_option = if read.get("num_attention_heads").is_some() {
            "num_attention_heads"
        } else {
            "attention_head_dim"
        };
        let config = Self {
            sample_size: read.sample_size()?,
            in_channels: read.size("in_channels", 4, 64)?,
            out_channels: read.size("out_channels", 4, 64)?,
            center_input_sample: read.flag("center_input_sample", false)?,
            freq_shift: read.number("freq_shift", 0.0)?,
            flip_sin_to_cos: read.flag("flip_sin_to_cos", true)?,
            time_embedding_dim: read.optional_size("time_embedding_dim", None, 4 * MAX_CHANNELS)?,
            down_attention: read.blocks(
                "down_block_types",
                &[("DownBlock2D", false), ("CrossAttnDownBlock2D", true)],
            )?,
            up_attention: read.blocks(
                "up_block_types",
                &[("UpBlock2D", false), ("CrossAttnUpBlock2D", true)],
            )?,
            layers_per_block: per_level("layers_per_block", 2, MAX_LAYERS)?,
            transformer_layers_per_block: per_level("transformer_layers_per_block", 1, MAX_LAYERS)?,
            heads: per_level(heads_option, 8, MAX_CHANNELS)?,
            cross_attention_dim: read.size("cross_attention_dim", 1280, MAX_CHANNELS)?,
            use_linear_projection: read.flag("use_linear_projection", false)?,
            mid_block_scale_factor: read.number("mid_block_scale_factor", 1.0)?,
            downsample_padding: read.count("downsample_padding", 1)?,
            norm_num_groups: read.size("norm_num_groups", 32, MAX_CHANNELS)?,
            norm_eps: read.number("norm_eps", 1e-5)?,
            added: added(&read)?,
            dropout: read.number("dropout", 0.0)?,
            removed: Removal::noted(&read)?,
            block_out_channels: channels,
        };
        config.check(&read)?;
        if !config.removed.is_empty() {
            ChannelGraph::of(&config).map_err(|error| read.error(NOTE, &error.to_string()))?;
        }
        Ok(config)
    }

    fn check(&self, read: &Reader<'_>) -> Result<(), DiffusionError> {
        let n_levels = self.block_out_channels.len();
        if self.down_attention.len() != n_levels || self.up_attention.len() != n_levels {
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
        for (&channels, &heads) in self.block_out_channels.iter().zip(&self.heads) {
            if channels % self.norm_num_groups != 0 || channels % 2 != 0 {
                return Err(read.error(
                    "block_out_channels",
                    &format!("{channels} is not even or not a multiple of norm_num_groups"),
                ));
            }
            if channels % heads != 0 {
                return Err(read.error(
                    "attention_head_dim",
                    &format!("{heads} heads do not divide {channels} channels"),
                ));
            }
        }
        let divisor = self.size_divisor();
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

    /// Shape of one latent.
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

    /// What rows and columns must be multiples of.
    pub(crate) fn size_divisor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// `config.json` as diffusers writes it, with the note `_depurate_removed` where units were taken out.
    pub fn to_json(&self) -> Value {
        let blocks = |attention: &[bool], plain: &str, cross: &str| -> Vec<String> {
            let name = |cross_attends: &bool| if *cross_attends { cross } else { plain };
            attention.iter().map(|a| name(a).to_owned()).collect()
        };
        let one_or_list = |sizes: &[usize]| match sizes {
            [first, rest @ ..] if rest.iter().all(|size| size == first) => json!(first),
            sizes => json!(sizes),
        };
        let sample_size = match self.sample_size {
            (rows, columns) if rows == columns => json!(rows),
            (rows, columns) => json!([rows, columns]),
        };
        let mut json = json!({
            "_class_name": "UNet2DConditionModel",
            "_diffusers_version": "0.30.0",
            "act_fn": "silu",
            "addition_embed_type": self.added.map(|_| "text_time"),
            "addition_time_embed_dim": self.added.map(|added| added.time_width),
            "attention_head_dim": one_or_list(&self.heads),
            "block_out_channels": self.block_out_channels,
            "center_input_sample": self.center_input_sample,
            "cross_attention_dim": self.cross_attention_dim,
            "down_block_types": blocks(&self.down_attention, "DownBlock2D", "CrossAttnDownBlock2D"),
            "downsample_padding": self.downsample_padding,
            "dropout": self.dropout,
            "flip_sin_to_cos": self.flip_sin_to_cos,
            "freq_shift": self.freq_shift,
            "in_channels": self.in_channels,
            "layers_per_block": one_or_list(&self.layers_per_block),
            "mid_block_scale_factor": self.mid_block_scale_factor,
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "norm_eps": self.norm_eps,
            "norm_num_groups": self.norm_num_groups,
            "out_channels": self.out_channels,
            "projection_class_embeddings_input_dim": self.added.map(|added| added.input_width),
            "resnet_time_scale_shift": "default",
            "sample_size": sample_size,
            "time_embedding_dim": self.time_embedding_dim,
            "time_embedding_type": "positional",
            "transformer_layers_per_block": one_or_list(&self.transformer_layers_per_block),
            "up_block_types": blocks(&self.up_attention, "UpBlock2D", "CrossAttnUpBlock2D"),
            "use_linear_projection": self.use_linear_projection,
        });
        self.removed.note_in(&mut json);
        json
    }
}

fn added(read: &Reader<'_>) -> Result<Option<AddedConditioning>, DiffusionError> {
    if read.get("addition_embed_type").is_none() {
        return Ok(None);
    }
    read.only("addition_embed_type", &["text_time"])?;
    let needed = |option, most| {
        read.optional_size(option, None, most)?
            .ok_or_else(|| read.error(option, "needed with addition_embed_type \"text_time\""))
    };
    Ok(Some(AddedConditioning {
        time_width: needed("addition_time_embed_dim", MAX_CHANNELS)?,
        input_width: needed("projection_class_embeddings_input_dim", 4 * MAX_CHANNELS)?,
    }))
}
