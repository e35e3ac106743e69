//! The way through a U-shaped network on the names of channels: what both kinds of denoiser share.

use super::{Channels, GroupKind, Trace};
use crate::{
    blocks::{Resample, ResnetBlock},
    layers::{Conv3x3, GroupNorm},
};

/// An attention that a block may have behind each of its residual blocks.
pub(crate) trait TracedAttention {
    /// `forward` on the names of channels; `at` is the module's name.
    fn trace(&self, trace: &mut Trace, at: &str, x: &Channels);
}

/// A block of any part of the network.
pub(crate) struct TracedBlock<'a, A> {
    pub(crate) resnets: &'a [ResnetBlock],
    pub(crate) attentions: &'a [A],
    /// What halves or doubles the size behind it: its name, and the layers.
    pub(crate) resamplers: (&'static str, &'a [Resample]),
}

/// Which part of the network a block is of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Down,
    Middle,
    Up,
}

impl<A: TracedAttention> TracedBlock<'_, A> {
    /// `forward` on the names of channels; `at` is the block's name.
    fn trace(
        &self,
        trace: &mut Trace,
        (at, way): (&str, Way),
        mut x: Channels,
        skips: &mut Vec<Channels>,
    ) -> Channels {
        for (i, resnet) in self.resnets.iter().enumerate() {
            if way == Way::Up {
                x.extend(skips.pop().unwrap_or_default());
            }
            x = resnet.trace(trace, &format!("{at}.resnets.{i}"), &x);
            if let Some(attention) = self.attentions.get(i) {
                attention.trace(trace, &format!("{at}.attentions.{i}"), &x);
            }
            if way == Way::Down {
                skips.push(x.clone());
            }
        }
        let (name, resamplers) = self.resamplers;
        for (i, resampler) in resamplers.iter().enumerate() {
            x = resampler.trace(trace, &format!("{at}.{name}.{i}"), &x);
            if way == Way::Down {
                skips.push(x.clone());
            }
        }
        x
    }
}

/// The network.
pub(crate) struct TracedNetwork<'a, A> {
    pub(crate) conv_in: &'a Conv3x3,
    pub(crate) down_blocks: Vec<TracedBlock<'a, A>>,
    pub(crate) mid_block: TracedBlock<'a, A>,
    pub(crate) up_blocks: Vec<TracedBlock<'a, A>>,
    pub(crate) conv_norm_out: &'a GroupNorm,
}

impl<A: TracedAttention> TracedNetwork<'_, A> {
    pub(crate) fn trace(&self, trace: &mut Trace) {
        let width = self.conv_in.channels();
        let mut x = trace.stream("conv_in".into(), GroupKind::Residual, width);
        trace.layer("conv_in", Some(&x), None);
        let mut skips = vec![x.clone()];
        for (i, block) in self.down_blocks.iter().enumerate() {
            let at = format!("down_blocks.{i}");
            x = block.trace(trace, (&at, Way::Down), x, &mut skips);
        }
        x = self
            .mid_block
            .trace(trace, ("mid_block", Way::Middle), x, &mut skips);
        for (i, block) in self.up_blocks.iter().enumerate() {
            let at = format!("up_blocks.{i}");
            x = block.trace(trace, (&at, Way::Up), x, &mut skips);
        }
        trace.norm("conv_norm_out", &x, self.conv_norm_out.groups());
        trace.layer("conv_out", None, Some(&x));
    }
}
