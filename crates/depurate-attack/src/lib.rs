//! Makes test subjects for the detectors: benign models trained from images, and backdoored ones.
//!
//! | to do | use |
//! |---|---|
//! | read training images | [`Dataset`] |
//! | draw a trigger or a target | [`Pattern`] |
//! | train or fine-tune a benign model | [`train`] with [`Denoising`] |
//! | put a BadDiffusion backdoor in a model | [`train`] with [`BadDiffusion`] |
//! | see whether a backdoor works | [`attack_success`] |
//! | make a small text-to-image model | [`text_to_image`] |
//! | train anything else, resumable | [`optimise`] |
//!
//! Nothing that detects may depend on this crate: what it makes is the secret that a detector has
//! to find. Images are `[B, C, H, W]` in `[-1, 1]`; `t = T - 1` is almost pure noise.
#![forbid(unsafe_code)]

pub mod bad_diffusion;
mod checkpointing;
pub mod dataset;
mod ema;
mod error;
mod optimizer;
mod parameters;
pub mod pattern;
pub mod success;
mod tensor_file;
pub mod text_to_image;
pub mod training;

pub use bad_diffusion::{BadDiffusion, BadDiffusionParams, PoisonMode};
pub use checkpointing::StateFile;
pub use dataset::{Dataset, DatasetParams, Split};
pub use error::AttackError;
pub use pattern::Pattern;
pub use success::{AttackSuccess, Rates, SuccessParams, attack_success};
pub use training::{
    AdamParams, Denoising, Draw, Loss, Monitor, Objective, Optimisation, Optimised, StepReport,
    Trained, TrainingPair, TrainingParams, optimise, train,
};
