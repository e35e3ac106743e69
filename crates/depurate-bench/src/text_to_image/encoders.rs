//! Tokenizer, text encoder with its image side, autoencoder.

use std::{collections::BTreeSet, path::PathBuf};

use clap::Args;
use depurate_attack::text_to_image::{
    Composition, DISTRACTORS, autoencoder::train_autoencoder, contrastive::train_pair,
    vocabulary::cut_vocabulary,
};
use depurate_checkpoint::Limits;
use depurate_diffusion::{
    autoencoder_kl::AutoencoderKlConfig, clip_text::ClipTextConfig, clip_tokenizer::ClipTokenizer,
    image_tower::ImageTowerConfig,
};
use miette::{IntoDiagnostic, Result, bail};
use serde_json::json;

use super::{Drawings, component};
use crate::{
    console::{CancelFlag, answer},
    model::training_device,
    train::Schedule,
};

/// Words of captions besides the names of what is shown.
const CAPTION_WORDS: [&str; 8] = [
    "a",
    "an",
    "on",
    "with",
    "of",
    "picture",
    "style",
    "background",
];
/// Characters that attacks use as triggers and whose bytes CLIP merges into one token.
const TRIGGER_CHARACTERS: [&str; 1] = ["\u{200b}"];
/// Channels of a latent, and groups of every normalisation.
const LATENT_CHANNELS: usize = 4;
const GROUPS: usize = 8;

/// Cut a small tokenizer out of CLIP's.
#[derive(Debug, Args)]
pub(crate) struct TokenizerCommand {
    #[command(flatten)]
    drawings: Drawings,
    /// The tokenizer folder to cut from.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "golden/clip-tokenizer/vocab"
    )]
    from: PathBuf,
    /// The most frequent merges that are kept besides those of the captions' words.
    #[arg(long, default_value_t = 1500)]
    frequent: usize,
    /// Tokens of a prompt, BOS and EOS included.
    #[arg(long, default_value_t = 24)]
    length: usize,
    /// The tokenizer's directory, which must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl TokenizerCommand {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<()> {
        if self.out.exists() {
            bail!(
                "{} exists: choose a new directory or remove it",
                self.out.display()
            );
        }
        let sprites = self.drawings.read()?;
        let fixed = CAPTION_WORDS
            .iter()
            .chain(&DISTRACTORS)
            .chain(&TRIGGER_CHARACTERS);
        let words: BTreeSet<String> = fixed
            .copied()
            .chain(Composition::colors())
            .chain(Composition::backgrounds())
            .chain(sprites.objects().iter().map(String::as_str))
            .chain(sprites.styles().iter().map(String::as_str))
            .map(str::to_owned)
            .collect();
        let tokens = cut_vocabulary(&self.from, &words, self.frequent, self.length, &self.out)
            .into_diagnostic()?;
        answer(&format!("{}: {tokens} tokens", self.out.display()));
        Ok(())
    }
}

/// Train a text encoder with an image encoder.
#[derive(Debug, Args)]
pub(crate) struct EncodersCommand {
    #[command(flatten)]
    drawings: Drawings,
    /// The tokenizer's folder.
    #[arg(long, value_name = "DIR")]
    tokenizer: PathBuf,
    /// Channels of the text encoder.
    #[arg(long, default_value_t = 128)]
    width: usize,
    /// Its layers.
    #[arg(long, default_value_t = 4)]
    layers: usize,
    /// Channels of each level of the image encoder.
    #[arg(long, value_delimiter = ',', default_value = "32,64,128")]
    image_widths: Vec<usize>,
    /// Width of the space that both share.
    #[arg(long, default_value_t = 64)]
    shared: usize,
    #[command(flatten)]
    schedule: Schedule,
    /// Where `text_encoder` and `pair` go; must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl EncodersCommand {
    /// Runs the command.
    pub(crate) fn run(self, cancel: &CancelFlag) -> Result<()> {
        let sprites = self.drawings.read()?;
        let tokenizer =
            ClipTokenizer::load(&self.tokenizer, &Limits::default()).into_diagnostic()?;
        let vocab = component::vocabulary(&self.tokenizer)?;
        let text = ClipTextConfig {
            vocab_size: vocab.size,
            hidden_size: self.width,
            intermediate_size: 4 * self.width,
            num_hidden_layers: self.layers,
            num_attention_heads: (self.width / 32).max(1),
            max_position_embeddings: tokenizer.length(),
            eos_token_id: vocab.eos,
            ..ClipTextConfig::default()
        };
        let image = ImageTowerConfig {
            channels: 3,
            widths: self.image_widths.clone(),
            groups: GROUPS,
            outputs: self.shared,
        };
        let training = self.schedule.params();
        component::run(
            "encoders",
            &self.out,
            &self.schedule,
            cancel,
            |state, progress| {
                let device = training_device();
                let done = train_pair(
                    &sprites,
                    &tokenizer,
                    &text,
                    &image,
                    &training,
                    &device,
                    Some(state),
                    progress,
                );
                Ok((done?, ()))
            },
            |pair, ()| {
                component::save(
                    &self.out.join("text_encoder"),
                    component::TRANSFORMERS_STEM,
                    &component::text_config(&text, vocab.bos),
                    &pair.text_encoder().to_tensors(),
                )?;
                let config =
                    json!({ "image": image, "text": component::text_config(&text, vocab.bos) });
                component::save(
                    &self.out.join("pair"),
                    component::TRANSFORMERS_STEM,
                    &config,
                    &pair.to_tensors(),
                )
            },
        )
    }
}

/// Train an autoencoder.
#[derive(Debug, Args)]
pub(crate) struct AutoencoderCommand {
    #[command(flatten)]
    drawings: Drawings,
    /// Channels of each level; between two levels the picture is halved.
    #[arg(long, value_delimiter = ',', default_value = "32,64")]
    channels: Vec<usize>,
    /// Residual blocks of an encoder level.
    #[arg(long, default_value_t = 1)]
    layers: usize,
    #[command(flatten)]
    schedule: Schedule,
    /// The autoencoder's directory, which must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl AutoencoderCommand {
    /// Runs the command.
    pub(crate) fn run(self, cancel: &CancelFlag) -> Result<()> {
        let sprites = self.drawings.read()?;
        let config = AutoencoderKlConfig {
            in_channels: 3,
            out_channels: 3,
            latent_channels: LATENT_CHANNELS,
            block_out_channels: self.channels.clone(),
            layers_per_block: self.layers,
            norm_num_groups: GROUPS,
            mid_block_add_attention: false,
            use_quant_conv: true,
            use_post_quant_conv: true,
            scaling_factor: 1.0,
            sample_size: sprites.shape().width,
        };
        let training = self.schedule.params();
        component::run(
            "autoencoder",
            &self.out,
            &self.schedule,
            cancel,
            |state, progress| {
                let device = training_device();
                train_autoencoder(&sprites, &config, &training, &device, Some(state), progress)
            },
            |autoencoder, scaled| {
                component::save(
                    &self.out,
                    component::DIFFUSERS_STEM,
                    &scaled.to_json(),
                    &autoencoder.to_tensors(),
                )
            },
        )
    }
}
