//! Operations that treat pixels for themselves: activations, sums, and planes put together.

use burn::{
    backend::{
        Backend, Dispatch, Flex, TensorMetadata,
        autodiff::{Autodiff, checkpoint::strategy::CheckpointStrategy},
        backend_extension,
        tensor::FloatTensor,
    },
    tensor::Tensor,
};
use burn_flex::FlexTensor;
pub use depurate_kernels::activation::Activation;
use depurate_kernels::{self as kernels, planes, vectors};

use super::{
    back::{WayBack, tracked},
    buffers::{fresh, recycle},
    flex::{contiguous, dims, own_values, tensor, values},
    framework::{self, has_kernels},
};

/// An activation, element by element.
pub fn activation<const D: usize>(x: Tensor<D>, f: Activation) -> Tensor<D> {
    if !has_kernels(&x.device()) {
        return framework::activation(x, f);
    }
    Tensor::from_dispatch(Dispatch::activation_op(x.into_dispatch(), f))
}

/// GEGLU of `x [B, 2 C, T]`: the first half of the channels, each times the GELU of its partner in the second.
pub fn geglu(x: Tensor<3>) -> Tensor<3> {
    if !has_kernels(&x.device()) {
        return framework::geglu(x);
    }
    Tensor::from_dispatch(Dispatch::geglu_op(x.into_dispatch()))
}

/// The sum of two tensors of one shape.
pub fn add<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    if !has_kernels(&a.device()) {
        return a + b;
    }
    Tensor::from_dispatch(Dispatch::sum_op(a.into_dispatch(), b.into_dispatch()))
}

/// The channels of `a [B, C, H, W]` and then those of `b [B, D, H, W]`.
pub fn join_channels(a: Tensor<4>, b: Tensor<4>) -> Tensor<4> {
    if !has_kernels(&a.device()) {
        return Tensor::cat(vec![a, b], 1);
    }
    Tensor::from_dispatch(Dispatch::join_channels_op(
        a.into_dispatch(),
        b.into_dispatch(),
    ))
}

/// Nearest-neighbour upsampling of `x [B, C, H, W]` to `[B, C, 2H, 2W]`.
pub fn upsample2x(x: Tensor<4>) -> Tensor<4> {
    if !has_kernels(&x.device()) {
        return framework::upsample2x(x);
    }
    Tensor::from_dispatch(Dispatch::upsample2x_op(x.into_dispatch()))
}

