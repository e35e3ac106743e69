//! Observing a network's internals. The model drives; a tap is called back and is always an argument,
//! never global state.

use burn::tensor::Tensor;

/// A place inside a network whose output can be observed, by its diffusers module path
/// (`down_blocks.1`, `mid_block`, `up_blocks.0.attentions.1`, …).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Site<'a>(pub &'a str);

/// Observer of a network's activations.
pub trait Tap {
    /// Asked before a site's value would be handed over; `false` lets the model skip materialising it.
    fn wants(&self, site: Site<'_>) -> bool;
    /// Receives the activation `[B, C, H, W]` at `site`, still attached to the autograd graph.
    fn observe(&mut self, site: Site<'_>, value: &Tensor<4>);
}

/// The tap that wants nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTap;

impl Tap for NoTap {
    fn wants(&self, _site: Site<'_>) -> bool {
        false
    }
    fn observe(&mut self, _site: Site<'_>, _value: &Tensor<4>) {}
}
