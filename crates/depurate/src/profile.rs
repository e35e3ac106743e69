//! How thorough a scan is, and with which detector.

use clap::ValueEnum;
use depurate_defense::{
    detect::model_level::{
        ModelDetector, diff_cleanse,
        elijah_model::{self, ElijahModelParams},
        shift_response::{self, ShiftResponseParams},
        terd_model,
    },
    invert::{diff_cleanse::DiffCleanseParams, terd::TerdParams},
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
}

/// The model detectors that a scan can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum DetectorName {
    /// The suspect's answer to an inverted shift, against controls.
    #[default]
    ShiftResponse,
    /// The size of TERD's inverted shift. No calibration is built in.
    TerdModel,
    /// How alike an inverted trigger makes images. A calibration is built in for its quick profile.
    DiffCleanse,
    /// How alike the shifts that Elijah inverts make images. No calibration is built in.
    ElijahModel,
}

impl DetectorName {
    /// The detector's id.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ShiftResponse => shift_response::ID,
            Self::TerdModel => terd_model::ID,
            Self::DiffCleanse => diff_cleanse::ID,
            Self::ElijahModel => elijah_model::ID,
        }
    }

    /// The detectors that look too in a scan of `profile`, for evidence of other kinds of triggers.
    pub fn beside(self, profile: Profile) -> Vec<Self> {
        match (self, profile) {
            (Self::ShiftResponse, Profile::Standard | Profile::Deep) => {
                vec![Self::DiffCleanse, Self::ElijahModel]
            }
            _ => Vec::new(),
        }
    }

    /// The detector with the parameters of `profile`.
    ///
    /// # Errors
    /// When the parameters are out of range, which no profile's are.
    pub fn build(self, profile: Profile) -> Result<Detector, Error> {
        match self {
            Self::ShiftResponse => {
                let params = match profile {
                    Profile::Quick => ShiftResponseParams::quick(),
                    Profile::Standard => ShiftResponseParams::standard(),
                    Profile::Deep => ShiftResponseParams::deep(),
                };
                Ok(Detector {
                    info: shift_response::info(),
                    least_effect: shift_response::LEAST_EFFECT,
                    scoring: json(&params.scoring())?,
                    params: json(&params)?,
                    run: params.build()?,
                })
            }
            Self::TerdModel => {
                let params = match profile {
                    Profile::Quick => TerdParams::quick(),
                    Profile::Standard => TerdParams::default(),
                    Profile::Deep => TerdParams::reference(),
                };
                Ok(Detector {
                    info: terd_model::info(),
                    least_effect: 0.0,
                    scoring: json(&params)?,
                    params: json(&params)?,
                    run: terd_model::build(params)?,
                })
            }
            Self::DiffCleanse => {
                let params = match profile {
                    Profile::Quick => DiffCleanseParams::quick(),
                    Profile::Standard => DiffCleanseParams::standard(),
                    Profile::Deep => DiffCleanseParams::deep(),
                };
                Ok(Detector {
                    info: diff_cleanse::info(),
                    least_effect: diff_cleanse::LEAST_EFFECT,
                    scoring: json(&params)?,
                    params: json(&params)?,
                    run: diff_cleanse::build(params)?,
                })
            }
            Self::ElijahModel => {
                let params = match profile {
                    Profile::Quick | Profile::Standard => ElijahModelParams::quick(),
                    Profile::Deep => ElijahModelParams::published(),
                };
                Ok(Detector {
                    info: elijah_model::info(),
                    least_effect: elijah_model::LEAST_EFFECT,
                    scoring: json(&params)?,
                    params: json(&params)?,
                    run: elijah_model::build(params)?,
                })
            }
        }
    }
}

fn json(params: &impl Serialize) -> Result<serde_json::Value, Error> {
    serde_json::to_value(params).map_err(|source| Error::Json {
        what: "the parameters",
        source,
    })
}

/// A detector ready to run, with what a calibration must agree with.
pub struct Detector {
    /// Who it is.
    pub info: AlgorithmInfo,
    /// A score up to this is no finding, however close together the benign scores lie.
    pub least_effect: f64,
    /// Those of its parameters that change the score: a calibration must have been made with the same.
    pub scoring: serde_json::Value,
    /// All of its parameters.
    pub params: serde_json::Value,
    /// The algorithm.
    pub run: Box<dyn ModelDetector>,
}
