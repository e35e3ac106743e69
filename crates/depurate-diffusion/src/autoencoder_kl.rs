//! # `AutoencoderKL` of diffusers: between images and latents
//!
//! | symbol | shape |
//! |---|---|
//! | `x` | `[B, 3, H, W]`, an image in `[-1, 1]` |
//! | mean, log variance | `[B, latent_channels, H / f, W / f]` each; `f = 2^(levels - 1)` |
//! | `z` | as the mean |
//!
//! ```text
//! [mean, log variance] = quant_conv(encoder x),   log variance clamped to [-30, 20]
//! z = mean + exp(log variance / 2) eps,            x' = decoder(post_quant_conv z)
//! ```
//!
//! A diffusion model sees `scaling_factor z`; that factor is applied by the pipeline, never here.
//! The module tree has diffusers' names; those of old files (`query`, `key`, `value`, `proj_attn`) are understood.

mod config;

use std::path::Path;

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};
use depurate_checkpoint::{SaveTensor, Weights, rename_deprecated_attention};

pub use config::AutoencoderKlConfig;

use crate::{
    DiffusionError,
    blocks::{PixelAttention, PixelAttentionOptions, Resample, ResnetBlock, ResnetOptions},
    layers::{Conv1x1, Conv3x3, GroupNorm, Init},
    module_weights::{self, ParameterInfo},
    noise::SeedTree,
    ops::{self, Stride},
};

/// Added to the variance in every normalisation of the autoencoder.
const NORM_EPS: f64 = 1e-6;

/// Residual blocks, then a change of size.
#[derive(Module, Debug)]
struct DownLevel {
    resnets: Vec<ResnetBlock>,
    downsamplers: Vec<Resample>,
}

#[derive(Module, Debug)]
struct UpLevel {
    resnets: Vec<ResnetBlock>,
    upsamplers: Vec<Resample>,
}

#[derive(Module, Debug)]
struct Middle {
    attentions: Vec<PixelAttention>,
    resnets: Vec<ResnetBlock>,
}

impl Middle {
    fn new(init: &Init, config: &AutoencoderKlConfig, channels: usize) -> Self {
        let attention = PixelAttentionOptions {
            groups: Some(config.norm_num_groups),
            eps: NORM_EPS,
            head_width: None,
            output_scale: 1.0,
        };
        Self {
            attentions: config
                .mid_block_add_attention
                .then(|| PixelAttention::new(&init.at("attentions.0"), attention, channels))
                .into_iter()
                .collect(),
            resnets: resnets(init, config, channels, channels, 2),
        }
    }

    fn forward(&self, mut x: Tensor<4>) -> Tensor<4> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            x = resnet.forward(x, None);
            if let Some(attention) = self.attentions.get(i) {
                x = attention.forward(x);
            }
        }
        x
    }
}

fn resnets(
    init: &Init,
    config: &AutoencoderKlConfig,
    c_in: usize,
    c_out: usize,
    count: usize,
) -> Vec<ResnetBlock> {
    let options = ResnetOptions {
        groups: config.norm_num_groups,
        eps: NORM_EPS,
        time_width: None,
        scale_shift: false,
        output_scale: 1.0,
    };
    let block = |i: usize| {
        let c_in = if i == 0 { c_in } else { c_out };
        ResnetBlock::new(&init.at(format!("resnets.{i}")), options, c_in, c_out)
    };
    (0..count).map(block).collect()
}

#[derive(Module, Debug)]
struct Encoder {
    conv_in: Conv3x3,
    down_blocks: Vec<DownLevel>,
    mid_block: Middle,
    conv_norm_out: GroupNorm,
    conv_out: Conv3x3,
}

