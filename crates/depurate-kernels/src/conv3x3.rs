//! 3x3 convolution with stride 1 and padding 1: `[b][ci][h][w]` to `[b][co][h][w]`.

use crate::padded::Geometry;
use crate::shape::check;
use crate::winograd_weights::Direction;
use crate::{
    ConvShape, direct, direct_weight_grad, isa, scratch, winograd_conv, winograd_weight_grad,
};

pub use crate::winograd_weights::Transformed;

/// With fewer channels than this on one side, Winograd's transforms cost more than the products that they save.
const WINOGRAD_CHANNELS: usize = 8;

/// Whether a layer of these channels is done by Winograd, so that [`Transformed`] weights help it.
pub fn is_winograd(c_in: usize, c_out: usize) -> bool {
    c_in.min(c_out) >= WINOGRAD_CHANNELS
}

/// Channels for each tile of a batch from which on weights that are used once are not worth transforming: 36 numbers are
/// made of 9, and few tiles share them. Measured on two cores, 1280 channels: direct takes 0.24 of Winograd's time with 4
/// tiles, 0.86 with 32; with 512 channels 0.48 with 4 and 1.04 with 16.
const CHANNELS_A_TILE: usize = 40;

/// Whether the forward pass goes by Winograd.
fn forward_is_winograd(s: ConvShape, kept: bool) -> bool {
    let tiles = s.batch * s.height.div_ceil(4) * s.width.div_ceil(4);
    let few = tiles * CHANNELS_A_TILE <= (s.c_in * s.c_out).isqrt();
    is_winograd(s.c_in, s.c_out) && (kept || !few)
}

fn output_len(s: ConvShape) -> usize {
    s.batch * s.c_out * s.height * s.width
}

/// `y[b][co] = bias[co] + Σ_ci w[co][ci] * x[b][ci]`; the bias is `[co]`, or `[b][co]` with one for every image.
pub fn forward(x: &[f32], w: &[f32], bias: Option<&[f32]>, s: ConvShape, y: &mut [f32]) {
    forward_keeping(x, w, None, bias, s, y);
}

/// [`forward`] for weights that do not change: what is made of them is kept in `transformed`.
pub fn forward_keeping(
    x: &[f32],
    w: &[f32],
    transformed: Option<&Transformed>,
    bias: Option<&[f32]>,
    s: ConvShape,
    y: &mut [f32],
) {
    check("x", x, s.input_len());
    check("w", w, s.c_out * s.c_in * 9);
    check("y", y, output_len(s));
    if let Some(bias) = bias.filter(|bias| bias.len() != s.batch * s.c_out) {
        check("bias", bias, s.c_out);
    }
    if s.is_empty() {
        return y.fill(0.0);
    }
    let isa = isa::current();
    if forward_is_winograd(s, transformed.is_some()) {
        let w = (w, transformed);
        winograd_conv::run(x, w, bias, s, Direction::Forward, y, isa);
    } else {
        direct::forward(
            x,
            w,
            bias,
            (s.batch, s.c_in, s.c_out),
            Geometry::stride1(s),
            y,
            isa,
        );
    }
}

/// The gradient with respect to the input; `s` is the forward convolution's shape.
pub fn input_grad(gy: &[f32], w: &[f32], s: ConvShape, gx: &mut [f32]) {
    input_grad_keeping(gy, w, None, s, gx);
}

/// [`input_grad`] for weights that do not change: what is made of them is kept in `transformed`.
pub fn input_grad_keeping(
    gy: &[f32],
    w: &[f32],
    transformed: Option<&Transformed>,
    s: ConvShape,
    gx: &mut [f32],
) {
    check("gy", gy, output_len(s));
    check("w", w, s.c_out * s.c_in * 9);
    check("gx", gx, s.input_len());
    if s.is_empty() {
        return gx.fill(0.0);
    }
    let isa = isa::current();
    if is_winograd(s.c_in, s.c_out) {
        let w = (w, transformed);
        winograd_conv::run(gy, w, None, s, Direction::Backward, gx, isa);
    } else {
        let mut scratch = scratch::take([w.len()]);
        let [turned] = scratch.slices();
        direct::turn_weights(w, s.c_in, s.c_out, turned);
        let channels = (s.batch, s.c_out, s.c_in);
        direct::forward(gy, turned, None, channels, Geometry::stride1(s), gx, isa);
    }
}

/// The gradient with respect to the weights; `s` is the forward convolution's shape.
pub fn weight_grad(x: &[f32], gy: &[f32], s: ConvShape, gw: &mut [f32]) {
    check("x", x, s.input_len());
    check("gy", gy, output_len(s));
    check("gw", gw, s.c_out * s.c_in * 9);
    if s.is_empty() {
        return gw.fill(0.0);
    }
    let isa = isa::current();
    let geometry = Geometry::stride1(s);
    if is_winograd(s.c_in, s.c_out) {
        winograd_weight_grad::run(x, gy, s, gw, isa);
    } else if s.c_out >= s.c_in {
        direct_weight_grad::run(x, gy, (s.batch, s.c_in, s.c_out), geometry, gw, isa);
    } else {
        // vectors run along the larger side: exchange x and gy, which turns the taps around
        let mut scratch = scratch::take([gw.len()]);
        let [turned] = scratch.slices();
        direct_weight_grad::run(gy, x, (s.batch, s.c_out, s.c_in), geometry, turned, isa);
        direct::turn_weights(turned, s.c_out, s.c_in, gw);
    }
}
