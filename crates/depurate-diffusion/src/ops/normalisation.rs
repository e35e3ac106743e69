//! Group and layer normalisation.

use burn::{
    backend::{
        Backend, Dispatch, Flex,
        autodiff::{Autodiff, checkpoint::strategy::CheckpointStrategy},
        backend_extension,
        tensor::FloatTensor,
    },
    tensor::Tensor,
};
use burn_flex::FlexTensor;
use depurate_kernels as kernels;

use super::{
    back::{WayBack, tracked},
    buffers::{fresh, recycle},
    flex::{contiguous, dims, own_values, owned, tensor, values},
    framework::{self, has_kernels},
};

/// Statistics and activation of a group normalisation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// Number of groups.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Whether SiLU follows.
    pub silu: bool,
}

/// Group normalisation of `x [B, C, H, W]`, optionally followed by SiLU.
pub fn group_norm(x: Tensor<4>, scale: Tensor<1>, shift: Tensor<1>, norm: Norm) -> Tensor<4> {
    if !has_kernels(&x.device()) {
        return framework::group_norm(x, scale, shift, norm);
    }
    Tensor::from_dispatch(Dispatch::group_norm_op(
        x.into_dispatch(),
        scale.into_dispatch(),
        shift.into_dispatch(),
        norm,
    ))
}

/// Layer normalisation over the channels of every token of `x [B, C, T]`.
pub fn layer_norm(x: Tensor<3>, scale: Tensor<1>, shift: Tensor<1>, eps: f32) -> Tensor<3> {
    if !has_kernels(&x.device()) {
        return framework::layer_norm(x, scale, shift, eps);
    }
    Tensor::from_dispatch(Dispatch::layer_norm_op(
        x.into_dispatch(),
        scale.into_dispatch(),
        shift.into_dispatch(),
        eps,
    ))
}

