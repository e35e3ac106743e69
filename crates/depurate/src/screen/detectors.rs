//! What a prompt is screened with.

use clap::ValueEnum;
use depurate_defense::detect::input_level::{
    PromptDetector, daa_i, daa_i::DaaIParams, daa_s, daa_s::DaaSParams, unicode,
};

use crate::Error;

/// A check of one prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum PromptCheck {
    /// How the attention to the end of the prompt changes: six calls of the UNet.
    DaaI,
    /// How it dissipates: one call, which is one of those six.
    DaaS,
    /// The characters that the prompt is written in: no call.
    Unicode,
}

impl PromptCheck {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::DaaI, Self::DaaS, Self::Unicode];

    /// Its id.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DaaI => daa_i::ID,
            Self::DaaS => daa_s::ID,
            Self::Unicode => unicode::ID,
        }
    }

    /// The detector with the parameters of `preset`; `None` if the check gives no score.
    ///
    /// # Errors
    /// When the parameters are out of range, which no preset's are.
    pub fn build(self, preset: Preset) -> Result<Option<Box<dyn PromptDetector>>, Error> {
        let reference = preset == Preset::Reference;
        Ok(match self {
            Self::DaaI if reference => Some(Box::new(DaaIParams::reference().build()?)),
            Self::DaaI => Some(Box::new(DaaIParams::default().build()?)),
            Self::DaaS if reference => Some(Box::new(DaaSParams::reference().build()?)),
            Self::DaaS => Some(Box::new(DaaSParams::default().build()?)),
            Self::Unicode => None,
        })
    }
}

/// Parameters of the detectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Preset {
    /// As `depurate explain daa-i` and `daa-s` say.
    #[default]
    Corrected,
    /// As the authors' code, and without a calibration also with its constants, which state no error rate.
    Reference,
}

impl Preset {
    /// The preset as the command line spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Corrected => "corrected",
            Self::Reference => "reference",
        }
    }
}
