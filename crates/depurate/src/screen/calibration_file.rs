//! A file of calibrations: what benign prompts score on one model, one list a detector.

use std::{collections::BTreeSet, path::Path};

use depurate_defense::{
    DefenseError,
    calibration::prompts::{PromptCalibration, RunSetting},
    detect::input_level::{PromptDetector, evolution::BenignBand},
};
use serde::{Deserialize, Serialize};

use crate::{Error, calibration::read_bounded};

/// Version of the file's form. A file of another version is refused.
pub const CALIBRATION_FILE_VERSION: u32 = 1;
/// Largest file that is read, in bytes.
const MAX_BYTES: u64 = 256 << 20;

/// The calibrations of one model, made from the same prompts in one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationFile {
    /// Version of the form.
    pub version: u32,
    /// One a detector.
    pub calibrations: Vec<PromptCalibration>,
    /// Where benign prompts run, for pictures; no verdict depends on it.
    pub band: Option<BenignBand>,
}

impl CalibrationFile {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, is malformed or of another version, holds a detector twice or none, or a calibration in it is
    /// malformed.
    pub fn read(path: &Path) -> Result<Self, Error> {
        Ok(Self::parse(&read_bounded(path, MAX_BYTES)?, path)?)
    }

    /// Reads a file's bytes; `path` is named in errors.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self, DefenseError> {
        let refuse = |reason: String| DefenseError::Calibration {
            path: path.to_owned(),
            reason: format!("{reason}; calibrate again"),
        };
        let file: Self =
            serde_json::from_slice(bytes).map_err(|error| refuse(error.to_string()))?;
        if file.version != CALIBRATION_FILE_VERSION {
            let (found, expected) = (file.version, CALIBRATION_FILE_VERSION);
            return Err(refuse(format!("version {found}, expected {expected}")));
        }
        let detectors = file.calibrations.iter().map(|one| one.detector.as_str());
        if file.calibrations.is_empty() {
            return Err(refuse("holds no calibration".into()));
        }
        if detectors.collect::<BTreeSet<_>>().len() < file.calibrations.len() {
            return Err(refuse("holds a detector twice".into()));
        }
        let calibrations = file.calibrations.into_iter();
        Ok(Self {
            calibrations: calibrations
                .map(|one| one.validated(path))
                .collect::<Result<_, _>>()?,
            ..file
        })
    }

    /// The calibration of a detector; `None` if there is none.
    ///
    /// # Errors
    /// When it was made with other parameters or under another setting; every difference is named.
    pub fn of(
        &self,
        detector: &dyn PromptDetector,
        setting: &RunSetting,
    ) -> Result<Option<&PromptCalibration>, DefenseError> {
        let id = detector.info().id;
        let found = self
            .calibrations
            .iter()
            .find(|one| one.detector == id.as_str());
        if let Some(found) = found {
            found.check(id.as_str(), &detector.scoring(), setting)?;
        }
        Ok(found)
    }
}
