//! # Text-to-image pipelines: Stable Diffusion 1 and 2, and small ones in their layout
//!
//! A diffusers `StableDiffusionPipeline` directory, opened up: tokenizer, text encoder, network, autoencoder and the
//! scheduler's configuration, each of which can be looked at, exchanged and written back.
//!
//! | symbol | shape |
//! |---|---|
//! | prompts' states | `[B, C, T]`, the text encoder's final states, planar |
//! | latents | `[B, latent channels, h, w]`, in the scale of the network |
//! | images | `[B, 3, H, W]` in `[-1, 1]`, `H = f h` with the autoencoder's factor `f` |
//!
//! ```text
//! states  = final_norm(h_L) of the prompt's tokens            diffusers' text_encoder(...)[0]
//! eps     = eps_u + g (eps_c - eps_u)                         classifier-free guidance, arXiv:2207.12598, eq. (6)
//! latents = scaling_factor z,   image = decoder(latents / scaling_factor)
//! ```
//!
//! Guidance here is written as diffusers does: `g = 1` is the prompt alone, which is `w = g - 1 = 0` in the paper.
//! [`TextToImage::guided`] gives a [`Denoiser`](crate::Denoiser) for any sampler; with `g != 1` a step is **one** call of the
//! network on a batch of both halves, the unconditional first. "A UNet call" means this batched call everywhere: the pair
//! counts once.
//!
//! Deviation: diffusers guides for `g > 1` only; here every `g` but 1 is the formula above.

mod files;
mod guided;

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};

pub use guided::Guided;

use crate::{
    DiffusionError, SampleShape,
    autoencoder_kl::{AutoencoderKl, Posterior},
    channel_graph::{PrunableNetwork, Removal},
    clip_text::ClipText,
    clip_tokenizer::{ClipTokenizer, Tokens},
    module_weights::ParameterInfo,
    ops,
    schedule::{NoiseSchedule, SchedulerConfig},
    unet2d_condition::UNet2DCondition,
};

/// The parts of a pipeline. Each knows its own configuration.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Makes tokens of a prompt.
    pub tokenizer: ClipTokenizer,
    /// Makes states of tokens.
    pub text_encoder: ClipText,
    /// Denoises latents, given states.
    pub unet: UNet2DCondition,
    /// Between images and latents.
    pub vae: AutoencoderKl,
    /// The sampler and the noise schedule that the model was made for.
    pub scheduler: SchedulerConfig,
}

/// A text-to-image pipeline. See the [module](self).
#[derive(Debug, Clone)]
pub struct TextToImage {
    parts: Parts,
    schedule: NoiseSchedule,
    device: Device,
}

/// Prompts as the network takes them.
#[derive(Debug, Clone)]
pub struct EncodedPrompts {
    /// The tokens of each prompt.
    pub tokens: Vec<Tokens>,
    /// The text encoder's final states, `[B, C, T]`.
    pub states: Tensor<3>,
}

impl TextToImage {
    /// Assembles a pipeline; the parts' tensors must be on `device`. The scheduler's configuration is taken
    /// [for latents](SchedulerConfig::for_latents).
    ///
    /// # Errors
    /// When the parts do not fit each other, the network needs SDXL's added conditioning, or the scheduler's configuration
    /// gives no valid schedule.
    pub fn from_parts(parts: Parts, device: &Device) -> Result<Self, DiffusionError> {
        check(&parts)?;
        let parts = Parts {
            scheduler: parts.scheduler.for_latents(),
            ..parts
        };
        Ok(Self {
            schedule: parts.scheduler.schedule()?,
            parts,
            device: device.clone(),
        })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &ClipTokenizer {
        &self.parts.tokenizer
    }

    /// The text encoder.
    pub fn text_encoder(&self) -> &ClipText {
        &self.parts.text_encoder
    }

    /// The network.
    pub fn unet(&self) -> &UNet2DCondition {
        &self.parts.unet
    }

    /// The autoencoder.
    pub fn vae(&self) -> &AutoencoderKl {
        &self.parts.vae
    }

    /// The scheduler's configuration.
    pub fn scheduler(&self) -> &SchedulerConfig {
        &self.parts.scheduler
    }

    /// The training noise schedule.
    pub fn schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }

    /// Where the pipeline's tensors live.
    pub fn device(&self) -> Device {
        self.device.clone()
    }

    /// The same pipeline around another network of the same configuration.
    pub fn with_unet(&self, unet: UNet2DCondition) -> Self {
        let mut changed = self.clone();
        changed.parts.unet = unet;
        changed
    }

    /// The pipeline without the units of `removal` in its denoiser, numbered as in `ChannelGraph::of` the denoiser's configuration.
    ///
    /// # Errors
    /// As [`PrunableNetwork::pruned`].
    pub fn pruned(&self, removal: &Removal) -> Result<Self, DiffusionError> {
        let unet = &self.parts.unet;
        Ok(self.with_unet(unet.pruned(unet.config(), removal, &self.device)?))
    }

    /// The pipeline with zeros in the place of all units that were taken out: the same answers in diffusers' layout.
    ///
    /// # Errors
    /// As [`PrunableNetwork::expanded`].
    pub fn expanded(&self) -> Result<Self, DiffusionError> {
        let unet = &self.parts.unet;
        Ok(self.with_unet(unet.expanded(unet.config(), &self.device)?))
    }

    /// The same pipeline with another text encoder of the same configuration.
    pub fn with_text_encoder(&self, text_encoder: ClipText) -> Self {
        let mut changed = self.clone();
        changed.parts.text_encoder = text_encoder;
        changed
    }

    /// The same pipeline with another scheduler.
    ///
    /// # Errors
    /// When its configuration gives no valid schedule.
    pub fn with_scheduler(&self, scheduler: SchedulerConfig) -> Result<Self, DiffusionError> {
        let parts = Parts {
            scheduler,
            ..self.parts.clone()
        };
        Self::from_parts(parts, &self.device)
    }

    /// The same pipeline with frozen weights: gradients flow to inputs only.
    pub fn frozen(&self) -> Self {
        let Parts {
            tokenizer,
            text_encoder,
            unet,
            vae,
            scheduler,
        } = self.parts.clone();
        Self {
            parts: Parts {
                tokenizer,
                text_encoder: text_encoder.valid(),
                unet: unet.valid(),
                vae: vae.valid(),
                scheduler,
            },
            schedule: self.schedule.clone(),
            device: self.device.clone().inner(),
        }
    }

    /// Number of parameters of text encoder, network and autoencoder together.
    pub fn parameter_count(&self) -> usize {
        let count = |all: Vec<ParameterInfo>| -> usize {
            all.iter()
                .map(|info| info.shape.iter().product::<usize>())
                .sum()
        };
        let parts = &self.parts;
        count(parts.text_encoder.parameters())
            + count(parts.unet.parameters())
            + count(parts.vae.parameters())
    }

    /// The tokens and states of prompts. Gradients reach the text encoder's parameters if they ask for them.
    ///
    /// # Errors
    /// When there is no prompt, or the tokenizer fails on one.
    pub fn encode(&self, prompts: &[&str]) -> Result<EncodedPrompts, DiffusionError> {
        let tokens = prompts
            .iter()
            .map(|prompt| self.parts.tokenizer.encode(prompt));
        let tokens: Vec<Tokens> = tokens.collect::<Result<_, _>>()?;
        let ids: Vec<Vec<u32>> = tokens.iter().map(|tokens| tokens.ids.clone()).collect();
        let states = self.parts.text_encoder.forward(&ids)?.last;
        Ok(EncodedPrompts { tokens, states })
    }

