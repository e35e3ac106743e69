//! Vocabulary of findings, scores and verdicts, and the report that they make up.
//!
//! Everything here is plain data: no tensors, no models. A detector returns [`Evidence`] and a
//! [`Score`]; a calibrated [`Threshold`] turns the score into a [`Decision`]; the decisions of a
//! scan make up a [`Report`]. The JSON of [`render_json`] is the source of every other format:
//! [`render_text`] and [`render_html`] are pure functions of the same [`Report`].
//!
//! ```
//! use depurate_report::{AlgorithmId, Score, Verdict};
//!
//! let id: AlgorithmId = "terd".parse()?;
//! assert_eq!(id.as_str(), "terd");
//! assert!(Score::new(f64::NAN).is_err(), "a detector that cannot score says so instead");
//! assert!(Verdict::Backdoored.reaches(Verdict::Suspicious));
//! # Ok::<(), depurate_report::ReportError>(())
//! ```
#![forbid(unsafe_code)]
#![deny(missing_docs, rustdoc::broken_intra_doc_links)]

mod algorithm;
mod axis;
mod error;
mod evidence;
mod finding;
mod float;
mod html;
mod number;
mod plot;
mod png;
mod prompt_page;
mod repair_report;
mod report;
mod score;
mod text;
mod verdict;

pub use algorithm::{Access, AlgorithmId, AlgorithmInfo, Kind, Paper, ReferenceCode, Status};
pub use error::ReportError;
pub use evidence::{
    Band, Evidence, Histogram, ImageGrid, InvertedTrigger, Note, ResponseCurve, RestartSummary,
    Series, Statistic, Summary, Table,
};
pub use finding::{AtlasTag, FINDINGS, Finding, FindingId, FindingInfo};
pub use html::render_html;
pub use png::Png;
pub use prompt_page::{CheckSummary, Picture, PromptPage, render_curve_svg, render_prompt_html};
pub use repair_report::{Attempt, Check, RepairReport, render_repair_html, render_repair_json};
pub use report::{
    Calibration, Component, Environment, Report, SCHEMA_VERSION, Skipped, Subject, Tested,
    parse_json, render_json,
};
pub use score::{Decision, Estimate, Score, Threshold};
pub use text::{ColorChoice, render_text};
pub use verdict::{Confidence, Severity, Verdict};
