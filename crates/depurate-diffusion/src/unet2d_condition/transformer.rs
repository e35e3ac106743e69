//! The transformer of a level: self-attention over the pixels, cross-attention to the prompt, feed-forward.
//!
//! ```text
//! y   = proj_in(norm x)                                       [B, C, HW]
//! y'  = y   + attn1(norm1 y,   norm1 y)                        pixels to pixels
//! y'' = y'  + attn2(norm2 y',  states)                         pixels to tokens
//! z   = y'' + W_2 geglu(W_1 norm3 y'')                          geglu [a, b] = a gelu(b)
//! out = x + proj_out z
//! ```

use burn::{module::Module, tensor::Tensor};

use super::{
    blocks::{Context, Place},
    config::UNet2DConditionConfig,
};
use crate::{
    AttentionKind, AttentionSite,
    channel_graph::{Channels, GroupKind, Trace, TracedAttention},
    layers::{Conv1x1, GroupNorm, Init, LayerNorm, Linear, Projection},
    ops,
};

const GROUP_NORM_EPS: f64 = 1e-6;
const LAYER_NORM_EPS: f64 = 1e-5;
/// Channels inside the feed-forward layer over those outside.
const INNER: usize = 4;

/// Attention of pixels to a context.
#[derive(Module, Debug)]
struct Attention {
    to_q: Projection,
    to_k: Projection,
    to_v: Projection,
    to_out: Vec<Linear>,
    head_width: usize,
}

impl Attention {
    fn new(init: &Init, channels: usize, context: usize, heads: usize) -> Self {
        Self {
            to_q: Projection::new(&init.at("to_q"), channels, channels),
            to_k: Projection::new(&init.at("to_k"), context, channels),
            to_v: Projection::new(&init.at("to_v"), context, channels),
            to_out: vec![Linear::new(&init.at("to_out.0"), channels, channels)],
            head_width: channels / heads,
        }
    }

    /// [`Self::forward`] on the names of channels: `x` attends to `context`; `None` stands for the prompt.
    fn trace(&self, trace: &mut Trace, at: &str, x: &Channels, context: Option<&Channels>) {
        let width = self.to_q.width_out();
        let heads = trace.stream(format!("{at}.heads"), GroupKind::Heads, width);
        trace.tie_each(&heads, self.head_width);
        trace.layer(&format!("{at}.to_q"), Some(&heads), Some(x));
        for name in ["to_k", "to_v"] {
            trace.layer(&format!("{at}.{name}"), Some(&heads), context);
        }
        trace.layer(&format!("{at}.to_out.0"), Some(x), Some(&heads));
    }

    /// `x [B, C, Q]`, `context [B, C', K]` → as `x`.
    fn forward(
        &self,
        x: Tensor<3>,
        context: Tensor<3>,
        name: &str,
        kind: AttentionKind,
        at: &mut Place<'_, '_>,
    ) -> Tensor<3> {
        let [batch, _, queries] = x.dims();
        let (inner, width, keys) = (self.to_q.width_out(), self.head_width, context.dims()[2]);
        let heads = batch * inner / width; // of a pruned network, fewer than its configuration says
        let q = self.to_q.forward(x).reshape([heads, width, queries]);
        let k = self
            .to_k
            .forward(context.clone())
            .reshape([heads, width, keys]);
        let v = self.to_v.forward(context).reshape([heads, width, keys]);
        let scale = (width as f32).powf(-0.5);
        let path = format!("{}.{name}", at.path);
        let site = AttentionSite {
            path: &path,
            kind,
            stage: at.stage,
            reduction: at.input_rows / at.size.0.max(1),
            size: at.size,
            heads: inner / width,
        };
        let mixed = if at.tap.wants_map(&site) {
            let map = ops::attention_map(q, k, scale);
            at.tap.observe_map(&site, &map);
            ops::attention_mix(map, v)
        } else {
            ops::attention(q, k, v, scale)
        };
        let mixed = mixed.reshape([batch, inner, queries]);
        self.to_out
            .iter()
            .fold(mixed, |h, out| out.forward_tokens(h))
    }
}

/// The gated half of the feed-forward layer.
#[derive(Module, Debug)]
struct Geglu {
    proj: Linear,
}

/// The place that dropout has in the file's numbering.
#[derive(Module, Debug)]
struct Dropout {}

#[derive(Module, Debug)]
struct FeedForward {
    net: (Geglu, Dropout, Linear),
}

impl FeedForward {
    fn new(init: &Init, channels: usize) -> Self {
        let inner = INNER * channels;
        Self {
            net: (
                Geglu {
                    proj: Linear::new(&init.at("net.0.proj"), channels, 2 * inner),
                },
                Dropout {},
                Linear::new(&init.at("net.2"), inner, channels),
            ),
        }
    }

    /// [`Self::forward`] on the names of channels.
    fn trace(&self, trace: &mut Trace, at: &str, x: &Channels) {
        let inner = trace.stream(
            format!("{at}.inner"),
            GroupKind::Inner,
            self.net.0.proj.width_out() / 2,
        );
        let rows = [&inner[..], &inner[..]].concat(); // first all values, then all gates
        trace.layer(&format!("{at}.net.0.proj"), Some(&rows), Some(x));
        trace.layer(&format!("{at}.net.2"), Some(x), Some(&inner));
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let gated = ops::geglu(self.net.0.proj.forward_tokens(x));
        self.net.2.forward_tokens(gated)
    }
}

