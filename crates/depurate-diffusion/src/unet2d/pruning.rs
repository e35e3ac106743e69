//! The network on the names of its channels.

use burn::tensor::Device;

use super::{
    UNet2D, UNet2DConfig,
    blocks::{DownBlock, MidBlock, UpBlock},
};
use crate::{
    blocks::PixelAttention,
    channel_graph::{PrunableConfig, PrunableNetwork, Removal, Trace, TracedBlock, TracedNetwork},
    noise::SeedTree,
};

impl PrunableConfig for UNet2DConfig {
    type Network = UNet2D;

    fn removed(&self) -> &Removal {
        &self.removed
    }

    fn with_removed(&self, removed: Removal) -> Self {
        Self {
            removed,
            ..self.clone()
        }
    }

    fn network(&self, seed: &SeedTree, device: &Device) -> UNet2D {
        UNet2D::new(self, seed, device)
    }
}

impl PrunableNetwork for UNet2D {
    type Config = UNet2DConfig;

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
    fn traced(&self) -> TracedBlock<'_, PixelAttention> {
        TracedBlock {
            resnets: &self.resnets,
            attentions: &self.attentions,
            resamplers: ("downsamplers", &self.downsamplers),
        }
    }
}

impl MidBlock {
    fn traced(&self) -> TracedBlock<'_, PixelAttention> {
        TracedBlock {
            resnets: &self.resnets,
            attentions: &self.attentions,
            resamplers: ("", &[]),
        }
    }
}

impl UpBlock {
    fn traced(&self) -> TracedBlock<'_, PixelAttention> {
        TracedBlock {
            resnets: &self.resnets,
            attentions: &self.attentions,
            resamplers: ("upsamplers", &self.upsamplers),
        }
    }
}
