//! The report of one scan: schema version 1.

use serde::{Deserialize, Serialize};

use crate::{AlgorithmId, Decision, Evidence, Finding, ReportError, Verdict};

/// The schema version that this crate writes: the major number alone. Fields may be added under
/// the same number; readers ignore the ones that they do not know.
pub const SCHEMA_VERSION: &str = "1";

/// Everything that one scan of one subject found, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`]
    pub schema_version: String,
    /// What was scanned.
    pub subject: Subject,
    /// What the scan concludes.
    pub verdict: Verdict,
    /// Why, in a sentence or two.
    pub why: String,
    /// Each detector's score against its threshold.
    #[serde(default)]
    pub decisions: Vec<Decision>,
    /// What was found.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// What was measured beside the findings; shown for benign subjects, too.
    #[serde(default)]
    pub evidence: Vec<Evidence>,
    /// Detectors that did not run, and why.
    #[serde(default)]
    pub skipped: Vec<Skipped>,
    /// What was tested.
    #[serde(default)]
    pub tested: Vec<Tested>,
    /// What was not tested: backdoors that this scan cannot see.
    #[serde(default)]
    pub not_tested: Vec<String>,
    /// The scan's profile: "quick", "standard", "deep".
    pub profile: String,
    /// The seed from which every random number of the scan derives.
    pub seed: u64,
    /// The command that repeats the scan.
    pub command: String,
    /// Where and when it ran.
    pub environment: Environment,
    /// The calibration that the thresholds come from.
    #[serde(default)]
    pub calibration: Option<Calibration>,
    /// Did the scan stop before it was done?
    #[serde(default)]
    pub interrupted: bool,
}

/// What was scanned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The path as it was given.
    pub path: String,
    /// "unconditional pixel diffusion"
    pub kind: String,
    /// The network's class: "UNet2DModel"
    pub class_name: String,
    /// The number of parameters of all components.
    pub parameters: u64,
    /// Its files.
    #[serde(default)]
    pub components: Vec<Component>,
}

/// One weight file of the subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// "unet"
    pub name: String,
    /// The file, relative to the subject.
    pub file: String,
    /// sha256 of the file, lower-case hexadecimal.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
}

/// A detector that did not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Which one.
    pub detector: AlgorithmId,
    /// Why: "needs attention, which an unconditional model does not have".
    pub reason: String,
}

/// Something that was tested.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tested {
    /// "triggers added to the initial noise"
    pub what: String,
    /// "TERD inversion, 4 restarts, full-step DDPM and DDIM sampling"
    pub how: String,
}

/// Where and when a scan ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// "depurate"
    pub tool: String,
    /// Its version.
    pub version: String,
    /// "linux"
    pub os: String,
    /// "x86_64"
    pub arch: String,
    /// What the kernels made use of: "avx2", "fma".
    #[serde(default)]
    pub cpu_features: Vec<String>,
    /// How many threads computed.
    pub threads: usize,
    /// "cpu"
    pub device: String,
    /// When the scan began, RFC 3339 in UTC.
    pub started: String,
    /// How long it took, in seconds.
    pub elapsed_s: f64,
}

/// The calibration file that the thresholds come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calibration {
    /// The file, or "built in".
    pub file: String,
    /// sha256 of the file, lower-case hexadecimal.
    pub sha256: String,
    /// Its version.
    pub version: String,
    /// How many benign models it was fitted on.
    pub n_benign: usize,
    /// What they are.
    pub population: String,
    /// What else to know of it.
    #[serde(default)]
    pub note: Option<String>,
}

/// The report as indented JSON, ending in a newline. NaN and infinities are written as `null`.
///
/// # Errors
/// If serialisation fails.
pub fn render_json(report: &Report) -> Result<String, ReportError> {
    let mut json = serde_json::to_string_pretty(report)?;
    json.push('\n');
    Ok(json)
}

/// Reads a report that [`render_json`] wrote, of this or of a newer minor version.
///
/// # Errors
/// If the text is no JSON, its schema version has another major number, or it is no report.
pub fn parse_json(json: &str) -> Result<Report, ReportError> {
    /// Only the version: the rest of an unknown version cannot be trusted to parse.
    #[derive(Deserialize)]
    struct Versioned {
        schema_version: String,
    }
    let Versioned { schema_version } = serde_json::from_str(json)?;
    let major = schema_version.split('.').next();
    if major != Some(SCHEMA_VERSION) {
        return Err(ReportError::UnknownSchema {
            found: schema_version,
            supported: SCHEMA_VERSION,
        });
    }
    Ok(serde_json::from_str(json)?)
}
