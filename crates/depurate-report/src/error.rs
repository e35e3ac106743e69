//! What can go wrong while a report is made, read or rendered.

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// An algorithm id that is not kebab-case.
    #[error(
        "`{id}` is no algorithm id: use lower-case letters, digits and single hyphens, and start with a letter, as in `terd` or `daa-s`"
    )]
    BadAlgorithmId {
        /// The text that was given.
        id: String,
    },
    /// A finding id that is not `DPR` and three digits.
    #[error("`{id}` is no finding id: write `DPR` and three digits, as in `DPR101`")]
    BadFindingId {
        /// The text that was given.
        id: String,
    },
    /// A score that is NaN or infinite.
    #[error(
        "a score must be finite, got {value}: a detector that cannot score reports itself as inconclusive"
    )]
    NonFiniteScore {
        /// The value that was given.
        value: f64,
    },
    /// Bytes that do not begin as a PNG file does.
    #[error("these {bytes} bytes are no PNG image: {reason}")]
    BadPng {
        /// How many bytes there were.
        bytes: usize,
        /// What is wrong with them.
        reason: &'static str,
    },
    /// A report written by a version whose schema this one does not know.
    #[error(
        "report schema version `{found}` is unknown, this program reads version {supported}: read it with the depurate that wrote it"
    )]
    UnknownSchema {
        /// The version in the file.
        found: String,
        /// The version that this crate reads and writes.
        supported: &'static str,
    },
    /// JSON that is not a report.
    #[error("reading the report's JSON")]
    Json(#[from] serde_json::Error),
    /// The HTML template failed.
    #[error("rendering the report as HTML")]
    Template(#[from] minijinja::Error),
}
