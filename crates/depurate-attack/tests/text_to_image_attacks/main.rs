//! Attacks on text-to-image models, on the golden miniature of Stable Diffusion 1.
#![allow(clippy::unwrap_used, missing_docs)]

mod bad_t2i;
mod delta;
mod evil_edit;

mod rickrolling;