/// One block: attention to pixels, attention to tokens, feed-forward.
#[derive(Module, Debug)]
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl TransformerBlock {
    fn new(init: &Init, channels: usize, context: usize, heads: usize) -> Self {
        let norm = |name| LayerNorm::new(&init.at(name), channels, LAYER_NORM_EPS);
        Self {
            norm1: norm("norm1"),
            attn1: Attention::new(&init.at("attn1"), channels, channels, heads),
            norm2: norm("norm2"),
            attn2: Attention::new(&init.at("attn2"), channels, context, heads),
            norm3: norm("norm3"),
            ff: FeedForward::new(&init.at("ff"), channels),
        }
    }

    /// [`Self::forward`] on the names of channels.
    fn trace(&self, trace: &mut Trace, at: &str, y: &Channels) {
        for name in ["norm1", "norm2", "norm3"] {
            trace.norm(&format!("{at}.{name}"), y, 1);
        }
        self.attn1.trace(trace, &format!("{at}.attn1"), y, Some(y));
        self.attn2.trace(trace, &format!("{at}.attn2"), y, None);
        self.ff.trace(trace, &format!("{at}.ff"), y);
    }

    fn forward(&self, y: Tensor<3>, states: &Tensor<3>, at: &mut Place<'_, '_>) -> Tensor<3> {
        let normed = self.norm1.forward(y.clone());
        let own = AttentionKind::OwnPixels;
        let mixed = self.attn1.forward(normed.clone(), normed, "attn1", own, at);
        let y = ops::add(mixed, y);
        let normed = self.norm2.forward(y.clone());
        let prompt = AttentionKind::Prompt;
        let mixed = self
            .attn2
            .forward(normed, states.clone(), "attn2", prompt, at);
        let y = ops::add(mixed, y);
        let inner = self.ff.forward(self.norm3.forward(y.clone()));
        ops::add(inner, y)
    }
}

/// The way into or out of a transformer: both are the same map of channels, stored in two shapes.
#[derive(Module, Debug)]
enum ChannelMap {
    Convolution(Conv1x1),
    Linear(Linear),
}

impl ChannelMap {
    fn new(init: &Init, channels: usize, linear: bool) -> Self {
        if linear {
            Self::Linear(Linear::new(init, channels, channels))
        } else {
            Self::Convolution(Conv1x1::new(init, channels, channels))
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Convolution(conv) => conv.forward(x),
            Self::Linear(linear) => linear.forward_channels(x),
        }
    }
}

/// The transformer of a level. See the [module](self).
#[derive(Module, Debug)]
pub(super) struct Transformer {
    norm: GroupNorm,
    proj_in: ChannelMap,
    transformer_blocks: Vec<TransformerBlock>,
    proj_out: ChannelMap,
}

impl Transformer {
    /// For the level `level` of the way down.
    pub(super) fn new(init: &Init, config: &UNet2DConditionConfig, level: usize) -> Self {
        let (channels, heads) = (config.block_out_channels[level], config.heads[level]);
        let linear = config.use_linear_projection;
        let block = |i: usize| {
            let init = init.at(format!("transformer_blocks.{i}"));
            TransformerBlock::new(&init, channels, config.cross_attention_dim, heads)
        };
        Self {
            norm: GroupNorm::new(
                &init.at("norm"),
                channels,
                config.norm_num_groups,
                GROUP_NORM_EPS,
            ),
            proj_in: ChannelMap::new(&init.at("proj_in"), channels, linear),
            transformer_blocks: (0..config.transformer_layers_per_block[level])
                .map(block)
                .collect(),
            proj_out: ChannelMap::new(&init.at("proj_out"), channels, linear),
        }
    }

    /// `x [B, C, H, W]` → the same shape; `path` is the module's.
    pub(super) fn forward(&self, x: Tensor<4>, path: &str, context: &mut Context<'_>) -> Tensor<4> {
        let y = self.proj_in.forward(self.norm.forward(x.clone()));
        let [batch, channels, height, width] = y.dims();
        let mut y = y.reshape([batch, channels, height * width]);
        let states = context.states.clone();
        for (i, block) in self.transformer_blocks.iter().enumerate() {
            let path = format!("{path}.transformer_blocks.{i}");
            let mut at = context.place(&path, (height, width));
            y = block.forward(y, &states, &mut at);
        }
        let y = y.reshape([batch, channels, height, width]);
        ops::add(self.proj_out.forward(y), x)
    }
}

impl TracedAttention for Transformer {
    fn trace(&self, trace: &mut Trace, at: &str, x: &Channels) {
        trace.norm(&format!("{at}.norm"), x, self.norm.groups());
        let y = trace.stream(format!("{at}.hidden"), GroupKind::Residual, x.len());
        trace.layer(&format!("{at}.proj_in"), Some(&y), Some(x));
        for (i, block) in self.transformer_blocks.iter().enumerate() {
            block.trace(trace, &format!("{at}.transformer_blocks.{i}"), &y);
        }
        trace.layer(&format!("{at}.proj_out"), Some(x), Some(&y));
    }
}
