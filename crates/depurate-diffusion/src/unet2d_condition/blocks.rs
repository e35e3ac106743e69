//! The levels of the network.

use burn::{module::Module, tensor::Tensor};

use super::{config::UNet2DConditionConfig, transformer::Transformer};
use crate::{
    Stage, Tap,
    blocks::{Resample, ResnetBlock, ResnetOptions},
    layers::Init,
    ops::{self, Stride},
};

/// What every block of a call needs besides its input.
pub(super) struct Context<'a> {
    /// The activated time embedding `[B, width]`.
    pub(super) time: Tensor<2>,
    /// The prompts' states `[B, C, T]`.
    pub(super) states: Tensor<3>,
    /// Rows of the network's input.
    pub(super) input_rows: usize,
    /// Where the call is.
    pub(super) stage: Stage,
    /// Who watches.
    pub(super) tap: &'a mut dyn Tap,
}

/// Where an attention layer is.
pub(super) struct Place<'a, 'b> {
    pub(super) path: &'b str,
    pub(super) stage: Stage,
    pub(super) input_rows: usize,
    pub(super) size: (usize, usize),
    pub(super) tap: &'b mut (dyn Tap + 'a),
}

impl<'a> Context<'a> {
    pub(super) fn place<'b>(&'b mut self, path: &'b str, size: (usize, usize)) -> Place<'a, 'b> {
        Place {
            path,
            stage: self.stage,
            input_rows: self.input_rows,
            size,
            tap: &mut *self.tap,
        }
    }
}

fn resnet_options(config: &UNet2DConditionConfig, output_scale: f64) -> ResnetOptions {
    ResnetOptions {
        groups: config.norm_num_groups,
        eps: config.norm_eps,
        time_width: Some(config.time_width()),
        scale_shift: false,
        output_scale,
    }
}

fn transformers(
    init: &Init,
    config: &UNet2DConditionConfig,
    level: usize,
    count: usize,
) -> Vec<Transformer> {
    (0..count)
        .map(|i| Transformer::new(&init.at(format!("attentions.{i}")), config, level))
        .collect()
}

/// A level of the way down.
#[derive(Module, Debug)]
pub(super) struct DownBlock {
    pub(super) resnets: Vec<ResnetBlock>,
    pub(super) attentions: Vec<Transformer>,
    pub(super) downsamplers: Vec<Resample>,
    pad_every_side: bool,
}

impl DownBlock {
    pub(super) fn new(init: &Init, config: &UNet2DConditionConfig, level: usize) -> Self {
        let levels = &config.block_out_channels;
        let channels = levels[level];
        // The first level takes conv_in's output, which has the same width.
        let c_in = levels[level.saturating_sub(1)];
        let count = config.layers_per_block[level];
        let resnet = |i: usize| {
            let c_in = if i == 0 { c_in } else { channels };
            let init = init.at(format!("resnets.{i}"));
            ResnetBlock::new(&init, resnet_options(config, 1.0), c_in, channels)
        };
        let attending = if config.down_attention[level] {
            count
        } else {
            0
        };
        let halved = level + 1 < levels.len();
        Self {
            resnets: (0..count).map(resnet).collect(),
            attentions: transformers(init, config, level, attending),
            downsamplers: halved
                .then(|| Resample::new(&init.at("downsamplers.0"), channels))
                .into_iter()
                .collect(),
            pad_every_side: config.downsample_padding == 1,
        }
    }

    /// Pushes every intermediate result that the way up needs on `skips`.
    pub(super) fn forward(
        &self,
        mut x: Tensor<4>,
        path: &str,
        context: &mut Context<'_>,
        skips: &mut Vec<Tensor<4>>,
    ) -> Tensor<4> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            x = resnet.forward(x, Some(&context.time));
            if let Some(attention) = self.attentions.get(i) {
                x = attention.forward(x, &format!("{path}.attentions.{i}"), context);
            }
            skips.push(x.clone());
        }
        let stride = if self.pad_every_side {
            Stride::TwoSymmetric
        } else {
            Stride::TwoAfterOnly
        };
        for downsampler in &self.downsamplers {
            x = downsampler.conv.forward(x, stride);
            skips.push(x.clone());
        }
        x
    }
}

/// The middle: residual block, transformer, residual block.
#[derive(Module, Debug)]
pub(super) struct MidBlock {
    pub(super) attentions: Vec<Transformer>,
    pub(super) resnets: Vec<ResnetBlock>,
}

impl MidBlock {
    pub(super) fn new(init: &Init, config: &UNet2DConditionConfig) -> Self {
        let level = config.block_out_channels.len() - 1;
        let channels = config.block_out_channels[level];
        let options = resnet_options(config, config.mid_block_scale_factor);
        Self {
            attentions: transformers(init, config, level, 1),
            resnets: (0..2)
                .map(|i| {
                    let init = init.at(format!("resnets.{i}"));
                    ResnetBlock::new(&init, options, channels, channels)
                })
                .collect(),
        }
    }

    pub(super) fn forward(
        &self,
        mut x: Tensor<4>,
        path: &str,
        context: &mut Context<'_>,
    ) -> Tensor<4> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            x = resnet.forward(x, Some(&context.time));
            if let Some(attention) = self.attentions.get(i) {
                x = attention.forward(x, &format!("{path}.attentions.{i}"), context);
            }
        }
        x
    }
}

/// A level of the way up.
#[derive(Module, Debug)]
pub(super) struct UpBlock {
    pub(super) resnets: Vec<ResnetBlock>,
    pub(super) attentions: Vec<Transformer>,
    pub(super) upsamplers: Vec<Resample>,
}

impl UpBlock {
    /// `index` counts from the deepest level.
    pub(super) fn new(init: &Init, config: &UNet2DConditionConfig, index: usize) -> Self {
        let levels = &config.block_out_channels;
        let last = levels.len() - 1;
        let level = last - index;
        let channels = levels[level];
        let previous = levels[(level + 1).min(last)];
        let shallower = levels[level.saturating_sub(1)];
        let count = config.layers_per_block[level] + 1;
        let resnet = |i: usize| {
            let below = if i == 0 { previous } else { channels };
            let skip = if i + 1 == count { shallower } else { channels };
            let init = init.at(format!("resnets.{i}"));
            ResnetBlock::new(&init, resnet_options(config, 1.0), below + skip, channels)
        };
        let attending = if config.up_attention[index] { count } else { 0 };
        Self {
            resnets: (0..count).map(resnet).collect(),
            attentions: transformers(init, config, level, attending),
            upsamplers: (level > 0)
                .then(|| Resample::new(&init.at("upsamplers.0"), channels))
                .into_iter()
                .collect(),
        }
    }

    /// Takes its skip connections from the end of `skips`, which the way down filled.
    pub(super) fn forward(
        &self,
        mut x: Tensor<4>,
        path: &str,
        context: &mut Context<'_>,
        skips: &mut Vec<Tensor<4>>,
    ) -> Tensor<4> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            let joined = match skips.pop() {
                Some(skip) => ops::join_channels(x, skip),
                None => x,
            };
            x = resnet.forward(joined, Some(&context.time));
            if let Some(attention) = self.attentions.get(i) {
                x = attention.forward(x, &format!("{path}.attentions.{i}"), context);
            }
        }
        for upsampler in &self.upsamplers {
            x = upsampler.conv.forward(ops::upsample2x(x), Stride::One);
        }
        x
    }
}
