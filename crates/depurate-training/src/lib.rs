//! Trains modules, resumable: what benign subjects, attacks and repairs share.
//!
//! | to do | use |
//! |---|---|
//! | read training images | [`Dataset`] |
//! | train or fine-tune a denoiser | [`train`] with [`Denoising`] or another [`Objective`] |
//! | train a classifier, for its features | [`classifier`](classifier::classifier) |
//! | train anything else | [`optimise`] |
//!
//! Images are `[B, C, H, W]` in `[-1, 1]`; `t = T - 1` is almost pure noise.
#![forbid(unsafe_code)]

mod checkpointing;
pub mod classifier;
pub mod dataset;
mod ema;
mod error;
mod optimizer;
mod parameters;
pub mod tensor_file;
pub mod training;

pub use checkpointing::StateFile;
pub use dataset::{Dataset, DatasetParams, Split};
pub use error::TrainingError;
pub use training::{
    AdamParams, Denoising, Draw, Enough, Loss, Monitor, Objective, Optimisation, Optimised, Order,
    StepReport, Trained, TrainingPair, TrainingParams, optimise, optimise_until, train,
    train_until,
};
