//! The levels of the network.

use burn::{module::Module, tensor::Tensor};

use super::config::{BlockKind, TimeInjection, UNet2DConfig};
use crate::{
    blocks::{PixelAttention, PixelAttentionOptions, Resample, ResnetBlock, ResnetOptions},
    layers::Init,
    ops::{self, Stride},
};

fn resnet_options(config: &UNet2DConfig, output_scale: f64) -> ResnetOptions {
    ResnetOptions {
        groups: config.norm_num_groups,
        eps: config.norm_eps,
        time_width: Some(config.time_width()),
        scale_shift: config.time_injection == TimeInjection::ScaleShift,
        output_scale,
    }
}

fn attention_options(
    config: &UNet2DConfig,
    groups: Option<usize>,
    output_scale: f64,
) -> PixelAttentionOptions {
    PixelAttentionOptions {
        groups,
        eps: config.norm_eps,
        head_width: config.attention_head_dim,
        output_scale,
    }
}

/// A level of the way down.
#[derive(Module, Debug)]
pub struct DownBlock {
    pub(super) resnets: Vec<ResnetBlock>,
    pub(super) attentions: Vec<PixelAttention>,
    pub(super) downsamplers: Vec<Resample>,
    pad_every_side: bool,
}

impl DownBlock {
    pub(crate) fn new(init: &Init, config: &UNet2DConfig, level: usize) -> Self {
        let channels = config.block_out_channels[level];
        let c_in = if level == 0 {
            channels
        } else {
            config.block_out_channels[level - 1]
        };
        // The first level takes conv_in's output, which has the same width.
        let resnet = |i: usize| {
            let c_in = if i == 0 { c_in } else { channels };
            ResnetBlock::new(
                &init.at(format!("resnets.{i}")),
                resnet_options(config, 1.0),
                c_in,
                channels,
            )
        };
        let last = level + 1 == config.block_out_channels.len();
        Self {
            resnets: (0..config.layers_per_block).map(resnet).collect(),
            attentions: attentions(
                init,
                config,
                config.down_blocks[level],
                channels,
                config.layers_per_block,
            ),
            downsamplers: if last {
                vec![]
            } else {
                vec![Resample::new(&init.at("downsamplers.0"), channels)]
            },
            pad_every_side: config.downsample_padding == 1,
        }
    }

    /// Pushes every intermediate result that the way up needs on `skips`.
    pub(crate) fn forward(
        &self,
        mut x: Tensor<4>,
        time: &Tensor<2>,
        skips: &mut Vec<Tensor<4>>,
    ) -> Tensor<4> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            x = resnet.forward(x, Some(time));
            if let Some(attention) = self.attentions.get(i) {
                x = attention.forward(x);
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

fn attentions(
    init: &Init,
    config: &UNet2DConfig,
    kind: BlockKind,
    channels: usize,
    count: usize,
) -> Vec<PixelAttention> {
    let count = if kind == BlockKind::Attention {
        count
    } else {
        0
    };
    (0..count)
        .map(|i| {
            let options = attention_options(config, Some(config.norm_num_groups), 1.0);
            PixelAttention::new(&init.at(format!("attentions.{i}")), options, channels)
        })
        .collect()
}

/// The middle: residual block, attention, residual block.
#[derive(Module, Debug)]
pub struct MidBlock {
    pub(super) attentions: Vec<PixelAttention>,
    pub(super) resnets: Vec<ResnetBlock>,
}

impl MidBlock {
    pub(crate) fn new(init: &Init, config: &UNet2DConfig) -> Self {
        let channels = config.block_out_channels[config.block_out_channels.len() - 1];
        let scale = config.mid_block_scale_factor;
        // diffusers normalises here only where the time embedding is added, not where it scales.
        let default_groups =
            (config.time_injection == TimeInjection::Add).then_some(config.norm_num_groups);
        let groups = config.attn_norm_num_groups.or(default_groups);
        let attention = || {
            PixelAttention::new(
                &init.at("attentions.0"),
                attention_options(config, groups, scale),
                channels,
            )
        };
        Self {
            attentions: if config.add_attention {
                vec![attention()]
            } else {
                vec![]
            },
            resnets: (0..2)
                .map(|i| {
                    ResnetBlock::new(
                        &init.at(format!("resnets.{i}")),
                        resnet_options(config, scale),
                        channels,
                        channels,
                    )
                })
                .collect(),
        }
    }

    pub(crate) fn forward(&self, mut x: Tensor<4>, time: &Tensor<2>) -> Tensor<4> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            x = resnet.forward(x, Some(time));
            if let Some(attention) = self.attentions.get(i) {
                x = attention.forward(x);
            }
        }
        x
    }
}

/// A level of the way up.
#[derive(Module, Debug)]
pub struct UpBlock {
    pub(super) resnets: Vec<ResnetBlock>,
    pub(super) attentions: Vec<PixelAttention>,
    pub(super) upsamplers: Vec<Resample>,
}

impl UpBlock {
    /// `index` counts from the deepest level.
    pub(crate) fn new(init: &Init, config: &UNet2DConfig, index: usize) -> Self {
        let levels = &config.block_out_channels;
        let n_levels = levels.len();
        let from_deepest = |i: usize| levels[n_levels - 1 - i.min(n_levels - 1)];
        let channels = from_deepest(index);
        let previous = from_deepest(index.saturating_sub(1));
        let shallower = from_deepest(index + 1);
        let count = config.layers_per_block + 1;
        let resnet = |i: usize| {
            let below = if i == 0 { previous } else { channels };
            let skip = if i + 1 == count { shallower } else { channels };
            ResnetBlock::new(
                &init.at(format!("resnets.{i}")),
                resnet_options(config, 1.0),
                below + skip,
                channels,
            )
        };
        Self {
            resnets: (0..count).map(resnet).collect(),
            attentions: attentions(init, config, config.up_blocks[index], channels, count),
            upsamplers: if index + 1 == n_levels {
                vec![]
            } else {
                vec![Resample::new(&init.at("upsamplers.0"), channels)]
            },
        }
    }

    /// Takes its skip connections from the end of `skips`, which the way down filled.
    pub(crate) fn forward(
        &self,
        mut x: Tensor<4>,
        time: &Tensor<2>,
        skips: &mut Vec<Tensor<4>>,
    ) -> Tensor<4> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            let joined = match skips.pop() {
                Some(skip) => ops::join_channels(x, skip),
                None => x,
            };
            x = resnet.forward(joined, Some(time));
            if let Some(attention) = self.attentions.get(i) {
                x = attention.forward(x);
            }
        }
        for upsampler in &self.upsamplers {
            x = upsampler.conv.forward(ops::upsample2x(x), Stride::One);
        }
        x
    }
}
