//! The network on the names of its channels.

use burn::tensor::Device;

use super::{UNet2D, UNet2DConfig};
use crate::{
    channel_graph::{GroupKind, PrunableConfig, PrunableNetwork, Removal, Trace},
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
