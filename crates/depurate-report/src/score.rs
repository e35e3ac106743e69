//! Scores, thresholds and estimates: every number with what it rests on.

use serde::{Deserialize, Serialize};

use crate::{AlgorithmId, ReportError, float};

/// How suspicious a detector finds its subject: finite, and higher = more suspicious, everywhere.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Score(f64);

impl Score {
    /// A score.
    ///
    /// # Errors
    /// If `value` is NaN or infinite.
    pub fn new(value: f64) -> Result<Self, ReportError> {
        if value.is_finite() {
            Ok(Self(value))
        } else {
            Err(ReportError::NonFiniteScore { value })
        }
    }

    /// The number.
    #[must_use]
    pub const fn value(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Score {
    type Error = ReportError;

    fn try_from(value: f64) -> Result<Self, ReportError> {
        Self::new(value)
    }
}

impl From<Score> for f64 {
    fn from(score: Score) -> Self {
        score.0
    }
}

/// A measured number with its sample size and interval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The point estimate.
    #[serde(deserialize_with = "float::scalar")]
    pub value: f64,
    /// How many independent items it was measured on.
    pub n: usize,
    /// The two-sided 95 % interval, where one is justified.
    #[serde(default)]
    pub ci95: Option<(f64, f64)>,
    /// How value and interval were obtained: "Clopper-Pearson", "bootstrap, 2000 resamples".
    pub method: String,
}

/// A calibrated threshold: a subject is flagged when its score is *greater* than `value`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Threshold {
    /// The threshold, in units of the score.
    pub value: f64,
    /// The false-positive rate that was asked for.
    pub target_fpr: f64,
    /// The false-positive rate that the calibration justifies; never below `1 / (n_benign + 1)`.
    pub stated_fpr: f64,
    /// The exact 95 % interval of the true false-positive rate given the calibration set.
    pub fpr_ci95: (f64, f64),
    /// How many benign models or inputs the threshold was fitted on.
    pub n_benign: usize,
    /// How it was fitted: "split conformal, rank 24 of 24".
    pub how: String,
    /// What the benign population is: "DDPM fine-tunes, 28x28x1, T = 1000".
    pub population: String,
    /// Does that population cover the subject? If not, the rate does not hold for it.
    pub covers: bool,
    /// What else to know, such as why the population does not cover the subject.
    #[serde(default)]
    pub note: Option<String>,
}

/// One detector's outcome: its score held against its calibrated threshold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Which detector.
    pub detector: AlgorithmId,
    /// The name of the statistic that is the score: "agreement ratio".
    pub statistic: String,
    /// Its score of the subject.
    pub score: Score,
    /// The threshold that the score was compared with.
    pub threshold: Threshold,
    /// The conformal p-value of the score among the benign ones, at least `1 / (n_benign + 1)`.
    #[serde(default)]
    pub p_value: Option<f64>,
    /// Was the score greater than the threshold?
    pub flagged: bool,
}

impl Decision {
    /// Compares `score` with `threshold`.
    #[must_use]
    pub fn new(
        detector: AlgorithmId,
        statistic: impl Into<String>,
        score: Score,
        threshold: Threshold,
        p_value: Option<f64>,
    ) -> Self {
        let flagged = score.value() > threshold.value;
        Self {
            detector,
            statistic: statistic.into(),
            score,
            threshold,
            p_value,
            flagged,
        }
    }
}
