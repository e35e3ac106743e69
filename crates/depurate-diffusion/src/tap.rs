//! Observing a network's internals. The model drives; a tap is called back and is always an argument,
//! never global state.
//!
//! A tap pays for what it asks: a site that nobody wants is neither formed nor held. The outputs of blocks exist anyway, so
//! observing them is free. An attention map does not: where one is wanted, attention is computed in two steps with the map
//! between them instead of in one, and the map `heads x keys x queries` is in memory for as long as its observer keeps it.
//! `docs/performance.md` has the time that this takes.

use burn::tensor::Tensor;

/// A place inside a network whose output can be observed, by its diffusers module path
/// (`down_blocks.1`, `mid_block`, `up_blocks.0.attentions.1`, …).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Site<'a>(pub &'a str);

/// What an attention layer attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AttentionKind {
    /// Pixels to pixels (`attn1`).
    OwnPixels,
    /// Pixels to the prompt's tokens (`attn2`).
    Prompt,
}

/// The part of a UNet that a layer is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The way down.
    Down,
    /// The middle.
    Middle,
    /// The way up.
    Up,
}

/// An attention layer of a text-conditional UNet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AttentionSite<'a> {
    /// Module path, for example `down_blocks.2.attentions.1.transformer_blocks.0.attn2`.
    pub path: &'a str,
    /// What it attends to.
    pub kind: AttentionKind,
    /// Where it is.
    pub stage: Stage,
    /// Side of the network's input over the side of the layer's image: 1, 2, 4, …
    pub reduction: usize,
    /// Rows and columns of the layer's image; a map has their product of queries, row by row.
    pub size: (usize, usize),
    /// Heads.
    pub heads: usize,
}

/// Observer of a network's activations and attention maps.
pub trait Tap {
    /// Asked before a site's value would be handed over; `false` lets the model skip materialising it.
    fn wants(&self, site: Site<'_>) -> bool;
    /// Receives the activation `[B, C, H, W]` at `site`, still attached to the autograd graph.
    fn observe(&mut self, site: Site<'_>, value: &Tensor<4>);
    /// Asked before a layer's attention; `false` lets the model compute it without forming its map.
    fn wants_map(&self, _site: &AttentionSite<'_>) -> bool {
        false
    }
    /// Receives the map `[B heads, keys, queries]` at `site`, still attached to the autograd graph; its sum over keys is 1.
    fn observe_map(&mut self, _site: &AttentionSite<'_>, _map: &Tensor<3>) {}
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
