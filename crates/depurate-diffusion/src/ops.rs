//! Fast operations of the networks, as custom operations of the tensor framework.
//!
//! On the CPU backend each runs a kernel of `depurate-kernels` with its own backward pass, on other devices what the
//! framework has ([`framework`]); the functions below are what the networks call. Gradients of gradients are not supported.
//!
//! | function | shapes |
//! |---|---|
//! | [`conv3x3`], [`conv3x3_image_bias`] | `x [B, Ci, H, W]`, `w [Co, Ci, 3, 3]`, `b [Co]` or `[B, Co]` → `[B, Co, H', W']` |
//! | [`conv1x1`] | `x [B, Ci, H, W]`, `w [Co, Ci, 1, 1]`, `b [Co]` → `[B, Co, H, W]` |
//! | [`linear()`] | `x [N, in]`, `w [out, in]`, `b [out]` → `[N, out]` |
//! | [`group_norm`] | `x [B, C, H, W]`, scale and shift `[C]` → as `x`; optionally followed by SiLU |
//! | [`norm_conv3x3`] | both in one, with less memory for the backward pass |
//! | [`layer_norm`] | `x [B, C, T]`, scale and shift `[C]` → as `x` |
//! | [`attention`] | `q [N, D, Q]`, `k`, `v [N, D, K]` → `[N, D, Q]` |
//! | [`attention_map`], [`attention_mix`] | the same in two steps, with the map `[N, K, Q]` between them |
//! | [`activation`], [`add`] | any |
//! | [`geglu`] | `[B, 2 C, T]` → `[B, C, T]` |
//! | [`join_channels`] | `[B, C, H, W]`, `[B, D, H, W]` → `[B, C + D, H, W]` |
//! | [`upsample2x`] | `[B, C, H, W]` → `[B, C, 2H, 2W]`, nearest |
//! | [`adam`], [`average`], [`sum_of_squares`] | `[N]`, without autodiff |

mod attention;
mod back;
mod buffers;
mod convolution;
mod flex;
pub mod framework;
mod kept_weights;
mod norm_conv;
mod normalisation;
mod optimiser;
mod pointwise;

pub(crate) use buffers::release as release_buffers;

pub use attention::{AttentionOps, attention, attention_map, attention_mix};
pub use convolution::{ConvolutionOps, Stride, conv1x1, conv3x3, conv3x3_image_bias, linear};
pub use kept_weights::KeptWeights;
pub use norm_conv::{NormConv, NormConvOps, norm_conv3x3};
pub use normalisation::{Norm, NormalisationOps, group_norm, layer_norm};
pub use optimiser::{AdamStep, Moved, MovedTensors, OptimiserOps, adam, average, sum_of_squares};
pub use pointwise::{Activation, PointwiseOps, activation, add, geglu, join_channels, upsample2x};
