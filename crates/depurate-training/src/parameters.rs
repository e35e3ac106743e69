//! A network's parameters and gradients as flat tensors under their checkpoint names.

pub(crate) use depurate_diffusion::module_weights::{
    Flat, flat_gradients as gradients, flat_values as values, with_flat as replaced,
};
