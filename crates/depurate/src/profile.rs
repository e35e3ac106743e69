//! How thorough a scan is.

use clap::ValueEnum;
use depurate_defense::detect::model_level::{
    ModelDetector,
    shift_response::{self, ShiftResponseParams},
};
use depurate_report::AlgorithmInfo;
use serde::{Deserialize, Serialize};

use crate::Error;

/// How much time a scan may take, for how much evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// The score and what it is made of.
    Quick,
    /// Also images as the attacked samplers make them, of a few noises.
    #[default]
    Standard,
    /// Those images of many noises.
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
        let json = |params| {
            serde_json::to_value(params).map_err(|source| Error::Json {
                what: "the parameters",
                source,
            })
        };
        Ok(Detector {
            info: shift_response::info(),
            scoring: json(&params.scoring())?,
            params: json(&params)?,
            run: params.build()?,
        })
    }
}

/// A detector ready to run, with what a calibration must agree with.
pub struct Detector {
    /// Who it is.
    pub info: AlgorithmInfo,
    /// Those of its parameters that change the score: a calibration must have been made with the same.
    pub scoring: serde_json::Value,
    /// All of its parameters.
    pub params: serde_json::Value,
    /// The algorithm.
    pub run: Box<dyn ModelDetector>,
}
