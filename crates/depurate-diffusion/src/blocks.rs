//! Blocks that several networks share: the residual block, attention over pixels, and the convolution of a change of size.

use burn::{module::Module, tensor::Tensor};

use crate::{
    channel_graph::{Channels, GroupKind, Trace, TracedAttention},
    layers::{Conv1x1, Conv3x3, GroupNorm, Init, Linear},
    ops::{self, Activation},
};

/// What residual blocks of one network have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ResnetOptions {
    /// Groups of the normalisations.
    pub(crate) groups: usize,
    /// Added to the variance.
    pub(crate) eps: f64,
    /// Width of the time embedding, where there is one.
    pub(crate) time_width: Option<usize>,
    /// Whether the embedding scales and shifts the second normalisation instead of being added.
    pub(crate) scale_shift: bool,
    /// Divides the sum with the shortcut.
    pub(crate) output_scale: f64,
}

/// Residual block: norm, SiLU, convolution, time embedding, norm, SiLU, convolution, shortcut.
#[derive(Module, Debug)]
pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv3x3,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv3x3,
    conv_shortcut: Option<Conv1x1>,
    scale_shift: bool,
    output_scale: f64,
}

impl ResnetBlock {
    pub(crate) fn new(init: &Init, options: ResnetOptions, c_in: usize, c_out: usize) -> Self {
        let time_out = if options.scale_shift {
            2 * c_out
        } else {
            c_out
        };
        let norm =
            |name, channels| GroupNorm::new(&init.at(name), channels, options.groups, options.eps);
        Self {
            norm1: norm("norm1", c_in),
            conv1: Conv3x3::new(&init.at("conv1"), c_in, c_out),
            time_emb_proj: options
                .time_width
                .map(|width| Linear::new(&init.at("time_emb_proj"), width, time_out)),
            norm2: norm("norm2", c_out),
            conv2: Conv3x3::new(&init.at("conv2"), c_out, c_out),
            conv_shortcut: (c_in != c_out)
                .then(|| Conv1x1::new(&init.at("conv_shortcut"), c_in, c_out)),
            scale_shift: options.scale_shift,
            output_scale: options.output_scale,
        }
    }

    /// `x [B, Ci, H, W]`, `time [B, width]` (already activated) → `[B, Co, H, W]`.
    pub(crate) fn forward(&self, x: Tensor<4>, time: Option<&Tensor<2>>) -> Tensor<4> {
        let time = match (&self.time_emb_proj, time) {
            (Some(proj), Some(time)) => Some(proj.forward(time.clone())),
            _ => None,
        };
        let h = match time {
            Some(time) if self.scale_shift => {
                let h = self.conv1.forward_normed(&self.norm1, x.clone(), None);
                let [batch, width] = time.dims();
                let time = time.reshape([batch, width, 1, 1]);
                let channels = width / 2;
                let scale = time.clone().narrow(1, 0, channels);
                let shift = time.narrow(1, channels, channels);
                let h = self.norm2.forward(h) * (scale + 1.0) + shift;
                let h = ops::activation(h, Activation::Silu);
                self.conv2.forward(h, ops::Stride::One)
            }
            time => {
                let h = self.conv1.forward_normed(&self.norm1, x.clone(), time);
                self.conv2.forward_normed(&self.norm2, h, None)
            }
        };
        let shortcut = match &self.conv_shortcut {
            Some(conv) => conv.forward(x),
            None => x,
        };
        rescale(ops::add(shortcut, h), self.output_scale)
    }

    /// [`Self::forward`] on the names of channels; `at` is the block's name.
    pub(crate) fn trace(&self, trace: &mut Trace, at: &str, x: &Channels) -> Channels {
        let width = self.conv1.channels();
        trace.norm(&format!("{at}.norm1"), x, self.norm1.groups());
        let inner = trace.stream(format!("{at}.inner"), GroupKind::Inner, width);
        trace.layer(&format!("{at}.conv1"), Some(&inner), Some(x));
        if self.time_emb_proj.is_some() {
            let rows = match self.scale_shift {
                true => [&inner[..], &inner[..]].concat(), // first all scales, then all shifts
                false => inner.clone(),
            };
            trace.layer(&format!("{at}.time_emb_proj"), Some(&rows), None);
        }
        trace.norm(&format!("{at}.norm2"), &inner, self.norm2.groups());
        let out = match &self.conv_shortcut {
            Some(_) => {
                let out = trace.stream(at.to_owned(), GroupKind::Residual, self.conv2.channels());
                trace.layer(&format!("{at}.conv_shortcut"), Some(&out), Some(x));
                out
            }
            None => x.clone(),
        };
        trace.layer(&format!("{at}.conv2"), Some(&out), Some(&inner));
        out
    }
}

