//! Networks without some of their channels.

use std::collections::BTreeMap;

use burn::{module::Module, tensor::Device};

use super::{ChannelGraph, Removal, Trace};
use crate::{DiffusionError, module_weights, noise::SeedTree};

/// The note in `config.json` that says which units a pruned network lacks. diffusers knows no such widths and ignores it.
pub(crate) const NOTE: &str = "_depurate_removed";

/// A network that can be run on the names of its channels.
pub trait PrunableNetwork: Module {
    /// What it is made from.
    type Config: PrunableConfig<Network = Self>;

    /// The run on names, as if no unit had been taken out.
    #[doc(hidden)]
    fn trace(&self, trace: &mut Trace);

    /// The network of `config`, which is this one's, without the units of `removal`: its tensors are smaller, and it gives the
    /// answers that this one would give with zeros in their place.
    ///
    /// # Errors
    /// As [`ChannelGraph::check`], and when the network is not that of `config`.
    fn pruned(
        &self,
        config: &Self::Config,
        removal: &Removal,
        device: &Device,
    ) -> Result<Self, DiffusionError> {
        let graph = ChannelGraph::of(config)?;
        let removed = graph.removed(removal)?;
        check_shapes(self, &graph)?;
        let smaller = config.without(removal)?.network(&SeedTree::new(0), device);
        let mut values = values(self);
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
    fn expanded(&self, config: &Self::Config, device: &Device) -> Result<Self, DiffusionError> {
        let whole = config.whole();
        let graph = ChannelGraph::of(&whole)?;
        let removed = graph.removed(config.removed())?;
        check_shapes(self, &graph.without(config.removed())?)?;
        let mut values = values(self);
        let larger = whole.network(&SeedTree::new(0), device);
        Ok(module_weights::with_values(larger, |name| {
            let values = values.remove(name)?;
            graph.spread(name, &values, &removed)
        }))
    }
}

/// A configuration that says which units its network lacks.
pub trait PrunableConfig: Clone {
    /// The network.
    type Network: PrunableNetwork<Config = Self>;

    /// Units that were taken out of the network that the other options describe.
    fn removed(&self) -> &Removal;

    /// The same with other units taken out.
    #[must_use]
    fn with_removed(&self, removed: Removal) -> Self;

    /// A network with random weights drawn from `seed`; nothing is allocated before it is used.
    fn network(&self, seed: &SeedTree, device: &Device) -> Self::Network;

    /// The configuration of the network that the removed units were taken from.
    #[must_use]
    fn whole(&self) -> Self {
        self.with_removed(Removal::default())
    }

    /// The configuration of the network without the units of `removal`.
    ///
    /// # Errors
    /// As [`ChannelGraph::check`].
    fn without(&self, removal: &Removal) -> Result<Self, DiffusionError> {
        ChannelGraph::of(self)?.check(removal)?;
        Ok(self.with_removed(self.removed().joined(removal)))
    }
}

impl ChannelGraph {
    /// The graph of the network of `config`: without the units that were taken out of it, and with the names and numbers that
    /// its units had before.
    ///
    /// # Errors
    /// When `config` says that units are removed which there are not, or all that a layer has.
    pub fn of<C: PrunableConfig>(config: &C) -> Result<Self, DiffusionError> {
        // Nothing is allocated on this device: only shapes are asked for.
        let whole = config
            .whole()
            .network(&SeedTree::new(0), &Device::default());
        let mut trace = Trace::default();
        whole.trace(&mut trace);
        trace
            .finish(module_weights::parameters(&whole))
            .without(config.removed())
    }
}

fn values(network: &impl Module) -> BTreeMap<String, Vec<f32>> {
    let tensors = module_weights::to_tensors(network).into_iter();
    tensors.map(|tensor| (tensor.name, tensor.data)).collect()
}

fn check_shapes(network: &impl Module, graph: &ChannelGraph) -> Result<(), DiffusionError> {
    let expected = graph.shapes();
    for found in module_weights::parameters(network) {
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
