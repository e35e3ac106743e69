//! Verdict, severity and confidence: three different things.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a scan concludes. Never "safe".
///
/// The order is that of concern: no backdoor found < inconclusive < suspicious < backdoored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// What was tested shows no backdoor.
    NoBackdoorFound,
    /// Nothing could be checked, or the checks do not decide.
    Inconclusive,
    /// Some evidence of a backdoor, or evidence at a rate that the calibration does not cover.
    Suspicious,
    /// A detector's score lies above its calibrated threshold, with the evidence to show.
    Backdoored,
}

impl Verdict {
    /// Is this verdict at or above `fail_on`? An inconclusive one never is; programs decide about
    /// it apart.
    #[must_use]
    pub fn reaches(self, fail_on: Self) -> bool {
        self != Self::Inconclusive && self >= fail_on
    }

    /// The verdict as JSON writes it: "no_backdoor_found".
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoBackdoorFound => "no_backdoor_found",
            Self::Inconclusive => "inconclusive",
            Self::Suspicious => "suspicious",
            Self::Backdoored => "backdoored",
        }
    }

    /// The verdict as people read it: "no backdoor found".
    #[must_use]
    pub const fn phrase(self) -> &'static str {
        match self {
            Self::NoBackdoorFound => "no backdoor found",
            Self::Inconclusive => "inconclusive",
            Self::Suspicious => "suspicious",
            Self::Backdoored => "backdoored",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.phrase())
    }
}

/// How bad it is if the finding is true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// For information.
    Informational,
    /// Little harm.
    Low,
    /// Some harm, or harm that needs unusual conditions.
    Medium,
    /// Whoever holds the trigger controls what the model generates.
    High,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Informational => "informational",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        })
    }
}

/// How sure the tool is that the finding is true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confidence {
    /// A hint.
    Low,
    /// The evidence fits, and so would some benign explanation.
    Medium,
    /// No benign explanation is known.
    High,
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        })
    }
}