/// The forward operations.
#[backend_extension(Flex, Autodiff)]
pub trait NormalisationOps: Backend {
    /// See [`group_norm`].
    fn group_norm_op(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self>;
    /// See [`layer_norm`].
    fn layer_norm_op(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self>;
}

/// The backward halves: gradients w.r.t. input, scale and shift.
pub(crate) trait NormalisationGrads: NormalisationOps {
    fn group_norm_grad(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        g: FloatTensor<Self>,
        norm: Norm,
    ) -> [FloatTensor<Self>; 3];
    /// The same, and the forward pass's output again.
    fn group_norm_grad_and_output(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        g: FloatTensor<Self>,
        norm: Norm,
    ) -> ([FloatTensor<Self>; 3], FloatTensor<Self>);
    fn layer_norm_grad(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        g: FloatTensor<Self>,
        eps: f32,
    ) -> [FloatTensor<Self>; 3];
}

fn group_shape(input: [usize; 4], norm: Norm) -> kernels::group_norm::Shape {
    kernels::group_norm::Shape {
        batch: input[0],
        channels: input[1],
        hw: input[2] * input[3],
        groups: norm.groups,
        eps: norm.eps,
        silu: norm.silu,
    }
}

fn layer_shape([batch, channels, tokens]: [usize; 3], eps: f32) -> kernels::layer_norm::Shape {
    kernels::layer_norm::Shape {
        batch,
        channels,
        tokens,
        eps,
    }
}

impl NormalisationOps for Flex {
    fn group_norm_op(
        x: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        norm: Norm,
    ) -> FlexTensor {
        let (x, scale, shift) = (contiguous(x), contiguous(scale), contiguous(shift));
        let input = dims::<4>(&x);
        let mut y = fresh(input.iter().product());
        let (scale, shift) = (values(&scale), values(&shift));
        kernels::group_norm::forward(values(&x), scale, shift, group_shape(input, norm), &mut y);
        recycle([x]);
        tensor(y, &input)
    }

    fn layer_norm_op(x: FlexTensor, scale: FlexTensor, shift: FlexTensor, eps: f32) -> FlexTensor {
        let (x, scale, shift) = (contiguous(x), contiguous(scale), contiguous(shift));
        let input = dims::<3>(&x);
        let mut y = fresh(input.iter().product());
        let (scale, shift) = (values(&scale), values(&shift));
        kernels::layer_norm::forward(values(&x), scale, shift, layer_shape(input, eps), &mut y);
        recycle([x]);
        tensor(y, &input)
    }
}

/// The gradients, and the forward pass's output into `y` if it is wanted.
fn group_norm_back(
    [x, scale, shift, g]: [FlexTensor; 4],
    norm: Norm,
    y: Option<&mut [f32]>,
) -> [FlexTensor; 3] {
    let [x, scale, shift] = [x, scale, shift].map(contiguous);
    let (input, mut g) = (dims::<4>(&x), owned(g));
    let (mut gscale, mut gshift) = (vec![0.0; input[1]], vec![0.0; input[1]]);
    if let Some(g) = own_values(&mut g) {
        let shape = group_shape(input, norm);
        let (x, scale, shift) = (values(&x), values(&scale), values(&shift));
        kernels::group_norm::backward(x, g, scale, shift, shape, &mut gscale, &mut gshift, y);
    }
    recycle([x]);
    [g, tensor(gscale, &[input[1]]), tensor(gshift, &[input[1]])]
}

impl NormalisationGrads for Flex {
    fn group_norm_grad(
        x: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        g: FlexTensor,
        norm: Norm,
    ) -> [FlexTensor; 3] {
        group_norm_back([x, scale, shift, g], norm, None)
    }

    fn group_norm_grad_and_output(
        x: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        g: FlexTensor,
        norm: Norm,
    ) -> ([FlexTensor; 3], FlexTensor) {
        let input = dims::<4>(&x);
        let mut y = fresh(input.iter().product());
        let gradients = group_norm_back([x, scale, shift, g], norm, Some(&mut y));
        (gradients, tensor(y, &input))
    }

    fn layer_norm_grad(
        x: FlexTensor,
        scale: FlexTensor,
        g: FlexTensor,
        eps: f32,
    ) -> [FlexTensor; 3] {
        let [x, scale, g] = [x, scale, g].map(contiguous);
        let input = dims::<3>(&x);
        let mut gx = fresh(input.iter().product());
        let (mut gscale, mut gshift) = (vec![0.0; input[1]], vec![0.0; input[1]]);
        kernels::layer_norm::backward(
            values(&x),
            values(&g),
            values(&scale),
            layer_shape(input, eps),
            &mut gx,
            &mut gscale,
            &mut gshift,
        );
        recycle([x, g]);
        [
            tensor(gx, &input),
            tensor(gscale, &[input[1]]),
            tensor(gshift, &[input[1]]),
        ]
    }
}

#[derive(Clone, Debug)]
struct GroupNorm<B: Backend>([FloatTensor<B>; 3], Norm);

impl<B: NormalisationGrads> WayBack<B, 3> for GroupNorm<B> {
    fn gradients(self, g: FloatTensor<B>, _wanted: [bool; 3]) -> [Option<FloatTensor<B>>; 3] {
        let Self([x, scale, shift], norm) = self;
        B::group_norm_grad(x, scale, shift, g, norm).map(Some)
    }
}

#[derive(Clone, Debug)]
struct LayerNorm<B: Backend>([FloatTensor<B>; 2], f32);

impl<B: NormalisationGrads> WayBack<B, 3> for LayerNorm<B> {
    fn gradients(self, g: FloatTensor<B>, _wanted: [bool; 3]) -> [Option<FloatTensor<B>>; 3] {
        let Self([x, scale], eps) = self;
        B::layer_norm_grad(x, scale, g, eps).map(Some)
    }
}

impl<B: NormalisationGrads, C: CheckpointStrategy> NormalisationOps for Autodiff<B, C> {
    fn group_norm_op(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self> {
        tracked::<B, C, _, 3>([x, scale, shift], |operands, _| {
            let way_back = GroupNorm(operands.clone(), norm);
            let [x, scale, shift] = operands;
            (B::group_norm_op(x, scale, shift, norm), way_back)
        })
    }

    fn layer_norm_op(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self> {
        tracked::<B, C, _, 3>([x, scale, shift], |[x, scale, shift], _| {
            let way_back = LayerNorm([x.clone(), scale.clone()], eps);
            (B::layer_norm_op(x, scale, shift, eps), way_back)
        })
    }
}