impl Encoder {
    fn new(init: &Init, config: &AutoencoderKlConfig) -> Self {
        let levels = &config.block_out_channels;
        let last = levels.len() - 1;
        let level = |i: usize| {
            let init = init.at(format!("down_blocks.{i}"));
            let c_in = levels[i.saturating_sub(1)];
            let resample = || Resample::new(&init.at("downsamplers.0"), levels[i]);
            DownLevel {
                resnets: resnets(&init, config, c_in, levels[i], config.layers_per_block),
                downsamplers: (i < last).then(resample).into_iter().collect(),
            }
        };
        let moments = 2 * config.latent_channels;
        Self {
            conv_in: Conv3x3::new(&init.at("conv_in"), config.in_channels, levels[0]),
            down_blocks: (0..=last).map(level).collect(),
            mid_block: Middle::new(&init.at("mid_block"), config, levels[last]),
            conv_norm_out: norm(init, config, levels[last]),
            conv_out: Conv3x3::new(&init.at("conv_out"), levels[last], moments),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let mut x = self.conv_in.forward(x, Stride::One);
        for level in &self.down_blocks {
            x = level
                .resnets
                .iter()
                .fold(x, |x, resnet| resnet.forward(x, None));
            for downsampler in &level.downsamplers {
                x = downsampler.conv.forward(x, Stride::TwoAfterOnly);
            }
        }
        let x = self.mid_block.forward(x);
        self.conv_out.forward_normed(&self.conv_norm_out, x, None)
    }
}

#[derive(Module, Debug)]
struct Decoder {
    conv_in: Conv3x3,
    up_blocks: Vec<UpLevel>,
    mid_block: Middle,
    conv_norm_out: GroupNorm,
    conv_out: Conv3x3,
}

impl Decoder {
    fn new(init: &Init, config: &AutoencoderKlConfig) -> Self {
        let levels = &config.block_out_channels;
        let last = levels.len() - 1;
        let level = |i: usize| {
            let init = init.at(format!("up_blocks.{i}"));
            let (channels, below) = (levels[last - i], levels[(last - i + 1).min(last)]);
            let resample = || Resample::new(&init.at("upsamplers.0"), channels);
            UpLevel {
                resnets: resnets(&init, config, below, channels, config.layers_per_block + 1),
                upsamplers: (i < last).then(resample).into_iter().collect(),
            }
        };
        Self {
            conv_in: Conv3x3::new(&init.at("conv_in"), config.latent_channels, levels[last]),
            up_blocks: (0..=last).map(level).collect(),
            mid_block: Middle::new(&init.at("mid_block"), config, levels[last]),
            conv_norm_out: norm(init, config, levels[0]),
            conv_out: Conv3x3::new(&init.at("conv_out"), levels[0], config.out_channels),
        }
    }

    fn forward(&self, z: Tensor<4>) -> Tensor<4> {
        let mut x = self.mid_block.forward(self.conv_in.forward(z, Stride::One));
        for level in &self.up_blocks {
            x = level
                .resnets
                .iter()
                .fold(x, |x, resnet| resnet.forward(x, None));
            for upsampler in &level.upsamplers {
                x = upsampler.conv.forward(ops::upsample2x(x), Stride::One);
            }
        }
        self.conv_out.forward_normed(&self.conv_norm_out, x, None)
    }
}

fn norm(init: &Init, config: &AutoencoderKlConfig, channels: usize) -> GroupNorm {
    GroupNorm::new(
        &init.at("conv_norm_out"),
        channels,
        config.norm_num_groups,
        NORM_EPS,
    )
}

/// The autoencoder. See the [module](self).
#[derive(Module, Debug)]
pub struct AutoencoderKl {
    encoder: Encoder,
    decoder: Decoder,
    quant_conv: Option<Conv1x1>,
    post_quant_conv: Option<Conv1x1>,
    #[module(skip)]
    config: AutoencoderKlConfig,
}

/// What the encoder says of images: a Gaussian of their latents.
#[derive(Debug, Clone)]
pub struct Posterior {
    /// `[B, latent_channels, h, w]`.
    pub mean: Tensor<4>,
    /// As the mean, in `[-30, 20]`.
    pub log_variance: Tensor<4>,
}

impl Posterior {
    /// `mean + std eps` for noise `eps` of the mean's shape.
    pub fn sample(&self, eps: Tensor<4>) -> Tensor<4> {
        self.mean.clone() + (self.log_variance.clone() * 0.5).exp() * eps
    }

