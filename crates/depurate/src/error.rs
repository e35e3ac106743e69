//! What can go wrong, and how the program ends because of it.

use std::{io, path::PathBuf};

use depurate_checkpoint::CheckpointError;
use depurate_defense::DefenseError;
use depurate_diffusion::DiffusionError;
use depurate_report::ReportError;
use depurate_stats::StatsError;
use miette::Diagnostic;

/// Finished, and nothing at or above `--fail-on`.
pub const EXIT_OK: u8 = 0;
/// A finding at or above `--fail-on`.
pub const EXIT_FINDING: u8 = 1;
/// Usage, input or internal error.
pub const EXIT_ERROR: u8 = 2;
/// Nothing could be checked.
pub const EXIT_UNCHECKED: u8 = 3;
/// Transient: try again.
pub const EXIT_TRANSIENT: u8 = 75;

/// Failure of a workflow. Not being able to decide is none: it is a verdict.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[non_exhaustive]
pub enum Error {
    /// A checkpoint or another file could not be read or written.
    #[error(transparent)]
    #[diagnostic(code(depurate::checkpoint))]
    Checkpoint(#[from] CheckpointError),
    /// A model could not be built or run.
    #[error(transparent)]
    #[diagnostic(code(depurate::model))]
    Diffusion(#[from] DiffusionError),
    /// A detector or a calibration refused.
    #[error(transparent)]
    #[diagnostic(code(depurate::detector))]
    Defense(#[from] DefenseError),
    /// A report could not be read or rendered.
    #[error(transparent)]
    #[diagnostic(code(depurate::report))]
    Report(#[from] ReportError),
    /// A file that is no report.
    #[error("{} is no report that can be shown", path.display())]
    #[diagnostic(
        code(depurate::report),
        help(
            "give the report.json of --report-dir, or what `depurate scan --format json` printed"
        )
    )]
    NoReport {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ReportError,
    },
    /// A statistic could not be computed.
    #[error(transparent)]
    #[diagnostic(code(depurate::statistics))]
    Stats(#[from] StatsError),
    /// A model of a kind that no detector can check.
    #[error("{} is {what}, which is not supported yet", path.display())]
    #[diagnostic(
        code(depurate::unsupported),
        help(
            "only unconditional pixel models (UNet2DModel) can be calibrated on; `depurate inspect` lists what any diffusers directory holds"
        )
    )]
    Unsupported {
        /// The model.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// Images that could not be encoded.
    #[error("encoding {what} as PNG")]
    #[diagnostic(code(depurate::image))]
    Image {
        /// Which image.
        what: &'static str,
        /// Why.
        source: image::ImageError,
    },
    /// Pictures of maps that could not be encoded.
    #[error("encoding {what} as PNG")]
    #[diagnostic(code(depurate::image))]
    Png {
        /// Which picture.
        what: &'static str,
        /// Why.
        source: png::EncodingError,
    },
    /// Pixels that do not make up whole images.
    #[error("{what} has {got} values, expected {expected}")]
    #[diagnostic(code(depurate::image))]
    Pixels {
        /// Which image.
        what: &'static str,
        /// Number of values.
        got: usize,
        /// Number of values of whole images.
        expected: usize,
    },
    /// An algorithm or finding that does not exist.
    #[error("there is no algorithm or finding `{id}`")]
    #[diagnostic(
        code(depurate::explain),
        help("`depurate explain` without an id lists them")
    )]
    UnknownId {
        /// What was asked for.
        id: String,
    },
    /// Too few benign models for a calibration.
    #[error("a calibration needs at least {least} benign models, better 20: {got} given")]
    #[diagnostic(
        code(depurate::calibrate),
        help(
            "with n models no false-positive rate below 1/(n+1) can be stated; fine-tunes and short trainings with other seeds and subsets count"
        )
    )]
    TooFewModels {
        /// Models given.
        got: usize,
        /// Models needed.
        least: usize,
    },
    /// Too few benign prompts for a calibration.
    #[error(
        "a calibration needs at least {least} benign prompts that can be scored, better 200: there are {got}"
    )]
    #[diagnostic(
        code(depurate::calibrate_prompts),
        help(
            "no verdict is stated below 200, and a rate of 0.05 takes 72 of about the same length"
        )
    )]
    TooFewPrompts {
        /// Prompts that could be scored.
        got: usize,
        /// Prompts needed.
        least: usize,
    },
    /// The same model twice in a calibration.
    #[error("{} and {} are the same model: each counts once, remove one", first.display(), second.display())]
    #[diagnostic(code(depurate::calibrate))]
    SameModel {
        /// One of them.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A line of a model list that is not understood.
    #[error("line {line} of {} is no model: write {{\"path\": \"DIR\", \"provenance\": \"how it was made\"}}", path.display())]
    #[diagnostic(code(depurate::calibrate))]
    ModelList {
        /// The list.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
    /// A trigger that does not fit the model.
    #[error("tensor `{tensor}` of {} has shape {got:?}, the model's images have {expected:?}", path.display())]
    #[diagnostic(
        code(depurate::sample),
        help("take the triggers.safetensors of a report of this very model")
    )]
    TriggerShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        got: Vec<usize>,
        /// `[C, H, W]` of the model.
        expected: [usize; 3],
    },
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    #[diagnostic(code(depurate::io), help("{}", mend(source)))]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's own error.
        source: io::Error,
    },
    /// Serialisation failed.
    #[error("writing {what} as JSON")]
    #[diagnostic(code(depurate::json))]
    Json {
        /// What was to be written.
        what: &'static str,
        /// Why it failed.
        source: serde_json::Error,
    },
    /// Options that exclude each other, or that are missing.
    #[error("{problem}")]
    #[diagnostic(code(depurate::usage), help("{mend}"))]
    Usage {
        /// What is wrong.
        problem: String,
        /// How to mend it.
        mend: &'static str,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    #[diagnostic(
        code(depurate::interrupted),
        help("the same command goes on where this one stopped")
    )]
    Interrupted,
}

impl Error {
    /// Adds place and action to a system error.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// The program's exit code after this error.
    pub fn exit_code(&self) -> u8 {
        use io::ErrorKind::{OutOfMemory, ResourceBusy, TimedOut};
        match self {
            Self::Unsupported { .. }
            | Self::Checkpoint(CheckpointError::NoUnet { .. })
            | Self::Diffusion(
                DiffusionError::TextConditional { .. } | DiffusionError::Unconditional { .. },
            ) => EXIT_UNCHECKED,
            Self::Io { source, .. } | Self::Checkpoint(CheckpointError::Io { source, .. })
                if matches!(source.kind(), OutOfMemory | ResourceBusy | TimedOut) =>
            {
                EXIT_TRANSIENT
            }
            _ => EXIT_ERROR,
        }
    }
}

/// The mend that fits a system error.
fn mend(error: &io::Error) -> &'static str {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::NotFound => "check the path: a part of it does not exist",
        Kind::PermissionDenied => "change its mode or owner, or choose another place",
        Kind::StorageFull | Kind::QuotaExceeded => "free some space and try again",
        Kind::IsADirectory => "it is a directory: give the path of a file",
        Kind::NotADirectory | Kind::AlreadyExists => {
            "a part of the path is a file: choose another place"
        }
        Kind::ReadOnlyFilesystem => "the file system is read-only: choose another place",
        _ => "see the system's message and try again",
    }
}
