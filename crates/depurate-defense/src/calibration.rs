//! Calibrations: what benign models score, so that a score can become a verdict with a stated
//! error rate.
//!
//! A calibration holds the scores of benign models only. Its threshold is conformal: with `n`
//! benign models exchangeable with the suspect's kind, the `ceil((n+1)(1-fpr))`-th smallest score
//! is exceeded by a benign model with probability at most `fpr`, and no rate below `1/(n+1)` is
//! ever stated.

pub mod prompts;

use std::{collections::BTreeSet, path::Path};

use depurate_diffusion::{Denoiser, Pipeline};
use depurate_stats::{ConformalThreshold, conformal_threshold};
use serde::{Deserialize, Serialize};

use crate::DefenseError;

/// Version of the file format. A file of another version is refused.
pub const CALIBRATION_VERSION: u32 = 1;

/// What makes two models comparable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelKind {
    /// Channels of a sample.
    pub channels: usize,
    /// Rows and columns of a sample.
    pub size: (usize, usize),
    /// Number of parameters.
    pub parameters: usize,
    /// Length of the training schedule.
    pub train_timesteps: usize,
    /// `alpha_bar` at the last timestep.
    pub last_alpha_bar: f64,
}

impl ModelKind {
    /// The kind of `model`.
    pub fn of(model: &Pipeline) -> Self {
        let (shape, schedule) = (model.sample_shape(), model.schedule());
        Self {
            channels: shape.channels,
            size: (shape.height, shape.width),
            parameters: model.parameter_count(),
            train_timesteps: schedule.len(),
            last_alpha_bar: schedule.alpha_bar(schedule.len() - 1),
        }
    }
}

/// One benign model's entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CalibrationEntry {
    /// sha256 of the network's weights.
    pub sha256: String,
    /// Its kind.
    pub kind: ModelKind,
    /// How it was made, in words.
    pub provenance: String,
    /// Its score.
    pub score: f64,
}

/// The scores of benign models under one detector with one set of parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Format version.
    pub version: u32,
    /// Id of the detector.
    pub detector: String,
    /// The detector's parameters, as JSON.
    pub params: serde_json::Value,
    /// What the benign models are, in words.
    pub population: String,
    /// The command that made this file.
    pub command: String,
    /// Version of the program that made this file.
    pub made_by: String,
    /// One entry a benign model.
    pub entries: Vec<CalibrationEntry>,
}

/// Whether a calibration speaks about a kind of model.
#[derive(Debug, Clone, PartialEq)]
pub enum Coverage {
    /// The kind lies within the population.
    Covered,
    /// It does not; every reason is listed.
    Outside(Vec<String>),
}

impl Calibration {
    /// Reads a calibration; `path` is named in errors.
    ///
    /// # Errors
    /// When the file is malformed, of another version, empty, or holds a score that is not finite.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self, DefenseError> {
        let refuse = |reason: String| DefenseError::Calibration {
            path: path.to_owned(),
            reason,
        };
        let calibration: Self =
            serde_json::from_slice(bytes).map_err(|error| refuse(error.to_string()))?;
        if calibration.version != CALIBRATION_VERSION {
            let found = calibration.version;
            return Err(refuse(format!(
                "version {found}, expected {CALIBRATION_VERSION}; calibrate again"
            )));
        }
        if calibration.entries.is_empty() {
            return Err(refuse("holds no benign model; calibrate again".into()));
        }
        if calibration
            .entries
            .iter()
            .any(|entry| !entry.score.is_finite())
        {
            return Err(refuse(
                "holds a score that is not finite; calibrate again".into(),
            ));
        }
        let distinct: BTreeSet<&str> = calibration
            .entries
            .iter()
            .map(|entry| entry.sha256.as_str())
            .collect();
        if distinct.len() < calibration.entries.len() {
            return Err(refuse("counts a model twice; calibrate again".into()));
        }
        Ok(calibration)
    }

    /// The benign scores.
    pub fn scores(&self) -> Vec<f64> {
        self.entries.iter().map(|entry| entry.score).collect()
    }

    /// The threshold at `target_fpr`.
    ///
    /// # Errors
    /// When `target_fpr` is not a probability.
    pub fn threshold(&self, target_fpr: f64) -> Result<ConformalThreshold, DefenseError> {
        conformal_threshold(&self.scores(), target_fpr).map_err(|error| DefenseError::Params {
            field: "target_fpr",
            value: error.to_string(),
            allowed: "above 0 and below 1",
        })
    }

    /// Whether models of this `kind` are among the benign ones: the same number of channels, size
    /// and parameters within a factor of two of the population's range, the same schedule.
    pub fn coverage(&self, kind: &ModelKind) -> Coverage {
        let mut reasons = Vec::new();
        let channels: BTreeSet<usize> = self
            .entries
            .iter()
            .map(|entry| entry.kind.channels)
            .collect();
        if !channels.contains(&kind.channels) {
            reasons.push(format!(
                "{} channels, calibrated on {channels:?}",
                kind.channels
            ));
        }
        let pixels = |kind: &ModelKind| (kind.size.0 * kind.size.1) as f64;
        let outside = |value: f64, of: &dyn Fn(&ModelKind) -> f64| {
            let low = self
                .entries
                .iter()
                .map(|entry| of(&entry.kind))
                .fold(f64::INFINITY, f64::min);
            let high = self
                .entries
                .iter()
                .map(|entry| of(&entry.kind))
                .fold(0.0, f64::max);
            value < low / 2.0 || value > high * 2.0
        };
        if outside(pixels(kind), &pixels) {
            reasons.push(format!("{} x {} pixels", kind.size.0, kind.size.1));
        }
        if outside(kind.parameters as f64, &|kind| kind.parameters as f64) {
            reasons.push(format!("{} parameters", kind.parameters));
        }
        let same_schedule = |other: &ModelKind| {
            other.train_timesteps == kind.train_timesteps
                && (other.last_alpha_bar.ln() - kind.last_alpha_bar.ln()).abs() < 0.5
        };
        if !self.entries.iter().any(|entry| same_schedule(&entry.kind)) {
            reasons.push(format!(
                "a schedule of {} steps that ends at another noise level",
                kind.train_timesteps
            ));
        }
        if reasons.is_empty() {
            Coverage::Covered
        } else {
            Coverage::Outside(reasons)
        }
    }
}
