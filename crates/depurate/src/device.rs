//! Where models run, chosen at run time.

use clap::ValueEnum;

/// A kind of processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Device {
    /// The processor that runs this program.
    #[default]
    Cpu,
}

impl Device {
    /// The device as the command line and reports spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
        }
    }

    /// The device as models take it.
    pub fn open(self) -> depurate_diffusion::Device {
        match self {
            Self::Cpu => depurate_diffusion::Device::flex(),
        }
    }
}
