//! CPU kernels for diffusion networks, forward and backward.
//!
//! All tensors are contiguous f32 slices in planar layout `[batch][channel][row][column]` (tokens are pixels of one row);
//! weights are `[c_out][c_in][3][3]` or `[c_out][c_in]`. Every function is written once over a small vector abstraction
//! and compiled for AVX-512, AVX2 with FMA, NEON and plain Rust; the best one that the processor has is chosen at run
//! time, so a plain build is a fast build. Work is spread over rayon's threads; for a given number of threads results are
//! the same to the last bit, run after run. Programs should call kernels from a thread of rayon's pool
//! (`use_current_thread`): from another one, every call wakes one thread more, which costs as much as a small kernel.
//! Working memory is kept per thread and used again: in steady state nothing is allocated.
//!
//! # How convolutions are done
//!
//! | case | method | module |
//! | --- | --- | --- |
//! | 3x3, stride 1 | Winograd F(4x4, 3x3): 4 times fewer products | `winograd*` |
//! | 3x3, stride 1, few channels on one side; forward also many channels and few pixels | matrix product over padded planes | `direct*`, `padded` |
//! | 3x3, stride 2 | the same, over planes of even and odd rows and columns | `direct*`, `padded` |
//! | 1x1 | matrix product | [`conv1x1`] |
//!
//! Weights of small layers that do not change are transformed once ([`conv3x3::Transformed`]).
//!
//! # The others
//!
//! | work | method | module |
//! | --- | --- | --- |
//! | attention without its map | keys in blocks with a running maximum, the map computed again backward | [`attention`] |
//! | attention with its map | map, then mix, each with a gradient of its own | [`attention::map()`], [`attention::mix`] |
//! | group norm + SiLU | two passes a group; backward in place, with the output again if it is wanted | [`group_norm`] |
//! | layer norm over channels | blocks of tokens, vectors along tokens | [`layer_norm`] |
//! | linear layers on rows | matrix product, weights turned a panel at a time | [`linear`] |
//! | SiLU, GELU, GEGLU, sums, Adam | one pass | [`activation`], [`vectors`], [`adam`] |
//! | joining channels, upsampling | copies | [`planes`], [`upsample2x`] |
//!
//! Inside, activations are planar where vectors run along pixels (direct, 1x1) and channels-last, padded to whole vectors,
//! where they run along channels (Winograd, weight gradients). Notation: `ci`, `co` channels in and out; `ky`, `kx`, tap
//! the place in a 3x3 weight; x input, y output, gx, gy, gw gradients with respect to them.
//!
//! Numerics, against an f64 reference on unit-variance data: relative RMS error below 5e-6 forward and 1e-5 in gradients.
//! A non-finite input gives a non-finite output wherever the plain sum does; Winograd may spread it over its 4x4 tile.
//!
//! Speed is measured by `cargo bench -p depurate-kernels`.
//!
//! # Panics
//!
//! Every function panics if a slice has not the length that the shape says: that is a bug in the caller, never data.

#![allow(clippy::needless_range_loop)] // loops over register arrays are written by index, as the formulas are
#![allow(clippy::missing_safety_doc)] // `unsafe` items are crate-private; the vector trait states the conditions for all

mod direct;
mod direct_input_grad;
mod direct_weight_grad;
mod gemm;
mod isa;
mod lanewise;
mod padded;
mod parallel;
mod scratch;
mod simd;
mod transpose;
mod winograd;
mod winograd_conv;
mod winograd_tiles;
mod winograd_weight_grad;
mod winograd_weights;

pub mod activation;
pub mod adam;
pub mod attention;
mod bias;
pub mod conv1x1;
pub mod conv3x3;
pub mod conv3x3_stride2;
pub mod group_norm;
pub mod layer_norm;
pub mod linear;
#[doc(hidden)]
pub mod peak;
pub mod planes;
pub mod softmax;
pub mod upsample2x;
pub mod vectors;

mod shape;

pub use bias::bias_grad;
#[doc(hidden)]
pub use isa::{Isa, with_isa};
pub use scratch::release as release_scratch;
pub use shape::{ConvShape, Stride2Pad};
