//! Models: their shape on the command line and in population files, and where they run.

use std::path::Path;

use clap::Args;
use depurate_checkpoint::Limits;
use depurate_diffusion::{
    Device, Pipeline,
    noise::SeedTree,
    schedule::SchedulerConfig,
    unet2d::{BlockKind, TimeInjection, UNet2DConfig},
};
use miette::{IntoDiagnostic, Result, WrapErr, bail};
use serde::{Deserialize, Serialize};

/// The shape of a new network. T = 1000, linear betas and noise prediction, as published checkpoints have.
#[derive(Debug, Clone, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Architecture {
    /// Edge of the square images, in pixels.
    #[arg(long, default_value_t = 28)]
    pub(crate) size: usize,
    /// 1 for grey images, 3 for RGB.
    #[arg(long, default_value_t = 1)]
    pub(crate) image_channels: usize,
    /// Channels of each level, from the finest.
    #[arg(long, value_delimiter = ',', default_value = "16,32,32")]
    pub(crate) channels: Vec<usize>,
    /// Levels with self-attention, counted from 0, the finest. The middle block has its own.
    #[arg(long = "attention-level", value_name = "LEVEL")]
    pub(crate) attention_levels: Vec<usize>,
    /// No attention in the middle block.
    #[arg(long)]
    pub(crate) no_middle_attention: bool,
    /// Residual blocks a level.
    #[arg(long, default_value_t = 1)]
    pub(crate) layers: usize,
    /// Groups of every normalisation.
    #[arg(long, default_value_t = 8)]
    pub(crate) norm_groups: usize,
    /// Training timesteps; fewer than 1000 have betas scaled to end at the same noise.
    #[arg(long, default_value_t = 1000)]
    pub(crate) timesteps: usize,
}

impl Default for Architecture {
    fn default() -> Self {
        Self {
            size: 28,
            image_channels: 1,
            channels: vec![16, 32, 32],
            attention_levels: vec![],
            no_middle_attention: false,
            layers: 1,
            norm_groups: 8,
            timesteps: 1000,
        }
    }
}

impl Architecture {
    /// A new model with weights drawn from `seed`, on the training device.
    pub(crate) fn build(&self, seed: u64) -> Result<Pipeline> {
        let levels = self.channels.len();
        if let Some(level) = self.attention_levels.iter().find(|&&level| level >= levels) {
            bail!(
                "attention level {level} does not exist: there are {levels} levels, counted from 0"
            );
        }
        let kind = |level: usize| {
            if self.attention_levels.contains(&level) {
                BlockKind::Attention
            } else {
                BlockKind::Plain
            }
        };
        let config = UNet2DConfig {
            sample_size: (self.size, self.size),
            in_channels: self.image_channels,
            out_channels: self.image_channels,
            center_input_sample: false,
            freq_shift: 0.0,
            flip_sin_to_cos: true,
            time_embedding_dim: None,
            down_blocks: (0..levels).map(kind).collect(),
            up_blocks: (0..levels).rev().map(kind).collect(),
            block_out_channels: self.channels.clone(),
            layers_per_block: self.layers,
            mid_block_scale_factor: 1.0,
            downsample_padding: 1,
            attention_head_dim: Some(8),
            norm_num_groups: self.norm_groups,
            attn_norm_num_groups: None,
            norm_eps: 1e-5,
            time_injection: TimeInjection::Add,
            add_attention: !self.no_middle_attention,
            dropout: 0.0,
            removed: Default::default(),
        };
        // Through the reader of checkpoints, so that a model that could not be loaded again is refused now.
        let json = config.to_json();
        let Some(map) = json.as_object() else {
            bail!("the configuration is not an object")
        };
        let config = UNet2DConfig::from_json(map, Path::new("config.json")).into_diagnostic()?;
        let scale = 1000.0 / self.timesteps.max(1) as f64;
        let scheduler = SchedulerConfig {
            num_train_timesteps: self.timesteps,
            beta_start: 1e-4 * scale,
            beta_end: 0.02 * scale,
            clip_sample: false, // clipping disarms triggers, so none is asked for
            ..SchedulerConfig::default()
        };
        let seed = SeedTree::new(seed).child("weights", 0);
        Pipeline::random(config, scheduler, &seed, &training_device()).into_diagnostic()
    }
}

/// The device that models are trained on.
pub(crate) fn training_device() -> Device {
    Device::flex().autodiff()
}

/// Loads a model for training.
pub(crate) fn load(dir: &Path) -> Result<Pipeline> {
    Pipeline::load(dir, &Limits::default(), &training_device())
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot load the model {}", dir.display()))
}
