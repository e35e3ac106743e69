//! The CPU implementations: unwrap to slices, call the kernel, wrap the result.

use burn::{
    backend::{Flex, TensorMetadata},
    tensor::{Bytes, DType, Shape},
};
use burn_flex::{FlexTensor, Layout};
use depurate_kernels::{self as kernels, ConvShape, Stride2Pad};

use super::{FastGrads, FastOps, Norm, Stride};

fn tensor(values: Vec<f32>, dims: &[usize]) -> FlexTensor {
    FlexTensor::new(
        Bytes::from_elems(values),
        Layout::contiguous(Shape::from(dims.to_vec())),
        DType::F32,
    )
}

/// Contiguous copy of `x` (a handle only, where it is contiguous already).
fn contiguous(x: FlexTensor) -> FlexTensor {
    if x.as_slice::<f32>().is_some() {
        x
    } else {
        x.to_contiguous()
    }
}

fn values(x: &FlexTensor) -> &[f32] {
    x.as_slice::<f32>().expect(
        "a contiguous f32 tensor: every operand passes through `contiguous`, and models are f32",
    )
}

fn dims<const D: usize>(x: &FlexTensor) -> [usize; D] {
    x.shape().dims::<D>()
}

fn conv_shape(x: [usize; 4], c_out: usize) -> ConvShape {
    ConvShape {
        batch: x[0],
        c_in: x[1],
        c_out,
        height: x[2],
        width: x[3],
    }
}

fn out_size(size: usize, stride: Stride) -> usize {
    match stride {
        Stride::One => size,
        Stride::TwoSymmetric => (size - 1) / 2 + 1,
        Stride::TwoAfterOnly => (size - 2) / 2 + 1,
    }
}

fn stride2_pad(stride: Stride) -> Option<Stride2Pad> {
    match stride {
        Stride::One => None,
        Stride::TwoSymmetric => Some(Stride2Pad::Symmetric),
        Stride::TwoAfterOnly => Some(Stride2Pad::AfterOnly),
    }
}

impl FastOps for Flex {
    fn conv3x3_op(x: FlexTensor, w: FlexTensor, b: FlexTensor, stride: Stride) -> FlexTensor {
        let (x, w, b) = (contiguous(x), contiguous(w), contiguous(b));
        let input = dims::<4>(&x);
        let shape = conv_shape(input, dims::<4>(&w)[0]);
        let out = [
            input[0],
            shape.c_out,
            out_size(input[2], stride),
            out_size(input[3], stride),
        ];
        let mut y = vec![0.0; out.iter().product()];
        match stride2_pad(stride) {
            None => {
                kernels::conv3x3::forward(values(&x), values(&w), Some(values(&b)), shape, &mut y)
            }
            Some(pad) => kernels::conv3x3_stride2::forward(
                values(&x),
                values(&w),
                Some(values(&b)),
                shape,
                pad,
                &mut y,
            ),
        }
        tensor(y, &out)
    }

    fn conv1x1_op(x: FlexTensor, w: FlexTensor, b: FlexTensor) -> FlexTensor {
        let (x, w, b) = (contiguous(x), contiguous(w), contiguous(b));
        let input = dims::<4>(&x);
        let shape = conv_shape(input, dims::<4>(&w)[0]);
        let out = [input[0], shape.c_out, input[2], input[3]];
        let mut y = vec![0.0; out.iter().product()];
        kernels::conv1x1::forward(values(&x), values(&w), Some(values(&b)), shape, &mut y);
        tensor(y, &out)
    }

    fn group_norm_op(
        x: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        norm: Norm,
    ) -> FlexTensor {
        let (x, scale, shift) = (contiguous(x), contiguous(scale), contiguous(shift));
        let input = dims::<4>(&x);
        let mut y = vec![0.0; input.iter().product()];
        kernels::group_norm::forward(
            values(&x),
            values(&scale),
            values(&shift),
            norm_shape(input, norm),
            &mut y,
        );
        tensor(y, &input)
    }

    fn attention_op(q: FlexTensor, k: FlexTensor, v: FlexTensor, scale: f32) -> FlexTensor {
        Self::attention_saving([q, k, v], scale).0
    }

    fn upsample2x_op(x: FlexTensor) -> FlexTensor {
        let x = contiguous(x);
        let [b, c, h, w] = dims::<4>(&x);
        let mut y = vec![0.0; b * c * h * w * 4];
        kernels::upsample2x::forward(values(&x), b * c, h, w, &mut y);
        tensor(y, &[b, c, 2 * h, 2 * w])
    }
}

fn attention_shape(q: &FlexTensor, k: &FlexTensor, scale: f32) -> kernels::attention::Shape {
    let [heads, width, queries] = dims::<3>(q);
    kernels::attention::Shape {
        heads,
        width,
        queries,
        keys: dims::<3>(k)[2],
        scale,
    }
}

fn norm_shape(input: [usize; 4], norm: Norm) -> kernels::group_norm::Shape {
    kernels::group_norm::Shape {
        batch: input[0],
        channels: input[1],
        hw: input[2] * input[3],
        groups: norm.groups,
        eps: norm.eps,
        silu: norm.silu,
    }
}

