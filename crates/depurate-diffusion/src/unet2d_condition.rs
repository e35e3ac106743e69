//! # `UNet2DConditionModel` of diffusers: the denoiser of Stable Diffusion 1 and 2, and SDXL's with its added conditioning
//!
//! The module tree has diffusers' names: the path of a parameter here is its name in the file.
//!
//! | input | shape |
//! |---|---|
//! | `x_t` | `[B, in_channels, H, W]`, a latent |
//! | `t` | one training timestep a sample, or one for all |
//! | states | `[B, cross_attention_dim, T]`, the text encoder's, planar |
//! | added (SDXL) | pooled prompts `[B, P]`, six numbers of size a sample |
//! | output | `[B, out_channels, H, W]` |
//!
//! A [`Tap`] observes `conv_in`, `down_blocks.i`, `mid_block`, `up_blocks.i` and the map of every attention layer, by its
//! [`AttentionSite`](crate::AttentionSite).
//!
//! Cost of a call at Stable Diffusion 1's size (64 x 64, 77 tokens): 860 million parameters, about 0.34 TFLOP multiply-adds a
//! sample; most of it convolutions, then self-attention over 4096 pixels.

mod blocks;
mod config;
mod pruning;
mod transformer;

use std::path::Path;

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};
use depurate_checkpoint::{SaveTensor, Weights};

pub use config::{AddedConditioning, UNet2DConditionConfig};

use crate::{
    DiffusionError, Site, Stage, Tap,
    layers::{Conv3x3, GroupNorm, Init},
    module_weights::{self, ParameterInfo},
    noise::SeedTree,
    ops::{self, Activation, Stride},
    time_embedding::{Sinusoid, TimeEmbedding, as_times, one_each},
};
use blocks::{Context, DownBlock, MidBlock, UpBlock};

/// SDXL's added conditioning of a call.
#[derive(Debug, Clone)]
pub struct Added {
    /// The pooled prompts, `[B, P]`.
    pub pooled: Tensor<2>,
    /// Original size, crop and target size of each sample, in pixels: six numbers each.
    pub sizes: Vec<Vec<f64>>,
}

/// The network. See the [module](self).
#[derive(Module, Debug)]
pub struct UNet2DCondition {
    conv_in: Conv3x3,
    time_embedding: TimeEmbedding,
    add_embedding: Option<TimeEmbedding>,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv3x3,
    #[module(skip)]
    config: UNet2DConditionConfig,
}

impl UNet2DCondition {
    /// A network with random weights (PyTorch's default initialisation) drawn from `seed`; nothing is allocated before it
    /// is used.
    pub fn new(config: &UNet2DConditionConfig, seed: &SeedTree, device: &Device) -> Self {
        let init = Init::of(config, seed, device);
        let levels = &config.block_out_channels;
        let (first, width) = (levels[0], config.time_width());
        let (groups, eps) = (config.norm_num_groups, config.norm_eps);
        Self {
            conv_in: Conv3x3::new(&init.at("conv_in"), config.in_channels, first),
            time_embedding: TimeEmbedding::new(&init.at("time_embedding"), first, width),
            add_embedding: config.added.map(|added| {
                TimeEmbedding::new(&init.at("add_embedding"), added.input_width, width)
            }),
            down_blocks: (0..levels.len())
                .map(|i| DownBlock::new(&init.at(format!("down_blocks.{i}")), config, i))
                .collect(),
            mid_block: MidBlock::new(&init.at("mid_block"), config),
            up_blocks: (0..levels.len())
                .map(|i| UpBlock::new(&init.at(format!("up_blocks.{i}")), config, i))
                .collect(),
            conv_norm_out: GroupNorm::new(&init.at("conv_norm_out"), first, groups, eps),
            conv_out: Conv3x3::new(&init.at("conv_out"), first, config.out_channels),
            config: config.clone(),
        }
    }

    /// What the network was made from.
    pub fn config(&self) -> &UNet2DConditionConfig {
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
        module_weights::load(self, weights, path, &|_| None, &|_| false)
    }

    /// Every parameter's values under its checkpoint name.
    pub fn to_tensors(&self) -> Vec<SaveTensor> {
        module_weights::to_tensors(self)
    }

    /// The network's output for `x_t [B, C, H, W]` at the training timesteps `t`, given prompts' states `[B, C, T]`.
    ///
    /// # Errors
    /// When the shapes do not fit, or the added conditioning is missing or not expected.
    pub fn forward(
        &self,
        x_t: Tensor<4>,
        t: &[usize],
        states: Tensor<3>,
        added: Option<&Added>,
        tap: &mut dyn Tap,
    ) -> Result<Tensor<4>, DiffusionError> {
        self.forward_at(x_t, &as_times(t), states, added, tap)
    }

