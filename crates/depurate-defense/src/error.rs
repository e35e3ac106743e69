//! What can go wrong in this crate.

use std::path::PathBuf;

use depurate_checkpoint::CheckpointError;
use depurate_diffusion::DiffusionError;
use depurate_training::TrainingError;

/// Failure of an inversion, a detection or a calibration. Not being able to decide is none of
/// these: it is a verdict.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DefenseError {
    /// The model could not be run.
    #[error(transparent)]
    Diffusion(#[from] DiffusionError),
    /// The model's weights could not be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A repair's training failed.
    #[error(transparent)]
    Training(#[from] TrainingError),
    /// A statistic cannot be taken.
    #[error(transparent)]
    Stats(#[from] depurate_stats::StatsError),
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
    /// A prompt has too few tokens for a score.
    #[error(
        "the prompt has {tokens} tokens with BOS and EOS, at least 3 are needed: it has no content to compare EOS with"
    )]
    ShortPrompt {
        /// Tokens, BOS and EOS included.
        tokens: usize,
    },
    /// A prompt is longer than the text encoder reads.
    #[error(
        "the prompt has {tokens} tokens with BOS and EOS, the text encoder reads {limit}: what is cut off cannot be screened; shorten it"
    )]
    LongPrompt {
        /// Tokens, BOS and EOS included.
        tokens: usize,
        /// What the text encoder reads.
        limit: usize,
    },
    /// Attention maps have another shape than they should.
    #[error("attention maps are {got}, expected {expected}")]
    MapShape {
        /// What was expected.
        expected: String,
        /// What there is.
        got: String,
    },
    /// An attention map holds NaN or infinity.
    #[error(
        "the attention map of token {token} holds a value that is not finite; check the model's weights"
    )]
    NonFiniteMap {
        /// The token, from 0 (BOS).
        token: usize,
    },
    /// The maps of all tokens are the same, so that they have no similarity.
    #[error("the attention maps of all tokens but BOS are identical: the score is undefined")]
    IdenticalMaps,
    /// The model has no attention layer of the size asked for.
    #[error(
        "the model has no attention to the prompt at 1/{reduction} of its input's side; choose another reduction"
    )]
    NoMaps {
        /// Side of the input over the side of the layer.
        reduction: usize,
    },
    /// The sampler makes fewer calls of the network than a score uses.
    #[error("call {call} of the network is needed, and there are {calls}; sample with more steps")]
    NoSuchCall {
        /// The call, from 0.
        call: usize,
        /// How many there are.
        calls: usize,
    },
    /// An earlier call of the same run failed.
    #[error("an earlier call of the network failed: {reason}")]
    RunFailed {
        /// Why.
        reason: String,
    },
    /// The solver cannot reach its tolerance.
    #[error("the solver's step became too small at t = {t}")]
    StepTooSmall {
        /// Where.
        t: f64,
    },
    /// A calibration was made under other conditions than the score.
    #[error("the calibration does not apply: {}; calibrate again", differences.join("; "))]
    CalibrationMismatch {
        /// Each condition that differs.
        differences: Vec<String>,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Cancelled,
    /// The time given is spent.
    #[error("the time budget is spent; give more with --budget")]
    BudgetSpent,
}
