//! What can go wrong while images are read or a module is trained.

use std::path::PathBuf;

use depurate_checkpoint::CheckpointError;
use depurate_diffusion::DiffusionError;

/// Failure to read data, to understand a text that names something, or to train.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainingError {
    /// A model could not be built, run or saved.
    #[error(transparent)]
    Diffusion(#[from] DiffusionError),
    /// A file of a checkpoint could not be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The operating system refused.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's own error.
        source: std::io::Error,
    },
    /// A file is larger than this crate reads.
    #[error("{} has {got} bytes, at most {limit} are read: use a smaller file", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size, in bytes.
        got: u64,
        /// The largest size, in bytes.
        limit: u64,
    },
    /// A safetensors file is malformed.
    #[error("{} is not a usable safetensors file: make it again", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// Which rule of the format is broken.
        source: safetensors::SafeTensorError,
    },
    /// A PNG is malformed or too large.
    #[error("{} is not a usable PNG image: convert it again, at most 4096 x 4096", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// The decoder's error.
        source: image::ImageError,
    },
    /// A file or folder does not hold what is needed.
    #[error("{}: {reason}", path.display())]
    Data {
        /// The file or folder.
        path: PathBuf,
        /// What is missing or wrong, and what is expected.
        reason: String,
    },
    /// A text that names something cannot be understood, or what it names does not fit.
    #[error("{what} `{text}`: {reason}")]
    Text {
        /// What it names.
        what: &'static str,
        /// The text as given.
        text: String,
        /// What is wrong, and what is accepted.
        reason: String,
    },
    /// A parameter is out of its range.
    #[error("{what} is {got}, allowed: {allowed}")]
    Params {
        /// Which parameter.
        what: &'static str,
        /// The value, as text.
        got: String,
        /// The allowed range.
        allowed: &'static str,
    },
    /// The loss became NaN or infinite.
    #[error(
        "the loss is {loss} at step {step}: lower the learning rate or the gradient norm's bound"
    )]
    Diverged {
        /// Training step, counted from 0.
        step: usize,
        /// The loss.
        loss: f32,
    },
    /// The state in a training checkpoint belongs to a run with other parameters.
    #[error("{} belongs to another run ({reason}): remove it, or resume with the parameters it was written with", path.display())]
    OtherRun {
        /// The state file.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// The caller asked to stop. A resumable state was written if there is a place for it.
    #[error("interrupted after {step} steps")]
    Cancelled {
        /// Steps done.
        step: usize,
    },
}
