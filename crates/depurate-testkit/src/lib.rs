//! Development only: golden numbers, tolerances, checks of gradients, a miniature of Stable Diffusion, and the closed-form oracle
//! denoiser.
//!
//! Functions of this crate panic with a message instead of returning errors: they run in tests.
#![forbid(unsafe_code)]

pub mod close;
pub mod golden;
pub mod gradients;
pub mod miniature;
pub mod oracle;
pub mod zoo;

pub use close::{assert_close, assert_close_slices, largest_difference};
pub use golden::Case;
pub use oracle::Oracle;
