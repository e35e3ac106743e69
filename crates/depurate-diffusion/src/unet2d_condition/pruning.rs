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
    channel_graph::{PrunableConfig, PrunableNetwork, Removal, Trace, TracedBlock, TracedNetwork},
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
        TracedNetwork {
            conv_in: &self.conv_in,
            down_blocks: self.down_blocks.iter().map(DownBlock::traced).collect(),
            mid_block: self.mid_block.traced(),
            up_blocks: self.up_blocks.iter().map(UpBlock::traced).collect(),
            conv_norm_out: &self.conv_norm_out,
        }
        .trace(trace);
    }
}

impl DownBlock {
    fn traced(&self) -> TracedBlock<'_, Transformer> {
        TracedBlock {
            resnets: &self.resnets,
            attentions: &self.attentions,
            resamplers: ("downsamplers", &self.downsamplers),
        }
    }
}

impl MidBlock {
    fn traced(&self) -> TracedBlock<'_, Transformer> {
        TracedBlock {
            resnets: &self.resnets,
            attentions: &self.attentions,
            resamplers: ("", &[]),
        }
    }
}

impl UpBlock {
    fn traced(&self) -> TracedBlock<'_, Transformer> {
        TracedBlock {
            resnets: &self.resnets,
            attentions: &self.attentions,
            resamplers: ("upsamplers", &self.upsamplers),
        }
    }
}
