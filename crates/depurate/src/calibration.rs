//! Which calibration a scan is held against.

use std::path::Path;

use depurate_checkpoint::CheckpointError;
use depurate_defense::{DefenseError, calibration::Calibration};
use sha2::{Digest, Sha256};

use crate::{Detector, Error};

/// Calibrations that come with the program: file name and contents. A scan takes the one that was made with its
/// detector's scoring parameters.
static BUILT_IN: &[(&str, &str)] = &[
    (
        "shift-response.json",
        include_str!("../calibrations/shift-response.json"),
    ),
    (
        "diff-cleanse.json",
        include_str!("../calibrations/diff-cleanse.json"),
    ),
];

/// Largest calibration file that is read, in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// A calibration and where it comes from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The benign scores.
    pub calibration: Calibration,
    /// The file, or "built in".
    pub file: String,
    /// sha256 of the file.
    pub sha256: String,
}

impl Loaded {
    fn parse(bytes: &[u8], path: &Path, file: String) -> Result<Self, Error> {
        let sha256 = Sha256::digest(bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Ok(Self {
            calibration: Calibration::parse(bytes, path)?,
            file,
            sha256,
        })
    }

    /// The calibration as a report states it.
    pub fn stated(&self) -> depurate_report::Calibration {
        depurate_report::Calibration {
            file: self.file.clone(),
            sha256: self.sha256.clone(),
            version: self.calibration.version.to_string(),
            n_benign: self.calibration.entries.len(),
            population: self.calibration.population.clone(),
            note: Some(format!(
                "made by depurate {} with `{}`",
                self.calibration.made_by, self.calibration.command
            )),
        }
    }
}

/// The calibration in `file`, else the built-in one for `detector`; `None` if there is none built in.
///
/// # Errors
/// When the file cannot be read or is malformed, or was made by another detector or with other parameters: scores of
/// different parameters cannot be compared.
pub fn find(detector: &Detector, file: Option<&Path>) -> Result<Option<Loaded>, Error> {
    let Some(path) = file else {
        for (name, text) in BUILT_IN {
            let loaded = Loaded::parse(
                text.as_bytes(),
                Path::new(name),
                format!("built in ({name})"),
            )?;
            if mismatch(&loaded.calibration, detector).is_none() {
                return Ok(Some(loaded));
            }
        }
        return Ok(None);
    };
    let loaded = Loaded::parse(
        &read_bounded(path, MAX_BYTES)?,
        path,
        path.display().to_string(),
    )?;
    match mismatch(&loaded.calibration, detector) {
        None => Ok(Some(loaded)),
        Some(reason) => Err(DefenseError::Calibration {
            path: path.into(),
            reason,
        }
        .into()),
    }
}

/// Why scores of `calibration` cannot be compared with those of `detector`.
fn mismatch(calibration: &Calibration, detector: &Detector) -> Option<String> {
    if calibration.detector != detector.info.id.as_str() {
        let made_by = &calibration.detector;
        return Some(format!(
            "made by detector `{made_by}`, the scan runs `{}`; calibrate again",
            detector.info.id
        ));
    }
    if normal(&calibration.params) != normal(&detector.scoring) {
        return Some(
            "made with other scoring parameters than this version has; calibrate again".into(),
        );
    }
    None
}

/// A value as it is after it was written and read, because reading may round a float's last bit.
fn normal(value: &serde_json::Value) -> Option<serde_json::Value> {
    serde_json::from_str(&value.to_string()).ok()
}

/// The bytes of a file that the user names and that may be anything.
///
/// # Errors
/// When it cannot be read or is larger than `limit` bytes.
pub fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(Error::io("open", path))?;
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(Error::io("read", path))?;
    if bytes.len() as u64 > limit {
        let (what, got, option) = ("the size", bytes.len() as u64, "json_bytes");
        return Err(CheckpointError::TooLarge {
            path: path.into(),
            what,
            got,
            limit,
            option,
        }
        .into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use depurate_defense::calibration::CALIBRATION_VERSION;

    use super::*;
    use crate::{DetectorName, Profile};

    #[test]
    fn every_built_in_calibration_parses_and_fits_a_profile() {
        for (name, text) in BUILT_IN {
            let loaded = Loaded::parse(text.as_bytes(), Path::new(name), (*name).into()).unwrap();
            let fits = |detector: DetectorName, profile| {
                let detector = detector.build(profile).unwrap();
                mismatch(&loaded.calibration, &detector).is_none()
            };
            let profiles = [Profile::Quick, Profile::Standard, Profile::Deep];
            let of = |detector: DetectorName| profiles.map(|profile| fits(detector, profile));
            match *name {
                "shift-response.json" => assert_eq!(of(DetectorName::ShiftResponse), [true; 3]),
                // what the other profiles look for costs more and scores otherwise
                _ => assert_eq!(
                    of(DetectorName::DiffCleanse),
                    [true, false, false],
                    "{name}"
                ),
            }
        }
    }

    #[test]
    fn scores_of_other_parameters_or_detectors_are_refused() {
        let quick = DetectorName::default().build(Profile::Quick).unwrap();
        let mut calibration = Calibration {
            version: CALIBRATION_VERSION,
            detector: quick.info.id.to_string(),
            params: quick.scoring.clone(),
            population: "none".into(),
            command: String::new(),
            made_by: String::new(),
            entries: Vec::new(),
        };
        assert_eq!(mismatch(&calibration, &quick), None);
        calibration.params = serde_json::json!({"rate": 2.0});
        assert!(
            mismatch(&calibration, &quick)
                .unwrap()
                .contains("other scoring parameters")
        );
        calibration.detector = "other".into();
        assert!(mismatch(&calibration, &quick).unwrap().contains("`other`"));
    }
}
