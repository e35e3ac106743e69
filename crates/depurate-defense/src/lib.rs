//! Inverts triggers and detects backdoors. One module an algorithm; each returns data and a score,
//! never a verdict: a verdict needs a calibrated threshold ([`calibration`]).
//!
//! Nothing here is told an attack's name, trigger or target.
#![forbid(unsafe_code)]

pub mod calibration;
pub mod cx;
pub mod detect;
pub mod error;
pub mod invert;
mod probe;
pub mod repair;

pub use cx::{Budget, CancelToken, Cx, Journal, NoJournal, Progress, Silent};
pub use error::DefenseError;
