//! Fast operations of the networks, as custom operations of the tensor framework.
//!
//! On the CPU backend each runs a kernel of `depurate-kernels` with its own backward pass; the
//! wrappers below are what the networks call. Gradients of gradients are not supported.
//!
//! | wrapper | shapes |
//! |---|---|
//! | [`conv3x3`] | `x [B, Ci, H, W]`, `w [Co, Ci, 3, 3]`, `b [Co]` → `[B, Co, H', W']` |
//! | [`conv1x1`] | `x [B, Ci, H, W]`, `w [Co, Ci, 1, 1]`, `b [Co]` → `[B, Co, H, W]` |
//! | [`group_norm`] | `x [B, C, H, W]`, scale and shift `[C]` → as `x`; optionally followed by SiLU |
//! | [`attention`] | `q [N, D, Q]`, `k`, `v [N, D, K]` → `[N, D, Q]` |
//! | [`upsample2x`] | `[B, C, H, W]` → `[B, C, 2H, 2W]`, nearest |

mod autodiff;
mod flex;

use burn::{
    backend::{Dispatch, backend_extension, tensor::FloatTensor},
    tensor::Tensor,
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

/// Forward operations, implemented by the CPU backend and, with a backward pass, by its autodiff wrapper.
#[backend_extension(Flex, Autodiff)]
pub trait FastOps: burn::backend::Backend {
    /// See [`conv3x3`].
    fn conv3x3_op(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        b: FloatTensor<Self>,
        stride: Stride,
    ) -> FloatTensor<Self>;
    /// See [`conv1x1`].
    fn conv1x1_op(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        b: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    /// See [`group_norm`].
    fn group_norm_op(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self>;
    /// See [`attention`].
    fn attention_op(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f32,
    ) -> FloatTensor<Self>;
    /// See [`upsample2x`].
    fn upsample2x_op(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// The backward halves, implemented by plain backends only.
pub(crate) trait FastGrads: FastOps {
    fn conv3x3_input_grad(
        g: FloatTensor<Self>,
        w: FloatTensor<Self>,
        input: [usize; 4],
        stride: Stride,
    ) -> FloatTensor<Self>;
    fn conv3x3_weight_grad(
        g: FloatTensor<Self>,
        x: FloatTensor<Self>,
        stride: Stride,
    ) -> FloatTensor<Self>;
    fn conv1x1_input_grad(g: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self>;
    fn conv1x1_weight_grad(g: FloatTensor<Self>, x: FloatTensor<Self>) -> FloatTensor<Self>;
    fn bias_grad(g: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Gradients w.r.t. input, scale and shift.
    fn group_norm_grad(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        g: FloatTensor<Self>,
        norm: Norm,
    ) -> [FloatTensor<Self>; 3];
    /// The output, and the logarithms of sums `[N, Q]` that the backward pass needs.
    fn attention_saving(
        qkv: [FloatTensor<Self>; 3],
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// Gradients w.r.t. queries, keys and values.
    fn attention_grad(
        qkv: [FloatTensor<Self>; 3],
        y: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        g: FloatTensor<Self>,
        scale: f32,
    ) -> [FloatTensor<Self>; 3];
    fn upsample2x_grad(g: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// 3x3 convolution of `x [B, Ci, H, W]` with `w [Co, Ci, 3, 3]` and bias `b [Co]`.
pub fn conv3x3(x: Tensor<4>, w: Tensor<4>, b: Tensor<1>, stride: Stride) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::conv3x3_op(
        x.into_dispatch(),
        w.into_dispatch(),
        b.into_dispatch(),
        stride,
    ))
}

/// 1x1 convolution of `x [B, Ci, H, W]` with `w [Co, Ci, 1, 1]` and bias `b [Co]`.
pub fn conv1x1(x: Tensor<4>, w: Tensor<4>, b: Tensor<1>) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::conv1x1_op(
        x.into_dispatch(),
        w.into_dispatch(),
        b.into_dispatch(),
    ))
}

/// Group normalisation of `x [B, C, H, W]`, optionally followed by SiLU.
pub fn group_norm(x: Tensor<4>, scale: Tensor<1>, shift: Tensor<1>, norm: Norm) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::group_norm_op(
        x.into_dispatch(),
        scale.into_dispatch(),
        shift.into_dispatch(),
        norm,
    ))
}

/// `Σ_k v[., k] softmax_k(scale Σ_c k[c, k] q[c, .])`: attention of `q [N, D, Q]` on `k`, `v [N, D, K]`, `N` heads of all
/// images. The map is never formed.
pub fn attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, scale: f32) -> Tensor<3> {
    Tensor::from_dispatch(Dispatch::attention_op(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
        scale,
    ))
}

/// Nearest-neighbour upsampling of `x [B, C, H, W]` to `[B, C, 2H, 2W]`.
pub fn upsample2x(x: Tensor<4>) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::upsample2x_op(x.into_dispatch()))
}
