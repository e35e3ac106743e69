//! Diffusion models opened up: noise schedules, parameterisations, samplers and networks with
//! taps and gradients, read from diffusers checkpoints.
//!
//! This crate is the only home of model code and, with `depurate-defense` and `depurate-attack`,
//! the only place where the tensor framework is named.
//!
//! Conventions everywhere: images are `[B, C, H, W]` in the model's range (usually `[-1, 1]`);
//! the training timestep `t` counts from 0 (almost clean) to `T - 1` (almost pure noise).
#![forbid(unsafe_code)]

pub mod autoencoder_kl;
mod blocks;
pub mod channel_graph;
pub mod clip_pair;
pub mod clip_text;
pub mod clip_tokenizer;
pub mod closed_form_edit;
mod config_options;
pub mod denoiser;
pub mod differentiable;
pub mod error;
pub mod firing;
pub mod image_tower;
mod layers;
pub mod module_weights;
pub mod noise;
pub mod ops;
pub mod parallel;
pub mod parameterisation;
pub mod pipeline;
pub mod sampler;
pub mod schedule;
pub mod tap;
pub mod text_to_image;
mod time_embedding;
pub mod trigger;
pub mod unet2d;
pub mod unet2d_condition;

pub use denoiser::{Denoiser, Parameterisation, Prediction, SampleShape};
pub use error::DiffusionError;
pub use pipeline::Pipeline;
pub use tap::{AttentionKind, AttentionSite, NoTap, Site, Stage, Tap};
pub use text_to_image::TextToImage;

/// The framework's device, chosen at run time.
pub use burn::tensor::Device;
/// The framework's tensor. Shapes are checked at this crate's boundaries; see each function.
pub use burn::tensor::Tensor;
