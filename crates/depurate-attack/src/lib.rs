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
//! | edit a text-to-image model's cross-attention | [`evil_edit()`] |
//! | put a backdoor in a text encoder | [`rickrolling()`] |
//! | put a backdoor in a text-to-image denoiser | [`bad_t2i()`] |
//!
//! Nothing that detects may depend on this crate: what it makes is the secret that a detector has
//! to find. Images are `[B, C, H, W]` in `[-1, 1]`; `t = T - 1` is almost pure noise.
#![forbid(unsafe_code)]

pub mod bad_diffusion;
pub mod bad_t2i;
mod captioned;
mod checkpointing;
pub mod dataset;
mod delta;
mod ema;
mod error;
pub mod evil_edit;
mod homoglyph;
mod optimizer;
mod parameters;
pub mod pattern;
mod prompts;
pub mod rickrolling;
pub mod success;
mod tensor_file;
pub mod text_to_image;
pub mod training;
pub mod troj_diff;

pub use bad_diffusion::{BadDiffusion, BadDiffusionParams, PoisonMode};
pub use bad_t2i::{BadT2i, BadT2iParams, BadT2iTarget, Patch, bad_t2i};
pub use captioned::{CaptionedBatch, CaptionedDataset, CaptionedImages};
pub use checkpointing::StateFile;
pub use dataset::{Dataset, DatasetParams, Split};
pub use delta::delta;
pub use error::AttackError;
pub use evil_edit::{EvilEditParams, EvilEditPrompts, evil_edit};
pub use homoglyph::{Homoglyph, Place};
pub use pattern::Pattern;
pub use prompts::with_phrase_replaced;
pub use rickrolling::{
    Rickrolling, RickrollingBackdoor, RickrollingParams, RickrollingSuccess, RickrollingTarget,
    rickrolling, rickrolling_success,
};
pub use success::{AttackSuccess, Backdoor, Rates, SuccessParams, attack_success};
pub use training::{
    AdamParams, Denoising, Draw, Loss, Monitor, Objective, Optimisation, Optimised, StepReport,
    Trained, TrainingPair, TrainingParams, optimise, train,
};
