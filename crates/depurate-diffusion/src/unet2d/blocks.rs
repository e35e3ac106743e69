//! Residual blocks, attention, and the levels made of them.

use burn::{module::Module, tensor::Tensor};

use super::config::{BlockKind, TimeInjection, UNet2DConfig};
use crate::{
    layers::{Conv1x1, Conv3x3, GroupNorm, Init, Linear},
    ops::{self, Activation, Stride},
};

/// Residual block: norm, SiLU, convolution, time embedding, norm, SiLU, convolution, shortcut.
#[derive(Module, Debug)]
pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv3x3,
    time_emb_proj: Linear,
    norm2: GroupNorm,
    conv2: Conv3x3,
    conv_shortcut: Option<Conv1x1>,
    scale_shift: bool,
    output_scale: f64,
}

impl ResnetBlock {
    fn new(
        init: &Init,
        config: &UNet2DConfig,
        c_in: usize,
        c_out: usize,
        output_scale: f64,
    ) -> Self {
        let scale_shift = config.time_injection == TimeInjection::ScaleShift;
        let time_out = if scale_shift { 2 * c_out } else { c_out };
        let (groups, eps) = (config.norm_num_groups, config.norm_eps);
        Self {
            norm1: GroupNorm::new(&init.at("norm1"), c_in, groups, eps),
            conv1: Conv3x3::new(&init.at("conv1"), c_in, c_out),
            time_emb_proj: Linear::new(&init.at("time_emb_proj"), config.time_width(), time_out),
            norm2: GroupNorm::new(&init.at("norm2"), c_out, groups, eps),
            conv2: Conv3x3::new(&init.at("conv2"), c_out, c_out),
            conv_shortcut: (c_in != c_out)
                .then(|| Conv1x1::new(&init.at("conv_shortcut"), c_in, c_out)),
            scale_shift,
            output_scale,
        }
    }

    /// `x [B, Ci, H, W]`, `time [B, width]` (already activated) → `[B, Co, H, W]`.
    fn forward(&self, x: Tensor<4>, time: &Tensor<2>) -> Tensor<4> {
        let time = self.time_emb_proj.forward(time.clone());
        let h = if self.scale_shift {
            let h = self.conv1.forward_normed(&self.norm1, x.clone(), None);
            let [batch, width] = time.dims();
            let time = time.reshape([batch, width, 1, 1]);
            let channels = width / 2;
            let scale = time.clone().narrow(1, 0, channels);
            let shift = time.narrow(1, channels, channels);
            let h = self.norm2.forward(h) * (scale + 1.0) + shift;
            let h = ops::activation(h, Activation::Silu);
            self.conv2.forward(h, Stride::One)
        } else {
            let h = self
                .conv1
                .forward_normed(&self.norm1, x.clone(), Some(time));
            self.conv2.forward_normed(&self.norm2, h, None)
        };
        let shortcut = match &self.conv_shortcut {
            Some(conv) => conv.forward(x),
            None => x,
        };
        rescale(ops::add(shortcut, h), self.output_scale)
    }
}

fn rescale(x: Tensor<4>, divisor: f64) -> Tensor<4> {
    if divisor == 1.0 { x } else { x / divisor }
}

/// Self-attention over the pixels, with a residual connection.
#[derive(Module, Debug)]
pub struct Attention {
    group_norm: Option<GroupNorm>,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Vec<Linear>,
    heads: usize,
    output_scale: f64,
}

impl Attention {
    fn new(
        init: &Init,
        config: &UNet2DConfig,
        channels: usize,
        groups: Option<usize>,
        output_scale: f64,
    ) -> Self {
        let linear = |name: &str| Linear::new(&init.at(name), channels, channels);
        Self {
            group_norm: groups.map(|groups| {
                GroupNorm::new(&init.at("group_norm"), channels, groups, config.norm_eps)
            }),
            to_q: linear("to_q"),
            to_k: linear("to_k"),
            to_v: linear("to_v"),
            to_out: vec![linear("to_out.0")],
            heads: channels / config.attention_head_dim.unwrap_or(channels),
            output_scale,
        }
    }

    /// `x [B, C, H, W]` → the same shape.
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, channels, height, width] = x.dims();
        let (pixels, head_width) = (height * width, channels / self.heads);
        let normed = match &self.group_norm {
            Some(norm) => norm.forward(x.clone()),
            None => x.clone(),
        };
        let split = |t: Tensor<4>| t.reshape([batch * self.heads, head_width, pixels]); // [B heads, d, HW]
        let q = split(self.to_q.forward_channels(normed.clone()));
        let k = split(self.to_k.forward_channels(normed.clone()));
        let v = split(self.to_v.forward_channels(normed));
        let mixed = ops::attention(q, k, v, (head_width as f32).powf(-0.5));
        let mixed = mixed.reshape([batch, channels, height, width]);
        let out = self
            .to_out
            .iter()
            .fold(mixed, |h, linear| linear.forward_channels(h));
        rescale(ops::add(out, x), self.output_scale)
    }
}

/// The strided convolution at the end of a level of the way down, or the one after upsampling.
#[derive(Module, Debug)]
pub struct Resample {
    conv: Conv3x3,
}

/// A level of the way down.
#[derive(Module, Debug)]
pub struct DownBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<Attention>,
    downsamplers: Vec<Resample>,
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
                config,
                c_in,
                channels,
                1.0,
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
                vec![Resample {
                    conv: Conv3x3::new(&init.at("downsamplers.0.conv"), channels, channels),
                }]
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
            x = resnet.forward(x, time);
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
) -> Vec<Attention> {
    let count = if kind == BlockKind::Attention {
        count
    } else {
        0
    };
    (0..count)
        .map(|i| {
            Attention::new(
                &init.at(format!("attentions.{i}")),
                config,
                channels,
                Some(config.norm_num_groups),
                1.0,
            )
        })
        .collect()
}

/// The middle: residual block, attention, residual block.
#[derive(Module, Debug)]
pub struct MidBlock {
    attentions: Vec<Attention>,
    resnets: Vec<ResnetBlock>,
}

impl MidBlock {
    pub(crate) fn new(init: &Init, config: &UNet2DConfig) -> Self {
        let channels = config.block_out_channels[config.block_out_channels.len() - 1];
        let scale = config.mid_block_scale_factor;
        // diffusers normalises here only where the time embedding is added, not where it scales.
        let default_groups =
            (config.time_injection == TimeInjection::Add).then_some(config.norm_num_groups);
        let groups = config.attn_norm_num_groups.or(default_groups);
        let attention =
            || Attention::new(&init.at("attentions.0"), config, channels, groups, scale);
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
                        config,
                        channels,
                        channels,
                        scale,
                    )
                })
                .collect(),
        }
    }

    pub(crate) fn forward(&self, mut x: Tensor<4>, time: &Tensor<2>) -> Tensor<4> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            x = resnet.forward(x, time);
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
    resnets: Vec<ResnetBlock>,
    attentions: Vec<Attention>,
    upsamplers: Vec<Resample>,
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
                config,
                below + skip,
                channels,
                1.0,
            )
        };
        Self {
            resnets: (0..count).map(resnet).collect(),
            attentions: attentions(init, config, config.up_blocks[index], channels, count),
            upsamplers: if index + 1 == n_levels {
                vec![]
            } else {
                vec![Resample {
                    conv: Conv3x3::new(&init.at("upsamplers.0.conv"), channels, channels),
                }]
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
            x = resnet.forward(joined, time);
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
