//! What can go wrong in this crate.

use std::path::PathBuf;

use depurate_diffusion::DiffusionError;

/// Failure of an inversion, a detection or a calibration. Not being able to decide is none of
/// these: it is a verdict.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DefenseError {
    /// The model could not be run.
    #[error(transparent)]
    Diffusion(#[from] DiffusionError),
    /// A parameter of an algorithm is out of its range.
    #[error("parameter `{field}` is {value}, allowed: {allowed}")]
    Params {
        /// The parameter.
        field: &'static str,
        /// Its value, as text.
        value: String,
        /// The allowed range.
        allowed: &'static str,
    },
    /// A calibration file does not fit this version or this use.
    #[error("calibration {}: {reason}", path.display())]
    Calibration {
        /// The file.
        path: PathBuf,
        /// What is wrong and how to mend it.
        reason: String,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Cancelled,
    /// The time given is spent.
    #[error("the time budget is spent; give more with --budget")]
    BudgetSpent,
}
