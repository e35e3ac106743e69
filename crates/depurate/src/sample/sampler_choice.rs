//! Which sampler runs, and with which of the checkpoint's options.

use clap::ValueEnum;
use depurate_checkpoint::Checkpoint;
use depurate_diffusion::{
    sampler::{self, Clip, Ddim, Ddpm, Sampler},
    schedule::{SchedulerClass, SchedulerConfig},
};
use serde_json::Map;

use super::SampleSettings;
use crate::Error;

/// A family of samplers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SamplerName {
    /// What the checkpoint asks for.
    Own,
    /// Ancestral sampling; all training steps unless said otherwise.
    Ddpm,
    /// Deterministic sampling (eta = 0); 50 steps unless said otherwise, as all below.
    Ddim,
    /// Pseudo numerical methods, Stable Diffusion 1's own.
    Pndm,
    /// Euler's method over noise levels.
    Euler,
    /// DPM-Solver++, multistep.
    Dpmpp,
}

impl SamplerName {
    fn class(self) -> Option<SchedulerClass> {
        Some(match self {
            Self::Own => return None,
            Self::Ddpm => SchedulerClass::Ddpm,
            Self::Ddim => SchedulerClass::Ddim,
            Self::Pndm => SchedulerClass::Pndm,
            Self::Euler => SchedulerClass::Euler,
            Self::Dpmpp => SchedulerClass::DpmSolver,
        })
    }
}

/// Steps of all samplers but DDPM, unless said otherwise.
const STEPS: usize = 50;

/// The sampler of this name with the options of the checkpoint that its class has, as `adapted` changes them.
pub(super) fn make(
    name: SamplerName,
    checkpoint: &Checkpoint,
    settings: &SampleSettings,
    adapted: impl Fn(SchedulerConfig) -> SchedulerConfig,
) -> Result<Box<dyn Sampler>, Error> {
    let nothing = Map::new();
    let map = checkpoint.scheduler_config().unwrap_or(&nothing);
    let path = checkpoint.root.join("scheduler/scheduler_config.json");
    let config = match name.class() {
        Some(class) => SchedulerConfig::from_json_as(class, map, &path)?,
        None => SchedulerConfig::from_json(map, &path)?,
    };
    let config = adapted(config);
    let total = config.num_train_timesteps;
    let steps = settings.steps.unwrap_or(match config.class {
        SchedulerClass::Ddpm => total,
        _ => STEPS.min(total),
    });
    let clip = settings.clip.unwrap_or_else(|| config.clip());
    Ok(match config.class {
        SchedulerClass::Ddpm => Box::new(Ddpm::from_config(&config, steps, clip)?),
        SchedulerClass::Ddim => Box::new(Ddim::from_config(&config, steps, 0.0, clip)?),
        _ if settings.clip.is_some_and(|clip| clip != Clip::None) => {
            return Err(Error::Usage {
                problem: "--clip is for the samplers ddpm and ddim".into(),
                mend: "leave out --clip, or choose --sampler ddim",
            });
        }
        _ => sampler::from_config(&config, steps)?,
    })
}
