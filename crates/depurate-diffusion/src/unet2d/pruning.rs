//! Networks without some of their channels. See [`crate::channel_graph`].

use std::collections::BTreeMap;

use burn::tensor::Device;

use super::{UNet2D, UNet2DConfig};
use crate::{
    DiffusionError,
    channel_graph::{ChannelGraph, GroupKind, Removal, Trace},
    module_weights,
    noise::SeedTree,
};

impl ChannelGraph {
    /// The graph of the network of `config`: without the units that were taken out of it, and with the names and numbers that
    /// its units had before.
    ///
    /// # Errors
    /// When `config` says that units are removed which there are not, or all that a layer has.
    pub fn of(config: &UNet2DConfig) -> Result<Self, DiffusionError> {
        let whole = config.whole();
        // Nothing is allocated on this device: only shapes are asked for.
        UNet2D::new(&whole, &SeedTree::new(0), &Device::default())
            .traced()
            .without(&config.removed)
    }
}

impl UNet2DConfig {
    /// The configuration of the network without the units of `removal`.
    ///
    /// # Errors
    /// As [`ChannelGraph::check`].
    pub fn without(&self, removal: &Removal) -> Result<Self, DiffusionError> {
        ChannelGraph::of(self)?.check(removal)?;
        Ok(Self {
            removed: self.removed.joined(removal),
            ..self.clone()
        })
    }
}

impl UNet2D {
    /// The network of `config`, which is this one's, without the units of `removal`: its tensors are smaller, and it gives the
    /// answers that this one would give with zeros in their place.
    ///
    /// # Errors
    /// As [`ChannelGraph::check`], and when the network is not that of `config`.
    pub fn pruned(
        &self,
        config: &UNet2DConfig,
        removal: &Removal,
        device: &Device,
    ) -> Result<Self, DiffusionError> {
        let graph = ChannelGraph::of(config)?;
        let removed = graph.removed(removal)?;
        self.check_shapes(&graph)?;
        let smaller = Self::new(&config.without(removal)?, &SeedTree::new(0), device);
        let mut values = self.values();
        Ok(module_weights::with_values(smaller, |name| {
            let values = values.remove(name)?;
            Some(graph.selected(name, &values, &removed))
        }))
    }

    /// This network, pruned as `config` says, in the shapes of the network that it was taken from, with zeros in the place of
    /// all removed units: what diffusers can load.
    ///
    /// # Errors
    /// When the network is not that of `config`.
    pub fn expanded(&self, config: &UNet2DConfig, device: &Device) -> Result<Self, DiffusionError> {
        let whole = config.whole();
        let graph = ChannelGraph::of(&whole)?;
        let removed = graph.removed(&config.removed)?;
        self.check_shapes(&graph.without(&config.removed)?)?;
        let mut values = self.values();
        let larger = Self::new(&whole, &SeedTree::new(0), device);
        Ok(module_weights::with_values(larger, |name| {
            let values = values.remove(name)?;
            graph.spread(name, &values, &removed)
        }))
    }

    /// The graph of this network, as if no unit of it had been taken out.
    fn traced(&self) -> ChannelGraph {
        let mut trace = Trace::default();
        let mut x = trace.stream(
            "conv_in".into(),
            GroupKind::Residual,
            self.conv_in.channels(),
        );
        trace.layer("conv_in", Some(&x), None);
        let mut skips = vec![x.clone()];
        for (i, block) in self.down_blocks.iter().enumerate() {
            x = block.trace(&mut trace, &format!("down_blocks.{i}"), x, &mut skips);
        }
        x = self.mid_block.trace(&mut trace, "mid_block", x);
        for (i, block) in self.up_blocks.iter().enumerate() {
            x = block.trace(&mut trace, &format!("up_blocks.{i}"), x, &mut skips);
        }
        trace.norm("conv_norm_out", &x, self.conv_norm_out.groups());
        trace.layer("conv_out", None, Some(&x));
        trace.finish(self.parameters())
    }

    fn values(&self) -> BTreeMap<String, Vec<f32>> {
        let tensors = self.to_tensors().into_iter();
        tensors.map(|tensor| (tensor.name, tensor.data)).collect()
    }

    fn check_shapes(&self, graph: &ChannelGraph) -> Result<(), DiffusionError> {
        let expected = graph.shapes();
        for found in self.parameters() {
            match expected.get(&found.name) {
                Some(shape) if *shape == found.shape => {}
                shape => {
                    return Err(DiffusionError::Shape {
                        what: "a parameter of the network to prune or expand",
                        expected: format!(
                            "{:?} for {}, as its configuration says",
                            shape.cloned().unwrap_or_default(),
                            found.name
                        ),
                        got: found.shape,
                    });
                }
            }
        }
        Ok(())
    }
}
