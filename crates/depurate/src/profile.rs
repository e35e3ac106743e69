//! How thorough a scan is.

use clap::ValueEnum;
use depurate_defense::detect::model_level::{
    ModelDetector,
    shift_response::{self, ShiftResponseParams},
};
use depurate_report::AlgorithmInfo;
use serde::{Deserialize, Serialize};

use crate::Error;

/// How much time a scan may take for how much certainty. Each has a calibration of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// A first look.
    Quick,
    /// What the stated error rates are usually given for.
    #[default]
    Standard,
    /// More restarts and samples.
    Deep,
}

impl Profile {
    /// The profile as the command line spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Standard => "standard",
            Self::Deep => "deep",
        }
    }

    /// The detector with this profile's parameters.
    ///
    /// # Errors
    /// When the parameters are out of range, which no profile's are.
    pub fn detector(self) -> Result<Detector, Error> {
        let params = match self {
            Self::Quick => ShiftResponseParams::quick(),
            Self::Standard => ShiftResponseParams::standard(),
            Self::Deep => ShiftResponseParams::deep(),
        };
        Ok(Detector {
            info: shift_response::INFO.clone(),
            params: serde_json::to_value(&params).map_err(|source| Error::Json { what: "the parameters", source })?,
            run: params.build()?,
        })
    }
}

/// A detector ready to run, with what a calibration must agree with.
pub struct Detector {
    /// Who it is.
    pub info: AlgorithmInfo,
    /// Its parameters.
    pub params: serde_json::Value,
    /// The algorithm.
    pub run: Box<dyn ModelDetector>,
}
