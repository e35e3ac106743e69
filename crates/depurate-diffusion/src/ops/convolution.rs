//! Convolutions and linear layers.

mod backward;

use burn::{
    backend::{Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor},
    tensor::Tensor,
};
use burn_flex::FlexTensor;
use depurate_kernels::{self as kernels, ConvShape, Stride2Pad, linear};

use super::{
    KeptWeights,
    buffers::{fresh, recycle},
    flex::{contiguous, dims, tensor, values},
    framework::{self, has_kernels},
};

/// How a 3x3 convolution strides and pads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stride {
    /// Stride 1, padding 1.
    One,
    /// Stride 2, padding 1 on every side (`downsample_padding: 1`).
    TwoSymmetric,
    /// Stride 2, one row and column of zeros after the image only (`downsample_padding: 0`).
    TwoAfterOnly,
}

impl Stride {
    fn pad(self) -> Option<Stride2Pad> {
        match self {
            Stride::One => None,
            Stride::TwoSymmetric => Some(Stride2Pad::Symmetric),
            Stride::TwoAfterOnly => Some(Stride2Pad::AfterOnly),
        }
    }
}

/// 3x3 convolution of `x [B, Ci, H, W]` with `w [Co, Ci, 3, 3]` and bias `b [Co]`. With `kept`, what the kernel makes of the
/// weights is kept as long as they stay the same and are not trained.
pub fn conv3x3(
    x: Tensor<4>,
    w: Tensor<4>,
    b: Tensor<1>,
    stride: Stride,
    kept: Option<&KeptWeights>,
) -> Tensor<4> {
    if !has_kernels(&x.device()) {
        return framework::conv3x3(x, w, b, stride);
    }
    Tensor::from_dispatch(Dispatch::conv3x3_op(
        x.into_dispatch(),
        w.into_dispatch(),
        b.into_dispatch(),
        stride,
        kept.cloned(),
    ))
}

/// [`conv3x3`] of stride 1 with a bias `b [B, Co]` for every image.
pub fn conv3x3_image_bias(
    x: Tensor<4>,
    w: Tensor<4>,
    b: Tensor<2>,
    kept: Option<&KeptWeights>,
) -> Tensor<4> {
    if !has_kernels(&x.device()) {
        return framework::conv3x3_image_bias(x, w, b);
    }
    Tensor::from_dispatch(Dispatch::conv3x3_op(
        x.into_dispatch(),
        w.into_dispatch(),
        b.into_dispatch(),
        Stride::One,
        kept.cloned(),
    ))
}

/// 1x1 convolution of `x [B, Ci, H, W]` with `w [Co, Ci, 1, 1]` and bias `b [Co]`.
pub fn conv1x1(x: Tensor<4>, w: Tensor<4>, b: Tensor<1>) -> Tensor<4> {
    if !has_kernels(&x.device()) {
        return framework::conv1x1(x, w, b);
    }
    Tensor::from_dispatch(Dispatch::conv1x1_op(
        x.into_dispatch(),
        w.into_dispatch(),
        b.into_dispatch(),
    ))
}

/// Linear map of the rows of `x [N, in]` with `w [out, in]` and bias `b [out]`.
pub fn linear(x: Tensor<2>, w: Tensor<2>, b: Tensor<1>) -> Tensor<2> {
    if !has_kernels(&x.device()) {
        return framework::linear(x, w, b);
    }
    Tensor::from_dispatch(Dispatch::linear_op(
        x.into_dispatch(),
        w.into_dispatch(),
        b.into_dispatch(),
    ))
}

/// What a bias is added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BiasShape {
    /// `[C]`: every image.
    Channels,
    /// `[1, C]`: every image.
    Row,
    /// `[B, C]`: one for each.
    Images,
}