/// The forward operations.
#[backend_extension(Flex, Autodiff)]
pub trait PointwiseOps: Backend {
    /// See [`activation`].
    fn activation_op(x: FloatTensor<Self>, f: Activation) -> FloatTensor<Self>;
    /// See [`geglu`].
    fn geglu_op(x: FloatTensor<Self>) -> FloatTensor<Self>;
    /// See [`add`].
    fn sum_op(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self>;
    /// See [`join_channels`].
    fn join_channels_op(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self>;
    /// See [`upsample2x`].
    fn upsample2x_op(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// The backward halves.
pub(crate) trait PointwiseGrads: PointwiseOps {
    fn activation_grad(
        x: FloatTensor<Self>,
        g: FloatTensor<Self>,
        f: Activation,
    ) -> FloatTensor<Self>;
    fn geglu_grad(x: FloatTensor<Self>, g: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Gradients w.r.t. both parts; the first has `channels`.
    fn join_channels_grad(g: FloatTensor<Self>, channels: usize) -> [FloatTensor<Self>; 2];
    fn upsample2x_grad(g: FloatTensor<Self>) -> FloatTensor<Self>;
    fn channels(x: &FloatTensor<Self>) -> usize;
}

impl PointwiseOps for Flex {
    fn activation_op(x: FlexTensor, f: Activation) -> FlexTensor {
        let x = contiguous(x);
        let mut y = fresh(values(&x).len());
        kernels::activation::forward(values(&x), f, &mut y);
        tensor(y, x.shape().as_slice())
    }

    fn geglu_op(x: FlexTensor) -> FlexTensor {
        let x = contiguous(x);
        let [batch, channels, tokens] = dims::<3>(&x);
        let mut y = fresh(values(&x).len() / 2);
        kernels::activation::geglu(values(&x), batch, &mut y);
        recycle([x]);
        tensor(y, &[batch, channels / 2, tokens])
    }

    fn sum_op(a: FlexTensor, mut b: FlexTensor) -> FlexTensor {
        let mut a = contiguous(a);
        if let Some(own) = own_values(&mut b) {
            vectors::blend(1.0, values(&a), 1.0, own);
            recycle([a]);
            return b;
        }
        let b = contiguous(b);
        if let Some(own) = own_values(&mut a) {
            vectors::blend(1.0, values(&b), 1.0, own);
            return a;
        }
        let mut y = fresh(values(&a).len());
        vectors::add(values(&a), values(&b), &mut y);
        tensor(y, a.shape().as_slice())
    }

    fn join_channels_op(a: FlexTensor, b: FlexTensor) -> FlexTensor {
        let (a, b) = (contiguous(a), contiguous(b));
        let ([batch, first, height, width], [_, second, ..]) = (dims::<4>(&a), dims::<4>(&b));
        let mut y = fresh(values(&a).len() + values(&b).len());
        planes::join(values(&a), values(&b), batch, &mut y);
        recycle([a, b]);
        tensor(y, &[batch, first + second, height, width])
    }

    fn upsample2x_op(x: FlexTensor) -> FlexTensor {
        let x = contiguous(x);
        let [b, c, h, w] = dims::<4>(&x);
        let mut y = fresh(b * c * h * w * 4);
        kernels::upsample2x::forward(values(&x), b * c, h, w, &mut y);
        recycle([x]);
        tensor(y, &[b, c, 2 * h, 2 * w])
    }
}

impl PointwiseGrads for Flex {
    fn activation_grad(x: FlexTensor, g: FlexTensor, f: Activation) -> FlexTensor {
        let (x, g) = (contiguous(x), contiguous(g));
        let mut gx = fresh(values(&x).len());
        kernels::activation::backward(values(&x), values(&g), f, &mut gx);
        tensor(gx, x.shape().as_slice())
    }

    fn geglu_grad(x: FlexTensor, g: FlexTensor) -> FlexTensor {
        let (x, g) = (contiguous(x), contiguous(g));
        let input = dims::<3>(&x);
        let mut gx = fresh(values(&x).len());
        kernels::activation::geglu_backward(values(&x), values(&g), input[0], &mut gx);
        recycle([x, g]);
        tensor(gx, &input)
    }

    fn join_channels_grad(g: FlexTensor, channels: usize) -> [FlexTensor; 2] {
        let g = contiguous(g);
        let [batch, all, height, width] = dims::<4>(&g);
        let of = |channels| [batch, channels, height, width];
        let (first, second) = (of(channels), of(all - channels));
        let mut ga = fresh(first.iter().product());
        let mut gb = fresh(second.iter().product());
        planes::split(values(&g), batch, &mut ga, &mut gb);
        recycle([g]);
        [tensor(ga, &first), tensor(gb, &second)]
    }

    fn upsample2x_grad(g: FlexTensor) -> FlexTensor {
        let g = contiguous(g);
        let [b, c, h, w] = dims::<4>(&g);
        let mut gx = fresh(b * c * h * w / 4);
        kernels::upsample2x::backward(values(&g), b * c, h / 2, w / 2, &mut gx);
        recycle([g]);
        tensor(gx, &[b, c, h / 2, w / 2])
    }

    fn channels(x: &FlexTensor) -> usize {
        dims::<4>(x)[1]
    }
}

#[derive(Clone, Debug)]
struct Activated<B: Backend>(FloatTensor<B>, Activation);

impl<B: PointwiseGrads> WayBack<B, 1> for Activated<B> {
    fn gradients(self, g: FloatTensor<B>, _wanted: [bool; 1]) -> [Option<FloatTensor<B>>; 1] {
        [Some(B::activation_grad(self.0, g, self.1))]
    }
}

#[derive(Clone, Debug)]
struct Geglu<B: Backend>(FloatTensor<B>);

impl<B: PointwiseGrads> WayBack<B, 1> for Geglu<B> {
    fn gradients(self, g: FloatTensor<B>, _wanted: [bool; 1]) -> [Option<FloatTensor<B>>; 1] {
        [Some(B::geglu_grad(self.0, g))]
    }
}

#[derive(Clone, Debug)]
struct Sum;

impl<B: PointwiseGrads> WayBack<B, 2> for Sum {
    fn gradients(self, g: FloatTensor<B>, _wanted: [bool; 2]) -> [Option<FloatTensor<B>>; 2] {
        [Some(g.clone()), Some(g)]
    }
}

/// Channels of the first part.
#[derive(Clone, Debug)]
struct Joined(usize);

impl<B: PointwiseGrads> WayBack<B, 2> for Joined {
    fn gradients(self, g: FloatTensor<B>, _wanted: [bool; 2]) -> [Option<FloatTensor<B>>; 2] {
        B::join_channels_grad(g, self.0).map(Some)
    }
}

#[derive(Clone, Debug)]
struct Upsampled;

impl<B: PointwiseGrads> WayBack<B, 1> for Upsampled {
    fn gradients(self, g: FloatTensor<B>, _wanted: [bool; 1]) -> [Option<FloatTensor<B>>; 1] {
        [Some(B::upsample2x_grad(g))]
    }
}

impl<B: PointwiseGrads, C: CheckpointStrategy> PointwiseOps for Autodiff<B, C> {
    fn activation_op(x: FloatTensor<Self>, f: Activation) -> FloatTensor<Self> {
        tracked::<B, C, _, 1>([x], |[x], _| {
            (B::activation_op(x.clone(), f), Activated(x, f))
        })
    }

    fn geglu_op(x: FloatTensor<Self>) -> FloatTensor<Self> {
        tracked::<B, C, _, 1>([x], |[x], _| (B::geglu_op(x.clone()), Geglu(x)))
    }

    fn sum_op(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        tracked::<B, C, _, 2>([a, b], |[a, b], _| (B::sum_op(a, b), Sum))
    }

    fn join_channels_op(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        tracked::<B, C, _, 2>([a, b], |[a, b], _| {
            let way_back = Joined(B::channels(&a));
            (B::join_channels_op(a, b), way_back)
        })
    }

    fn upsample2x_op(x: FloatTensor<Self>) -> FloatTensor<Self> {
        tracked::<B, C, _, 1>([x], |[x], _| (B::upsample2x_op(x), Upsampled))
    }
}
