//! The network on the names of its channels.
//!
//! Layer normalisations see all channels of a transformer's own stream, so that these stay together; its heads and the inner
//! channels of its feed-forward layers can go, and so can the inner channels of residual blocks. What comes from the prompt and
//! from the time always stays.

use burn::tensor::Device;

use super::{
    UNet2DCondition, UNet2DConditionConfig,
    blocks::{DownBlock, MidBlock, UpBlock},
    transformer::Transformer,
};
use crate::{
    blocks::ResnetBlock,
    channel_graph::{Channels, GroupKind, PrunableConfig, PrunableNetwork, Removal, Trace},
    noise::SeedTree,
};

impl PrunableConfig for UNet2DConditionConfig {
    type Network = UNet2DCondition;

    fn removed(&self) -> &Removal {
        &self.removed
    }

    fn with_removed(&self, removed: Removal) -> Self {
        Self {
            removed,
            ..self.clone()
        }
    }

    fn network(&self, seed: &SeedTree, device: &Device) -> UNet2DCondition {
        UNet2DCondition::new(self, seed, device)
    }
}

impl PrunableNetwork for UNet2DCondition {
    type Config = UNet2DConditionConfig;

    fn trace(&self, trace: &mut Trace) {
        let width = self.conv_in.channels();
        let mut x = trace.stream("conv_in".into(), GroupKind::Residual, width);
        trace.layer("conv_in", Some(&x), None);
        let mut skips = vec![x.clone()];
        for (i, block) in self.down_blocks.iter().enumerate() {
            x = block.trace(trace, &format!("down_blocks.{i}"), x, &mut skips);
        }
        x = self.mid_block.trace(trace, "mid_block", x);
        for (i, block) in self.up_blocks.iter().enumerate() {
            x = block.trace(trace, &format!("up_blocks.{i}"), x, &mut skips);
        }
        trace.norm("conv_norm_out", &x, self.conv_norm_out.groups());
        trace.layer("conv_out", None, Some(&x));
    }
}

/// A residual block and, where there is one, the transformer behind it.
fn mixed(
    trace: &mut Trace,
    at: &str,
    i: usize,
    (resnet, attention): (&ResnetBlock, Option<&Transformer>),
    x: &Channels,
) -> Channels {
    let out = resnet.trace(trace, &format!("{at}.resnets.{i}"), x);
    if let Some(attention) = attention {
        attention.trace(trace, &format!("{at}.attentions.{i}"), &out);
    }
    out
}

impl DownBlock {
    /// `forward` on the names of channels; `at` is the block's name.
    fn trace(
        &self,
        trace: &mut Trace,
        at: &str,
        mut x: Channels,
        skips: &mut Vec<Channels>,
    ) -> Channels {
        for (i, resnet) in self.resnets.iter().enumerate() {
            x = mixed(trace, at, i, (resnet, self.attentions.get(i)), &x);
            skips.push(x.clone());
        }
        for (i, downsampler) in self.downsamplers.iter().enumerate() {
            x = downsampler.trace(trace, &format!("{at}.downsamplers.{i}"), &x);
            skips.push(x.clone());
        }
        x
    }
}

impl MidBlock {
    /// `forward` on the names of channels; `at` is the block's name.
    fn trace(&self, trace: &mut Trace, at: &str, mut x: Channels) -> Channels {
        for (i, resnet) in self.resnets.iter().enumerate() {
            x = mixed(trace, at, i, (resnet, self.attentions.get(i)), &x);
        }
        x
    }
}

impl UpBlock {
    /// `forward` on the names of channels; `at` is the block's name.
    fn trace(
        &self,
        trace: &mut Trace,
        at: &str,
        mut x: Channels,
        skips: &mut Vec<Channels>,
    ) -> Channels {
        for (i, resnet) in self.resnets.iter().enumerate() {
            x.extend(skips.pop().unwrap_or_default());
            x = mixed(trace, at, i, (resnet, self.attentions.get(i)), &x);
        }
        for (i, upsampler) in self.upsamplers.iter().enumerate() {
            x = upsampler.trace(trace, &format!("{at}.upsamplers.{i}"), &x);
        }
        x
    }
}
