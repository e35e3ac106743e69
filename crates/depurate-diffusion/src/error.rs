//! What can go wrong in this crate.

use std::path::PathBuf;

use depurate_checkpoint::CheckpointError;

/// Failure to build, load or run a diffusion model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiffusionError {
    /// A checkpoint file could not be read or applied.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// `config.json` or `scheduler_config.json` asks for something that is not supported or is out of range.
    #[error("option `{option}` in {}: {reason}", path.display())]
    Config {
        /// The file that holds the option.
        path: PathBuf,
        /// The option's name.
        option: String,
        /// Why it is refused, and what would be accepted.
        reason: String,
    },
    /// A file of a tokenizer does not hold what it should.
    #[error("{}: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A text-to-image pipeline, which this version cannot run.
    #[error("{} is a text-to-image pipeline, which is not supported yet: only unconditional UNet2DModel pipelines are", path.display())]
    TextConditional {
        /// The pipeline's directory.
        path: PathBuf,
    },
    /// A tensor argument has the wrong shape.
    #[error("{what} has shape {got:?}, expected {expected}")]
    Shape {
        /// Which argument.
        what: &'static str,
        /// The expected shape, in words.
        expected: String,
        /// The shape that was passed.
        got: Vec<usize>,
    },
    /// A scalar argument is out of its range.
    #[error("{what} is {got}, allowed: {allowed}")]
    Argument {
        /// Which argument.
        what: &'static str,
        /// The value, as text.
        got: String,
        /// The allowed range.
        allowed: String,
    },
    /// A network produced NaN or infinity.
    #[error("the network's output is not finite at t = {t}")]
    NotFinite {
        /// Training timestep of the call.
        t: usize,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Cancelled,
}
