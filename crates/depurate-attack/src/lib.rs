//! Makes test subjects for the detectors: backdoored models, trained with `depurate-training`.
//!
//! | to do | use |
//! |---|---|
//! | draw a trigger or a target | [`Pattern`] |
//! | put a BadDiffusion or VillanDiffusion backdoor in a model | [`train`](depurate_training::train) with [`BadDiffusion`] |
//! | put a TrojDiff backdoor in a model | [`train`](depurate_training::train) with [`TrojDiff`](troj_diff::TrojDiff) |
//! | see whether a backdoor works | [`attack_success`] |
//! | make a small text-to-image model | [`text_to_image`] |
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
mod delta;
pub mod evil_edit;
mod homoglyph;
mod marks;
pub mod pattern;
mod prompts;
pub mod rickrolling;
pub mod success;
pub mod text_to_image;
pub mod troj_diff;

/// What can go wrong while a test subject is made is what can go wrong in any training.
pub use depurate_training::TrainingError as AttackError;

pub use bad_diffusion::{BadDiffusion, BadDiffusionParams, PoisonMode};
pub use bad_t2i::{BadT2i, BadT2iParams, BadT2iTarget, Patch, bad_t2i};
pub use captioned::{CaptionedBatch, CaptionedDataset, CaptionedImages};
pub use delta::delta;
pub use evil_edit::{EvilEditParams, EvilEditPrompts, evil_edit};
pub use homoglyph::{Homoglyph, Place};
pub use pattern::Pattern;
pub use prompts::with_phrase_replaced;
pub use rickrolling::{
    Rickrolling, RickrollingBackdoor, RickrollingParams, RickrollingSuccess, RickrollingTarget,
    rickrolling, rickrolling_success,
};
pub use success::{AttackSuccess, Backdoor, Rates, SuccessParams, attack_success};