/// The forward operations.
#[backend_extension(Flex, Autodiff)]
pub trait ConvolutionOps: Backend {
    /// See [`conv3x3`] and [`conv3x3_image_bias`].
    fn conv3x3_op(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        b: FloatTensor<Self>,
        stride: Stride,
        kept: Option<KeptWeights>,
    ) -> FloatTensor<Self>;
    /// See [`conv1x1`].
    fn conv1x1_op(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        b: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    /// See [`linear()`].
    fn linear_op(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        b: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

/// The backward halves.
pub(crate) trait ConvolutionGrads: ConvolutionOps {
    fn conv3x3_input_grad(
        g: FloatTensor<Self>,
        w: FloatTensor<Self>,
        input: [usize; 4],
        stride: Stride,
        kept: Option<KeptWeights>,
    ) -> FloatTensor<Self>;
    fn conv3x3_weight_grad(
        g: FloatTensor<Self>,
        x: FloatTensor<Self>,
        stride: Stride,
    ) -> FloatTensor<Self>;
    fn conv1x1_input_grad(g: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self>;
    fn conv1x1_weight_grad(g: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Of a bias of this shape.
    fn bias_grad(g: FloatTensor<Self>, bias: BiasShape) -> FloatTensor<Self>;
    fn linear_input_grad(g: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self>;
    fn linear_weight_grad(g: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self>;
    fn linear_bias_grad(g: FloatTensor<Self>) -> FloatTensor<Self>;
    fn bias_shape(b: &FloatTensor<Self>) -> BiasShape;
    fn sizes(x: &FloatTensor<Self>) -> [usize; 4];
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

fn linear_shape(x: &FlexTensor, w: &FlexTensor) -> linear::Shape {
    let [wide_out, wide_in] = dims::<2>(w);
    linear::Shape {
        rows: dims::<2>(x)[0],
        wide_in,
        wide_out,
    }
}

impl ConvolutionOps for Flex {
    fn conv3x3_op(
        x: FlexTensor,
        w: FlexTensor,
        b: FlexTensor,
        stride: Stride,
        kept: Option<KeptWeights>,
    ) -> FlexTensor {
        let (x, w, b) = (contiguous(x), contiguous(w), contiguous(b));
        let input = dims::<4>(&x);
        let s = conv_shape(input, dims::<4>(&w)[0]);
        let (height, width) = stride
            .pad()
            .map_or((s.height, s.width), |pad| pad.out_size(s.height, s.width));
        let out = [s.batch, s.c_out, height, width];
        let mut y = fresh(out.iter().product());
        let (input, bias) = (values(&x), Some(values(&b)));
        match stride.pad() {
            None => {
                let kept = kept.and_then(|kept| kept.of(&w, (s.c_in, s.c_out)));
                let kept = kept.as_deref();
                kernels::conv3x3::forward_keeping(input, values(&w), kept, bias, s, &mut y);
            }
            Some(pad) => {
                kernels::conv3x3_stride2::forward(input, values(&w), bias, s, pad, &mut y);
            }
        }
        recycle([x]);
        tensor(y, &out)
    }

    fn conv1x1_op(x: FlexTensor, w: FlexTensor, b: FlexTensor) -> FlexTensor {
        let (x, w, b) = (contiguous(x), contiguous(w), contiguous(b));
        let input = dims::<4>(&x);
        let shape = conv_shape(input, dims::<4>(&w)[0]);
        let out = [input[0], shape.c_out, input[2], input[3]];
        let mut y = fresh(out.iter().product());
        kernels::conv1x1::forward(values(&x), values(&w), Some(values(&b)), shape, &mut y);
        recycle([x]);
        tensor(y, &out)
    }

    fn linear_op(x: FlexTensor, w: FlexTensor, b: FlexTensor) -> FlexTensor {
        let (x, w, b) = (contiguous(x), contiguous(w), contiguous(b));
        let shape = linear_shape(&x, &w);
        let mut y = fresh(shape.rows * shape.wide_out);
        linear::forward(values(&x), values(&w), Some(values(&b)), shape, &mut y);
        tensor(y, &[shape.rows, shape.wide_out])
    }
}

impl ConvolutionGrads for Flex {
    fn conv3x3_input_grad(
        g: FlexTensor,
        w: FlexTensor,
        input: [usize; 4],
        stride: Stride,
        kept: Option<KeptWeights>,
    ) -> FlexTensor {
        let (g, w) = (contiguous(g), contiguous(w));
        let s = conv_shape(input, dims::<4>(&w)[0]);
        let mut gx = fresh(input.iter().product());
        match stride.pad() {
            None => {
                let kept = kept.and_then(|kept| kept.of(&w, (s.c_in, s.c_out)));
                let kept = kept.as_deref();
                kernels::conv3x3::input_grad_keeping(values(&g), values(&w), kept, s, &mut gx);
            }
            Some(pad) => {
                kernels::conv3x3_stride2::input_grad(values(&g), values(&w), s, pad, &mut gx);
            }
        }
        recycle([g]);
        tensor(gx, &input)
    }

    fn conv3x3_weight_grad(g: FlexTensor, x: FlexTensor, stride: Stride) -> FlexTensor {
        let (g, x) = (contiguous(g), contiguous(x));
        let s = conv_shape(dims::<4>(&x), dims::<4>(&g)[1]);
        let mut gw = vec![0.0; s.c_out * s.c_in * 9];
        match stride.pad() {
            None => kernels::conv3x3::weight_grad(values(&x), values(&g), s, &mut gw),
            Some(pad) => {
                kernels::conv3x3_stride2::weight_grad(values(&x), values(&g), s, pad, &mut gw);
            }
        }
        recycle([g, x]);
        tensor(gw, &[s.c_out, s.c_in, 3, 3])
    }

    fn conv1x1_input_grad(g: FlexTensor, w: FlexTensor) -> FlexTensor {
        let (g, w) = (contiguous(g), contiguous(w));
        let [batch, c_out, h, width] = dims::<4>(&g);
        let input = [batch, dims::<4>(&w)[1], h, width];
        let mut gx = fresh(input.iter().product());
        kernels::conv1x1::input_grad(values(&g), values(&w), conv_shape(input, c_out), &mut gx);
        recycle([g]);
        tensor(gx, &input)
    }

    fn conv1x1_weight_grad(g: FlexTensor, x: FlexTensor) -> FlexTensor {
        let (g, x) = (contiguous(g), contiguous(x));
        let shape = conv_shape(dims::<4>(&x), dims::<4>(&g)[1]);
        let mut gw = vec![0.0; shape.c_out * shape.c_in];
        kernels::conv1x1::weight_grad(values(&x), values(&g), shape, &mut gw);
        recycle([g, x]);
        tensor(gw, &[shape.c_out, shape.c_in, 1, 1])
    }

    fn bias_grad(g: FlexTensor, bias: BiasShape) -> FlexTensor {
        let g = contiguous(g);
        let [batch, channels, h, w] = dims::<4>(&g);
        let (images, shape) = match bias {
            BiasShape::Channels => (batch, vec![channels]),
            BiasShape::Row => (batch, vec![1, channels]),
            BiasShape::Images => (1, vec![batch, channels]),
        };
        let sums = shape.iter().product();
        let mut gb = vec![0.0; sums];
        kernels::bias_grad(values(&g), images, sums, h * w, &mut gb);
        tensor(gb, &shape)
    }

    fn linear_input_grad(g: FlexTensor, w: FlexTensor) -> FlexTensor {
        let (g, w) = (contiguous(g), contiguous(w));
        let shape = linear_shape(&g, &w);
        let mut gx = fresh(shape.rows * shape.wide_in);
        linear::input_grad(values(&g), values(&w), shape, &mut gx);
        tensor(gx, &[shape.rows, shape.wide_in])
    }

    fn linear_weight_grad(g: FlexTensor, x: FlexTensor) -> FlexTensor {
        let (g, x) = (contiguous(g), contiguous(x));
        let ([rows, wide_out], [_, wide_in]) = (dims::<2>(&g), dims::<2>(&x));
        let shape = linear::Shape {
            rows,
            wide_in,
            wide_out,
        };
        let mut gw = vec![0.0; wide_out * wide_in];
        linear::weight_grad(values(&x), values(&g), shape, &mut gw);
        tensor(gw, &[wide_out, wide_in])
    }

    fn linear_bias_grad(g: FlexTensor) -> FlexTensor {
        let g = contiguous(g);
        let [rows, wide_out] = dims::<2>(&g);
        let mut gb = vec![0.0; wide_out];
        kernels::bias_grad(values(&g), rows, wide_out, 1, &mut gb);
        tensor(gb, &[wide_out])
    }

    fn bias_shape(b: &FlexTensor) -> BiasShape {
        match *b.layout().shape().as_slice() {
            [1, _] => BiasShape::Row,
            [_, _] => BiasShape::Images,
            _ => BiasShape::Channels,
        }
    }

    fn sizes(x: &FlexTensor) -> [usize; 4] {
        dims::<4>(x)
    }
}
