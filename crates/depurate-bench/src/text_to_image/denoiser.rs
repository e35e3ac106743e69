//! The denoiser of latents.

use std::path::PathBuf;

use clap::Args;
use depurate_attack::text_to_image::denoiser::{Frozen, Latents, train_denoiser};
use depurate_checkpoint::Limits;
use depurate_diffusion::{
    autoencoder_kl::AutoencoderKlConfig,
    channel_graph::Removal,
    clip_text::ClipTextConfig,
    clip_tokenizer::ClipTokenizer,
    noise::SeedTree,
    schedule::NoiseSchedule,
    unet2d_condition::{UNet2DCondition, UNet2DConditionConfig},
};
use miette::{IntoDiagnostic, Result, bail};

use super::{Drawings, component};
use crate::{
    console::{CancelFlag, Progress, say},
    model::training_device,
    train::Schedule,
};

/// Groups of every normalisation.
const GROUPS: usize = 16;
/// Train a denoiser of latents.
#[derive(Debug, Args)]
pub(crate) struct DenoiserCommand {
    #[command(flatten)]
    drawings: Drawings,
    /// The tokenizer's folder.
    #[arg(long, value_name = "DIR")]
    tokenizer: PathBuf,
    /// The text encoder's folder.
    #[arg(long, value_name = "DIR")]
    text_encoder: PathBuf,
    /// The autoencoder's folder.
    #[arg(long, value_name = "DIR")]
    autoencoder: PathBuf,
    /// Start from these weights instead of random ones.
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Channels of each level, from the finest.
    #[arg(long, value_delimiter = ',', default_value = "64,96,96")]
    channels: Vec<usize>,
    /// Residual blocks, and attentions to the prompt, of each level on the way down; the way up has one more.
    #[arg(long, value_delimiter = ',', default_value = "1,1,2")]
    layers: Vec<usize>,
    /// Levels that attend to nothing, counted from the finest: Stable Diffusion 1 has none, SDXL has one.
    #[arg(long, default_value_t = 1)]
    plain_levels: usize,
    /// Channels of an attention head.
    #[arg(long, default_value_t = 32)]
    head_width: usize,
    /// Pictures of each composition.
    #[arg(long, default_value_t = 8)]
    each: usize,
    /// Share of captions that are replaced by the empty prompt.
    #[arg(long, default_value_t = 0.1)]
    caption_dropout: f64,
    #[command(flatten)]
    schedule: Schedule,
    /// The denoiser's directory, which must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl DenoiserCommand {
    /// Runs the command.
    pub(crate) fn run(self, cancel: &CancelFlag) -> Result<()> {
        if !(0.0..1.0).contains(&self.caption_dropout) || self.head_width == 0 {
            bail!("--caption-dropout is a share below 1, --head-width at least 1");
        }
        let sprites = self.drawings.read()?;
        let limits = Limits::default();
        let device = training_device();
        let frozen_device = device.clone().inner();
        let seed = SeedTree::new(self.schedule.seed);
        let tokenizer = ClipTokenizer::load(&self.tokenizer, &limits).into_diagnostic()?;
        let text_encoder = component::text_encoder(&self.text_encoder, &frozen_device)?;
        let autoencoder = component::autoencoder(&self.autoencoder, &frozen_device)?;
        let unet_config = self.config(
            autoencoder.config(),
            text_encoder.config(),
            sprites.shape().width,
        )?;
        let unet = UNet2DCondition::new(&unet_config, &seed.child("weights", 0), &device);
        let unet = match &self.from {
            Some(dir) => unet
                .load(&component::weights(dir, component::DIFFUSERS_STEM)?, dir)
                .into_diagnostic()?,
            None => unet,
        };
        let count: usize = unet
            .parameters()
            .iter()
            .map(|p| p.shape.iter().product::<usize>())
            .sum();
        say(&format!("{count} parameters"));
        let progress = Progress::new("pictures", 1000, cancel);
        let latents = Latents::encode(
            &sprites,
            &autoencoder,
            self.each,
            &seed.child("latents", 0),
            &frozen_device,
            &mut |share| {
                let _ = progress.share(share);
            },
        )
        .into_diagnostic()?;
        progress.finish();
        let schedule = NoiseSchedule::scaled_linear(1000, 0.00085, 0.012).into_diagnostic()?;
        let frozen = Frozen {
            tokenizer: &tokenizer,
            text_encoder: &text_encoder,
            schedule: &schedule,
            dropout: self.caption_dropout,
        };
        let training = self.schedule.params();
        component::run(
            "denoiser",
            &self.out,
            &self.schedule,
            cancel,
            |state, progress| {
                let done = train_denoiser(
                    unet,
                    &sprites,
                    &latents,
                    frozen,
                    &training,
                    &device,
                    Some(state),
                    progress,
                );
                Ok((done?, ()))
            },
            |unet, ()| {
                component::save(
                    &self.out,
                    component::DIFFUSERS_STEM,
                    &unet_config.to_json(),
                    &unet.to_tensors(),
                )
            },
        )
    }

    /// Stable Diffusion's layout.
    fn config(
        &self,
        autoencoder: &AutoencoderKlConfig,
        text: &ClipTextConfig,
        side: usize,
    ) -> Result<UNet2DConditionConfig> {
        let levels = self.channels.len();
        if self.layers.len() != levels {
            bail!("--channels and --layers need one entry a level");
        }
        let side = side / autoencoder.size_factor();
        let config = UNet2DConditionConfig {
            sample_size: (side, side),
            in_channels: autoencoder.latent_channels,
            out_channels: autoencoder.latent_channels,
            center_input_sample: false,
            freq_shift: 0.0,
            flip_sin_to_cos: true,
            time_embedding_dim: None,
            down_attention: (0..levels)
                .map(|level| level >= self.plain_levels)
                .collect(),
            up_attention: (0..levels)
                .rev()
                .map(|level| level >= self.plain_levels)
                .collect(),
            block_out_channels: self.channels.clone(),
            layers_per_block: self.layers.clone(),
            transformer_layers_per_block: vec![1; levels],
            heads: self
                .channels
                .iter()
                .map(|width| (width / self.head_width).max(1))
                .collect(),
            cross_attention_dim: text.hidden_size,
            use_linear_projection: false,
            mid_block_scale_factor: 1.0,
            downsample_padding: 1,
            norm_num_groups: GROUPS,
            norm_eps: 1e-5,
            added: None,
            dropout: 0.0,
            removed: Removal::default(),
        };
        // Through the reader of checkpoints, so that a model that could not be loaded again is refused now.
        let json = config.to_json();
        let Some(map) = json.as_object() else {
            bail!("the configuration is not an object")
        };
        UNet2DConditionConfig::from_json(map, &self.out.join("config.json")).into_diagnostic()
    }
}