    /// Divergence from the standard Gaussian, summed over a latent: `[B]`, in nats.
    pub fn divergence(&self) -> Tensor<1> {
        let each = self.mean.clone().square() + self.log_variance.clone().exp()
            - self.log_variance.clone()
            - 1.0;
        let each: Tensor<2> = each.flatten(1, 3);
        each.sum_dim(1).squeeze_dim::<1>(1) * 0.5
    }
}

impl AutoencoderKl {
    /// An autoencoder with random weights drawn from `seed`; nothing is allocated before it is used.
    pub fn new(config: &AutoencoderKlConfig, seed: &SeedTree, device: &Device) -> Self {
        let init = Init::new(device.clone(), seed.clone());
        let (latent, moments) = (config.latent_channels, 2 * config.latent_channels);
        Self {
            encoder: Encoder::new(&init.at("encoder"), config),
            decoder: Decoder::new(&init.at("decoder"), config),
            quant_conv: config
                .use_quant_conv
                .then(|| Conv1x1::new(&init.at("quant_conv"), moments, moments)),
            post_quant_conv: config
                .use_post_quant_conv
                .then(|| Conv1x1::new(&init.at("post_quant_conv"), latent, latent)),
            config: config.clone(),
        }
    }

    /// What the autoencoder was made from.
    pub fn config(&self) -> &AutoencoderKlConfig {
        &self.config
    }

    /// Every parameter's name and shape, without allocating any of them.
    pub fn parameters(&self) -> Vec<ParameterInfo> {
        module_weights::parameters(self)
    }

    /// Replaces every parameter by the one of the same name in `weights`.
    ///
    /// # Errors
    /// When a parameter is missing, unexpected, mis-shaped or not finite; `path` is named.
    pub fn load(self, weights: &Weights, path: &Path) -> Result<Self, DiffusionError> {
        module_weights::load(self, weights, path, &rename_deprecated_attention, &|_| {
            false
        })
    }

    /// Every parameter's values under its checkpoint name.
    pub fn to_tensors(&self) -> Vec<SaveTensor> {
        module_weights::to_tensors(self)
    }

    /// The latents' Gaussian for images `x [B, 3, H, W]` in `[-1, 1]`.
    ///
    /// # Errors
    /// When the shape does not fit.
    pub fn encode(&self, x: Tensor<4>) -> Result<Posterior, DiffusionError> {
        let factor = self.config.size_factor();
        let [batch, channels, height, width] = x.dims();
        if batch == 0
            || channels != self.config.in_channels
            || height % factor != 0
            || width % factor != 0
        {
            return Err(DiffusionError::Shape {
                what: "images to encode",
                expected: format!(
                    "[B, {}, H, W] with H and W multiples of {factor}",
                    self.config.in_channels
                ),
                got: x.dims().to_vec(),
            });
        }
        let moments = self.encoder.forward(x);
        let moments = match &self.quant_conv {
            Some(conv) => conv.forward(moments),
            None => moments,
        };
        let latent = self.config.latent_channels;
        Ok(Posterior {
            mean: moments.clone().narrow(1, 0, latent),
            log_variance: moments.narrow(1, latent, latent).clamp(-30.0, 20.0),
        })
    }

    /// The images `[B, 3, H, W]` of latents `z [B, latent_channels, h, w]`; not clamped.
    ///
    /// # Errors
    /// When the shape does not fit.
    pub fn decode(&self, z: Tensor<4>) -> Result<Tensor<4>, DiffusionError> {
        let [batch, channels, height, width] = z.dims();
        if batch == 0 || channels != self.config.latent_channels || height * width == 0 {
            return Err(DiffusionError::Shape {
                what: "latents to decode",
                expected: format!("[B, {}, h, w]", self.config.latent_channels),
                got: z.dims().to_vec(),
            });
        }
        let z = match &self.post_quant_conv {
            Some(conv) => conv.forward(z),
            None => z,
        };
        Ok(self.decoder.forward(z))
    }
}
