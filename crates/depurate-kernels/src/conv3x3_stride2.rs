//! 3x3 convolution with stride 2: `[b][ci][h][w]` to `[b][co][h'][w']`, see [`Stride2Pad::out_size`].

use crate::padded::Geometry;
use crate::shape::check;
use crate::{ConvShape, Stride2Pad, direct, direct_input_grad, direct_weight_grad, isa};

fn output_len(s: ConvShape, pad: Stride2Pad) -> usize {
    let (height, width) = pad.out_size(s.height, s.width);
    s.batch * s.c_out * height * width
}

/// `y[b][co] = bias[co] + Σ_ci w[co][ci] * x[b][ci]`, every other row and column.
pub fn forward(
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    s: ConvShape,
    pad: Stride2Pad,
    y: &mut [f32],
) {
    check("x", x, s.input_len());
    check("w", w, s.c_out * s.c_in * 9);
    check("y", y, output_len(s, pad));
    if let Some(bias) = bias {
        check("bias", bias, s.c_out);
    }
    if y.is_empty() || s.is_empty() {
        return y.fill(0.0);
    }
    let channels = (s.batch, s.c_in, s.c_out);
    direct::forward(
        x,
        w,
        bias,
        channels,
        Geometry::stride2(s, pad),
        y,
        isa::current(),
    );
}

/// The gradient with respect to the input; `s` is the forward convolution's shape.
pub fn input_grad(gy: &[f32], w: &[f32], s: ConvShape, pad: Stride2Pad, gx: &mut [f32]) {
    check("gy", gy, output_len(s, pad));
    check("w", w, s.c_out * s.c_in * 9);
    check("gx", gx, s.input_len());
    if gy.is_empty() || s.is_empty() {
        return gx.fill(0.0);
    }
    let channels = (s.batch, s.c_in, s.c_out);
    direct_input_grad::run(
        gy,
        w,
        channels,
        Geometry::stride2(s, pad),
        gx,
        isa::current(),
    );
}

/// The gradient with respect to the weights; `s` is the forward convolution's shape.
pub fn weight_grad(x: &[f32], gy: &[f32], s: ConvShape, pad: Stride2Pad, gw: &mut [f32]) {
    check("x", x, s.input_len());
    check("gy", gy, output_len(s, pad));
    check("gw", gw, s.c_out * s.c_in * 9);
    if gy.is_empty() || s.is_empty() {
        return gw.fill(0.0);
    }
    let channels = (s.batch, s.c_in, s.c_out);
    direct_weight_grad::run(
        x,
        gy,
        channels,
        Geometry::stride2(s, pad),
        gw,
        isa::current(),
    );
}