    /// The denoiser of prompts with states `conditional [B, C, T]`, guided away from `unconditional` (of the same shape, or
    /// one for all) by `guidance`; 1 is the prompt alone, and 7.5 what diffusers takes.
    ///
    /// It takes `x_t [N, ..]` with `N = B`, or any `N` if `B` is 1.
    ///
    /// # Errors
    /// When the shapes do not fit or `guidance` is not finite.
    pub fn guided(
        &self,
        conditional: Tensor<3>,
        unconditional: Tensor<3>,
        guidance: f64,
    ) -> Result<Guided<'_>, DiffusionError> {
        Guided::new(self, conditional, Some(unconditional), guidance)
    }

    /// The denoiser of prompts with states `[B, C, T]` without guidance: [`TextToImage::guided`] with `guidance` 1.
    ///
    /// # Errors
    /// When the shape does not fit.
    pub fn conditioned(&self, states: Tensor<3>) -> Result<Guided<'_>, DiffusionError> {
        Guided::new(self, states, None, 1.0)
    }

    /// Shape of one latent.
    pub fn latent_shape(&self) -> SampleShape {
        self.parts.unet.config().sample_shape()
    }

    /// Shape of one image.
    pub fn image_shape(&self) -> SampleShape {
        let (latent, vae) = (self.latent_shape(), self.parts.vae.config());
        SampleShape {
            channels: vae.out_channels,
            height: latent.height * vae.size_factor(),
            width: latent.width * vae.size_factor(),
        }
    }

    /// The images `[B, 3, H, W]` of latents `[B, latent channels, h, w]`; in `[-1, 1]`, but not clamped.
    ///
    /// # Errors
    /// When the shape does not fit.
    pub fn decode(&self, latents: Tensor<4>) -> Result<Tensor<4>, DiffusionError> {
        // the network's working memory, up to a tenth of its weights, is of no use to the autoencoder
        depurate_kernels::release_scratch();
        ops::release_buffers();
        let vae = &self.parts.vae;
        vae.decode(latents / vae.config().scaling_factor)
    }

    /// The latents' Gaussian for images `[B, 3, H, W]` in `[-1, 1]`, in the scale of the network.
    ///
    /// # Errors
    /// When the shape does not fit.
    pub fn encode_images(&self, images: Tensor<4>) -> Result<Posterior, DiffusionError> {
        let vae = &self.parts.vae;
        let factor = vae.config().scaling_factor;
        let Posterior { mean, log_variance } = vae.encode(images)?;
        Ok(Posterior {
            mean: mean * factor,
            log_variance: log_variance + 2.0 * factor.ln(),
        })
    }
}

/// Refuses parts that do not fit each other.
fn check(parts: &Parts) -> Result<(), DiffusionError> {
    let (text, unet) = (parts.text_encoder.config(), parts.unet.config());
    let latent = parts.vae.config().latent_channels;
    if unet.added.is_some() {
        return Err(DiffusionError::Argument {
            what: "added conditioning of a text-to-image pipeline's network",
            got: "SDXL's".to_owned(),
            allowed: "none: networks of Stable Diffusion 1 and 2".to_owned(),
        });
    }
    let equal = [
        (
            "the width of the text encoder's states",
            text.hidden_size,
            "the width that the network attends to",
            unet.cross_attention_dim,
        ),
        (
            "the number of the network's input channels",
            unet.in_channels,
            "the number of the autoencoder's latent channels",
            latent,
        ),
        (
            "the number of the network's output channels",
            unet.out_channels,
            "the number of the autoencoder's latent channels",
            latent,
        ),
    ];
    let at_most = [
        (
            "the number of the tokenizer's tokens a prompt",
            parts.tokenizer.length(),
            "the number of the text encoder's positions",
            text.max_position_embeddings,
        ),
        (
            "the size of the tokenizer's vocabulary",
            parts.tokenizer.vocabulary_size(),
            "the size of the text encoder's",
            text.vocab_size,
        ),
    ];
    let unequal = equal
        .into_iter()
        .find(|(_, got, _, expected)| got != expected);
    let larger = at_most
        .into_iter()
        .find(|(_, got, _, expected)| got > expected);
    match unequal.or(larger) {
        None => Ok(()),
        Some((left, got, right, expected)) => Err(DiffusionError::Parts {
            left,
            got,
            right,
            expected,
        }),
    }
}