fn rescale(x: Tensor<4>, divisor: f64) -> Tensor<4> {
    if divisor == 1.0 { x } else { x / divisor }
}

/// How a network's attention over pixels is built.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PixelAttentionOptions {
    /// Groups of the normalisation in front; `None` is none.
    pub(crate) groups: Option<usize>,
    /// Added to the variance.
    pub(crate) eps: f64,
    /// Width of one head; `None` is a single head.
    pub(crate) head_width: Option<usize>,
    /// Divides the sum with the input.
    pub(crate) output_scale: f64,
}

/// Self-attention over the pixels, with a residual connection.
#[derive(Module, Debug)]
pub struct PixelAttention {
    group_norm: Option<GroupNorm>,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Vec<Linear>,
    head_width: usize,
    output_scale: f64,
}

impl PixelAttention {
    pub(crate) fn new(init: &Init, options: PixelAttentionOptions, channels: usize) -> Self {
        let linear = |name: &str| Linear::new(&init.at(name), channels, channels);
        Self {
            group_norm: options.groups.map(|groups| {
                GroupNorm::new(&init.at("group_norm"), channels, groups, options.eps)
            }),
            to_q: linear("to_q"),
            to_k: linear("to_k"),
            to_v: linear("to_v"),
            to_out: vec![linear("to_out.0")],
            head_width: options.head_width.unwrap_or(channels),
            output_scale: options.output_scale,
        }
    }

    /// `x [B, C, H, W]` → the same shape.
    pub(crate) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, _, height, width] = x.dims();
        let pixels = height * width;
        // Of a pruned network, the heads together may be wider or narrower than `x`.
        let inner = self.to_q.width_out();
        let (heads, head_width) = (inner / self.head_width, self.head_width);
        let normed = match &self.group_norm {
            Some(norm) => norm.forward(x.clone()),
            None => x.clone(),
        };
        let split = |t: Tensor<4>| t.reshape([batch * heads, head_width, pixels]); // [B heads, d, HW]
        let q = split(self.to_q.forward_channels(normed.clone()));
        let k = split(self.to_k.forward_channels(normed.clone()));
        let v = split(self.to_v.forward_channels(normed));
        let mixed = ops::attention(q, k, v, (head_width as f32).powf(-0.5));
        let mixed = mixed.reshape([batch, inner, height, width]);
        let out = self
            .to_out
            .iter()
            .fold(mixed, |h, linear| linear.forward_channels(h));
        rescale(ops::add(out, x), self.output_scale)
    }
}

impl TracedAttention for PixelAttention {
    fn trace(&self, trace: &mut Trace, at: &str, x: &Channels) {
        if let Some(norm) = &self.group_norm {
            trace.norm(&format!("{at}.group_norm"), x, norm.groups());
        }
        let width = self.to_q.width_out();
        let heads = trace.stream(format!("{at}.heads"), GroupKind::Heads, width);
        trace.tie_each(&heads, self.head_width);
        for name in ["to_q", "to_k", "to_v"] {
            trace.layer(&format!("{at}.{name}"), Some(&heads), Some(x));
        }
        trace.layer(&format!("{at}.to_out.0"), Some(x), Some(&heads));
    }
}

/// The convolution that halves a level's size, or the one after doubling it.
#[derive(Module, Debug)]
pub struct Resample {
    pub(crate) conv: Conv3x3,
}

impl Resample {
    pub(crate) fn new(init: &Init, channels: usize) -> Self {
        Self {
            conv: Conv3x3::new(&init.at("conv"), channels, channels),
        }
    }

    /// The convolution on the names of channels; `at` is the block's name.
    pub(crate) fn trace(&self, trace: &mut Trace, at: &str, x: &Channels) -> Channels {
        let out = trace.stream(at.to_owned(), GroupKind::Residual, self.conv.channels());
        trace.layer(&format!("{at}.conv"), Some(&out), Some(x));
        out
    }
}
