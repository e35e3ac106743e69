//! `UNet2DModel` of diffusers, driven by the checkpoint's own `config.json`.
//!
//! The module tree has diffusers' names: the path of a parameter here is its name in the file.
//!
//! | input | shape |
//! |---|---|
//! | `x_t` | `[B, in_channels, H, W]` |
//! | `t` | one training timestep a sample, or one for all; `t = T - 1` is almost pure noise |
//! | output | `[B, out_channels, H, W]` |
//!
//! Sites that a [`Tap`] can observe: `conv_in`, `down_blocks.i`, `mid_block`, `up_blocks.i`.

mod blocks;
mod config;
mod pruning;

use std::path::Path;

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};
use depurate_checkpoint::{SaveTensor, Weights, rename_deprecated_attention};

pub use config::{BlockKind, TimeInjection, UNet2DConfig};

use crate::{
    DiffusionError, Site, Tap,
    layers::{Conv3x3, GroupNorm, Init},
    module_weights::{self, ParameterInfo},
    noise::SeedTree,
    ops::{self, Activation, Stride},
    time_embedding::{Sinusoid, TimeEmbedding, as_times, one_each},
};
use blocks::{DownBlock, MidBlock, UpBlock};

/// The network. See the [module](self).
#[derive(Module, Debug)]
pub struct UNet2D {
    conv_in: Conv3x3,
    time_embedding: TimeEmbedding,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv3x3,
    channels_in: usize,
    center_input: bool,
    #[module(skip)]
    sinusoid: Sinusoid,
}

impl UNet2D {
    /// A network with random weights (PyTorch's default initialisation) drawn from `seed`. Nothing
    /// is allocated before it is used, so a checkpoint can be checked against the shapes first.
    ///
    /// Without the units that `config` says are removed; one that does not fit the configuration removes nothing, which
    /// [`ChannelGraph::of`] makes an error.
    pub fn new(config: &UNet2DConfig, seed: &SeedTree, device: &Device) -> Self {
        let init = Init::of(config, seed, device);
        let levels = &config.block_out_channels;
        let (first, width) = (levels[0], config.time_width());
        Self {
            conv_in: Conv3x3::new(&init.at("conv_in"), config.in_channels, first),
            time_embedding: TimeEmbedding::new(&init.at("time_embedding"), first, width),
            down_blocks: (0..levels.len())
                .map(|i| DownBlock::new(&init.at(format!("down_blocks.{i}")), config, i))
                .collect(),
            mid_block: MidBlock::new(&init.at("mid_block"), config),
            up_blocks: (0..levels.len())
                .map(|i| UpBlock::new(&init.at(format!("up_blocks.{i}")), config, i))
                .collect(),
            conv_norm_out: GroupNorm::new(
                &init.at("conv_norm_out"),
                first,
                config.norm_num_groups,
                config.norm_eps,
            ),
            conv_out: Conv3x3::new(&init.at("conv_out"), first, config.out_channels),
            channels_in: config.in_channels,
            center_input: config.center_input_sample,
            sinusoid: Sinusoid {
                width: first,
                freq_shift: config.freq_shift,
                cosine_first: config.flip_sin_to_cos,
            },
        }
    }

    /// Every parameter's name and shape, without allocating any of them.
    pub fn parameters(&self) -> Vec<ParameterInfo> {
        module_weights::parameters(self)
    }

    /// Replaces every parameter by the one of the same name in `weights`. The names of diffusers
    /// before 0.17 (`query`, `key`, `value`, `proj_attn`) are understood.
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

    /// The network's output for `x_t [B, C, H, W]` at the training timesteps `t`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn forward(
        &self,
        x_t: Tensor<4>,
        t: &[usize],
        tap: &mut dyn Tap,
    ) -> Result<Tensor<4>, DiffusionError> {
        self.forward_at(x_t, &as_times(t), tap)
    }

    /// As [`UNet2D::forward`], at `times` that may lie between training timesteps.
    ///
    /// # Errors
    /// As [`UNet2D::forward`].
    pub fn forward_at(
        &self,
        x_t: Tensor<4>,
        times: &[f64],
        tap: &mut dyn Tap,
    ) -> Result<Tensor<4>, DiffusionError> {
        let [batch, channels, height, width] = x_t.dims();
        let divisor = 1 << (self.down_blocks.len() - 1);
        if channels != self.channels_in
            || height % divisor != 0
            || width % divisor != 0
            || batch == 0
        {
            return Err(DiffusionError::Shape {
                what: "x_t",
                expected: format!(
                    "[B, {}, H, W] with H and W multiples of {divisor}",
                    self.channels_in
                ),
                got: x_t.dims().to_vec(),
            });
        }
        let mut observe = |name: &str, value: &Tensor<4>| {
            if tap.wants(Site(name)) {
                tap.observe(Site(name), value);
            }
        };
        let time = self.embedded(times, batch, &x_t.device())?;
        let time = ops::activation(time, Activation::Silu);
        let x = if self.center_input {
            x_t * 2.0 - 1.0
        } else {
            x_t
        };
        let mut x = self.conv_in.forward(x, Stride::One);
        observe("conv_in", &x);
        let mut skips = vec![x.clone()];
        for (i, block) in self.down_blocks.iter().enumerate() {
            x = block.forward(x, &time, &mut skips);
            observe(&format!("down_blocks.{i}"), &x);
        }
        x = self.mid_block.forward(x, &time);
        observe("mid_block", &x);
        for (i, block) in self.up_blocks.iter().enumerate() {
            x = block.forward(x, &time, &mut skips);
            observe(&format!("up_blocks.{i}"), &x);
        }
        Ok(self.conv_out.forward_normed(&self.conv_norm_out, x, None))
    }

    /// The time embedding `[B, width]` before the residual blocks' activation.
    ///
    /// # Errors
    /// When `t` has neither one entry nor one for each of `batch` samples.
    pub fn time_embedding(
        &self,
        t: &[usize],
        batch: usize,
        device: &Device,
    ) -> Result<Tensor<2>, DiffusionError> {
        self.embedded(&as_times(t), batch, device)
    }

    fn embedded(
        &self,
        times: &[f64],
        batch: usize,
        device: &Device,
    ) -> Result<Tensor<2>, DiffusionError> {
        let steps = one_each(times, batch)?;
        Ok(self
            .time_embedding
            .forward(self.sinusoid.of(&steps, device)))
    }
}