impl FastGrads for Flex {
    fn conv3x3_input_grad(
        g: FlexTensor,
        w: FlexTensor,
        input: [usize; 4],
        stride: Stride,
    ) -> FlexTensor {
        let (g, w) = (contiguous(g), contiguous(w));
        let shape = conv_shape(input, dims::<4>(&w)[0]);
        let mut gx = vec![0.0; input.iter().product()];
        match stride2_pad(stride) {
            None => kernels::conv3x3::input_grad(values(&g), values(&w), shape, &mut gx),
            Some(pad) => {
                kernels::conv3x3_stride2::input_grad(values(&g), values(&w), shape, pad, &mut gx)
            }
        }
        tensor(gx, &input)
    }

    fn conv3x3_weight_grad(g: FlexTensor, x: FlexTensor, stride: Stride) -> FlexTensor {
        let (g, x) = (contiguous(g), contiguous(x));
        let shape = conv_shape(dims::<4>(&x), dims::<4>(&g)[1]);
        let mut gw = vec![0.0; shape.c_out * shape.c_in * 9];
        match stride2_pad(stride) {
            None => kernels::conv3x3::weight_grad(values(&x), values(&g), shape, &mut gw),
            Some(pad) => {
                kernels::conv3x3_stride2::weight_grad(values(&x), values(&g), shape, pad, &mut gw)
            }
        }
        tensor(gw, &[shape.c_out, shape.c_in, 3, 3])
    }

    fn conv1x1_input_grad(g: FlexTensor, w: FlexTensor) -> FlexTensor {
        let (g, w) = (contiguous(g), contiguous(w));
        let [batch, c_out, h, width] = dims::<4>(&g);
        let input = [batch, dims::<4>(&w)[1], h, width];
        let mut gx = vec![0.0; input.iter().product()];
        kernels::conv1x1::input_grad(values(&g), values(&w), conv_shape(input, c_out), &mut gx);
        tensor(gx, &input)
    }

    fn conv1x1_weight_grad(g: FlexTensor, x: FlexTensor) -> FlexTensor {
        let (g, x) = (contiguous(g), contiguous(x));
        let shape = conv_shape(dims::<4>(&x), dims::<4>(&g)[1]);
        let mut gw = vec![0.0; shape.c_out * shape.c_in];
        kernels::conv1x1::weight_grad(values(&x), values(&g), shape, &mut gw);
        tensor(gw, &[shape.c_out, shape.c_in, 1, 1])
    }

    fn bias_grad(g: FlexTensor) -> FlexTensor {
        let g = contiguous(g);
        let [batch, channels, h, w] = dims::<4>(&g);
        let mut gb = vec![0.0; channels];
        kernels::bias_grad(values(&g), batch, channels, h * w, &mut gb);
        tensor(gb, &[channels])
    }

    fn group_norm_grad(
        x: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        g: FlexTensor,
        norm: Norm,
    ) -> [FlexTensor; 3] {
        let (x, scale, shift, g) = (
            contiguous(x),
            contiguous(scale),
            contiguous(shift),
            contiguous(g),
        );
        let input = dims::<4>(&x);
        let mut gx = vec![0.0; input.iter().product()];
        let (mut gscale, mut gshift) = (vec![0.0; input[1]], vec![0.0; input[1]]);
        kernels::group_norm::backward(
            values(&x),
            values(&g),
            values(&scale),
            values(&shift),
            norm_shape(input, norm),
            &mut gx,
            &mut gscale,
            &mut gshift,
        );
        [
            tensor(gx, &input),
            tensor(gscale, &[input[1]]),
            tensor(gshift, &[input[1]]),
        ]
    }

    fn attention_saving(qkv: [FlexTensor; 3], scale: f32) -> (FlexTensor, FlexTensor) {
        let [q, k, v] = qkv.map(contiguous);
        let shape = attention_shape(&q, &k, scale);
        let mut y = vec![0.0; values(&q).len()];
        let mut lse = vec![0.0; shape.heads * shape.queries];
        kernels::attention::forward(values(&q), values(&k), values(&v), shape, &mut y, &mut lse);
        (
            tensor(y, &dims::<3>(&q)),
            tensor(lse, &[shape.heads, shape.queries]),
        )
    }

    fn attention_grad(
        qkv: [FlexTensor; 3],
        y: FlexTensor,
        lse: FlexTensor,
        g: FlexTensor,
        scale: f32,
    ) -> [FlexTensor; 3] {
        let [q, k, v] = qkv.map(contiguous);
        let [y, lse, g] = [y, lse, g].map(contiguous);
        let mut gradients = [&q, &k, &v].map(|x| vec![0.0; values(x).len()]);
        let [gq, gk, gv] = &mut gradients;
        let saved = kernels::attention::Saved {
            q: values(&q),
            k: values(&k),
            v: values(&v),
            y: values(&y),
            lse: values(&lse),
        };
        kernels::attention::backward(
            saved,
            values(&g),
            attention_shape(&q, &k, scale),
            gq,
            gk,
            gv,
        );
        let [gq, gk, gv] = gradients;
        let (queries, keys) = (dims::<3>(&q), dims::<3>(&k));
        [tensor(gq, &queries), tensor(gk, &keys), tensor(gv, &keys)]
    }

    fn upsample2x_grad(g: FlexTensor) -> FlexTensor {
        let g = contiguous(g);
        let [b, c, h, w] = dims::<4>(&g);
        let mut gx = vec![0.0; b * c * h * w / 4];
        kernels::upsample2x::backward(values(&g), b * c, h / 2, w / 2, &mut gx);
        tensor(gx, &[b, c, h / 2, w / 2])
    }
}