    /// As [`UNet2DCondition::forward`], at `times` that may lie between training timesteps.
    ///
    /// # Errors
    /// As [`UNet2DCondition::forward`].
    pub fn forward_at(
        &self,
        x_t: Tensor<4>,
        times: &[f64],
        states: Tensor<3>,
        added: Option<&Added>,
        tap: &mut dyn Tap,
    ) -> Result<Tensor<4>, DiffusionError> {
        let config = &self.config;
        let [batch, channels, height, width] = x_t.dims();
        let divisor = config.size_divisor();
        if channels != config.in_channels
            || height % divisor != 0
            || width % divisor != 0
            || batch == 0
        {
            return Err(DiffusionError::Shape {
                what: "x_t",
                expected: format!(
                    "[B, {}, H, W] with H and W multiples of {divisor}",
                    config.in_channels
                ),
                got: x_t.dims().to_vec(),
            });
        }
        let [of, context, tokens] = states.dims();
        if of != batch || context != config.cross_attention_dim || tokens == 0 {
            return Err(DiffusionError::Shape {
                what: "the prompts' states",
                expected: format!("[{batch}, {}, tokens]", config.cross_attention_dim),
                got: states.dims().to_vec(),
            });
        }
        let time = self.time(times, batch, added, &x_t.device())?;
        let mut context = Context {
            time,
            states,
            input_rows: height,
            stage: Stage::Down,
            tap,
        };
        let x = if config.center_input_sample {
            x_t * 2.0 - 1.0
        } else {
            x_t
        };
        let mut x = self.conv_in.forward(x, Stride::One);
        observe(&mut context, "conv_in", &x);
        let mut skips = vec![x.clone()];
        for (i, block) in self.down_blocks.iter().enumerate() {
            let path = format!("down_blocks.{i}");
            x = block.forward(x, &path, &mut context, &mut skips);
            observe(&mut context, &path, &x);
        }
        context.stage = Stage::Middle;
        x = self.mid_block.forward(x, "mid_block", &mut context);
        observe(&mut context, "mid_block", &x);
        context.stage = Stage::Up;
        for (i, block) in self.up_blocks.iter().enumerate() {
            let path = format!("up_blocks.{i}");
            x = block.forward(x, &path, &mut context, &mut skips);
            observe(&mut context, &path, &x);
        }
        Ok(self.conv_out.forward_normed(&self.conv_norm_out, x, None))
    }

    /// The time embedding `[B, width]`, with the added conditioning, activated as every residual block takes it.
    fn time(
        &self,
        times: &[f64],
        batch: usize,
        added: Option<&Added>,
        device: &Device,
    ) -> Result<Tensor<2>, DiffusionError> {
        let steps = one_each(times, batch)?;
        let sinusoid = self.sinusoid(self.config.block_out_channels[0]);
        let time = self.time_embedding.forward(sinusoid.of(&steps, device));
        let time = match (&self.add_embedding, self.config.added, added) {
            (None, None, None) => time,
            (Some(embedding), Some(expected), Some(added)) => {
                time + embedding.forward(self.added(expected, added, batch, device)?)
            }
            _ => {
                let expects = self.config.added.is_some();
                return Err(DiffusionError::Argument {
                    what: "added conditioning",
                    got: if expects { "none" } else { "some" }.to_owned(),
                    allowed: "some for a network of SDXL's kind, none for others".to_owned(),
                });
            }
        };
        Ok(ops::activation(time, Activation::Silu))
    }

    /// The pooled prompt followed by the sinusoids of the sizes, `[B, input_width]`.
    fn added(
        &self,
        expected: AddedConditioning,
        added: &Added,
        batch: usize,
        device: &Device,
    ) -> Result<Tensor<2>, DiffusionError> {
        let numbers = added.sizes.first().map_or(0, Vec::len);
        let [of, pooled] = added.pooled.dims();
        let fits = added.sizes.len() == batch
            && added.sizes.iter().all(|sizes| sizes.len() == numbers)
            && of == batch
            && pooled + numbers * expected.time_width == expected.input_width;
        if !fits {
            return Err(DiffusionError::Shape {
                what: "added conditioning",
                expected: format!(
                    "{batch} pooled prompts and lists of sizes, {} values with {} a size",
                    expected.input_width, expected.time_width
                ),
                got: vec![of, pooled, added.sizes.len(), numbers],
            });
        }
        let flat: Vec<f64> = added.sizes.iter().flatten().copied().collect();
        let sizes = self.sinusoid(expected.time_width).of(&flat, device);
        let sizes = sizes.reshape([batch, numbers * expected.time_width]);
        Ok(Tensor::cat(vec![added.pooled.clone(), sizes], 1))
    }

    fn sinusoid(&self, width: usize) -> Sinusoid {
        Sinusoid {
            width,
            freq_shift: self.config.freq_shift,
            cosine_first: self.config.flip_sin_to_cos,
        }
    }
}

fn observe(context: &mut Context<'_>, name: &str, value: &Tensor<4>) {
    if context.tap.wants(Site(name)) {
        context.tap.observe(Site(name), value);
    }
}
