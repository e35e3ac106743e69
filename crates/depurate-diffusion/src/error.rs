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
    /// A text-to-image pipeline, where a model without a prompt is wanted.
    #[error("{} is a text-to-image pipeline: this needs an unconditional UNet2DModel pipeline", path.display())]
    TextConditional {
        /// The pipeline's directory.
        path: PathBuf,
    },
    /// A model that takes no prompt, where a text-to-image pipeline is wanted.
    #[error("{} is no text-to-image pipeline: it has no text encoder", path.display())]
    Unconditional {
        /// The model's directory.
        path: PathBuf,
    },
    /// Parts of a text-to-image pipeline that do not fit each other.
    #[error(
        "the parts of the pipeline do not fit together: {left} is {got}, {right} is {expected}; take both from one model"
    )]
    Parts {
        /// A property of one part.
        left: &'static str,
        /// Its value.
        got: usize,
        /// The property of another part that it must agree with.
        right: &'static str,
        /// Its value.
        expected: usize,
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
    /// Units of channels cannot be taken out of a network.
    #[error("cannot remove `{unit}`: {reason}")]
    Removal {
        /// The unit, its group, or the layer that is in the way.
        unit: String,
        /// Why, and how to mend it.
        reason: String,
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
