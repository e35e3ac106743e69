//! An unconditional diffusion pipeline: network, schedule and the configurations that they came from.

use std::path::{Path, PathBuf};

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};
use depurate_checkpoint::{Checkpoint, Limits, SaveComponent, SaveDtype, UNET_STEM, save_pipeline};
use serde_json::json;

use crate::{
    Denoiser, DiffusionError, Parameterisation, Prediction, SampleShape, Tap,
    channel_graph::{PrunableConfig, PrunableNetwork, Removal},
    noise::SeedTree,
    schedule::{NoiseSchedule, SchedulerConfig},
    unet2d::{UNet2D, UNet2DConfig},
};

/// A `UNet2DModel` with its scheduler's configuration.
#[derive(Debug, Clone)]
pub struct Pipeline {
    unet: UNet2D,
    config: UNet2DConfig,
    scheduler: SchedulerConfig,
    schedule: NoiseSchedule,
    device: Device,
}

impl Pipeline {
    /// A pipeline with random weights.
    ///
    /// # Errors
    /// When the scheduler's configuration gives no valid schedule.
    pub fn random(
        config: UNet2DConfig,
        scheduler: SchedulerConfig,
        seed: &SeedTree,
        device: &Device,
    ) -> Result<Self, DiffusionError> {
        let unet = UNet2D::new(&config, seed, device);
        Self::from_parts(unet, config, scheduler, device)
    }

    /// Assembles a pipeline from a network and its configurations.
    ///
    /// # Errors
    /// When the scheduler's configuration gives no valid schedule.
    pub fn from_parts(
        unet: UNet2D,
        config: UNet2DConfig,
        scheduler: SchedulerConfig,
        device: &Device,
    ) -> Result<Self, DiffusionError> {
        let schedule = scheduler.schedule()?;
        Ok(Self {
            unet,
            config,
            scheduler,
            schedule,
            device: device.clone(),
        })
    }

    /// Loads a diffusers directory: a pipeline, or a bare UNet, for which diffusers' default DDPM
    /// schedule is taken (linear, 1000 steps).
    ///
    /// # Errors
    /// When a file is missing, malformed, unsupported or does not fit the configuration.
    pub fn load(path: &Path, limits: &Limits, device: &Device) -> Result<Self, DiffusionError> {
        let checkpoint = Checkpoint::open(path, limits)?;
        Self::from_checkpoint(&checkpoint, limits, device)
    }

    /// Loads an opened checkpoint. See [`Pipeline::load`].
    ///
    /// # Errors
    /// As [`Pipeline::load`].
    pub fn from_checkpoint(
        checkpoint: &Checkpoint,
        limits: &Limits,
        device: &Device,
    ) -> Result<Self, DiffusionError> {
        if checkpoint.is_text_conditional() {
            return Err(DiffusionError::TextConditional {
                path: checkpoint.root.clone(),
            });
        }
        let config = UNet2DConfig::from_json(
            checkpoint.unet_config(),
            &checkpoint.unet_dir().join("config.json"),
        )?;
        let scheduler = match checkpoint.scheduler_config() {
            Some(map) => SchedulerConfig::from_json(map, &scheduler_path(checkpoint))?,
            None => SchedulerConfig::default(),
        };
        let weights = checkpoint.unet_weights(limits)?;
        let seed = SeedTree::new(0);
        let unet = UNet2D::new(&config, &seed, device).load(&weights, checkpoint.unet_dir())?;
        Self::from_parts(unet, config, scheduler, device)
    }

    /// Writes a directory that diffusers' `DDPMPipeline.from_pretrained` loads. Never overwrites. A pruned pipeline is written
    /// as it is, with a note in `config.json` that only this library reads: diffusers needs [`Pipeline::expanded`].
    ///
    /// # Errors
    /// When `dir` exists or cannot be written.
    pub fn save(&self, dir: &Path, dtype: SaveDtype) -> Result<(), DiffusionError> {
        let index = json!({
            "_class_name": "DDPMPipeline",
            "_diffusers_version": "0.30.0",
            "scheduler": ["diffusers", self.scheduler.class],
            "unet": ["diffusers", "UNet2DModel"],
        });
        let components = [
            SaveComponent::new("unet")
                .json("config.json", &self.config.to_json())
                .weights(UNET_STEM, || self.unet.to_tensors()),
            SaveComponent::new("scheduler")
                .json("scheduler_config.json", &self.scheduler.to_json().into()),
        ];
        save_pipeline(dir, &index, &components, dtype)?;
        Ok(())
    }

    /// The network.
    pub fn unet(&self) -> &UNet2D {
        &self.unet
    }

    /// The network's configuration.
    pub fn config(&self) -> &UNet2DConfig {
        &self.config
    }

    /// The scheduler's configuration.
    pub fn scheduler(&self) -> &SchedulerConfig {
        &self.scheduler
    }

    /// The same pipeline around another network of the same configuration.
    pub fn with_unet(&self, unet: UNet2D) -> Self {
        Self {
            unet,
            ..self.clone()
        }
    }

    /// The pipeline without the units of `removal`: a smaller network, which can be trained like any other. Units are numbered
    /// as in `ChannelGraph::of` this pipeline's configuration.
    ///
    /// # Errors
    /// As [`UNet2D::pruned`].
    pub fn pruned(&self, removal: &Removal) -> Result<Self, DiffusionError> {
        let config = self.config.without(removal)?;
        Ok(Self {
            unet: self.unet.pruned(&self.config, removal, &self.device)?,
            config,
            ..self.clone()
        })
    }

    /// The pipeline with zeros in the place of all units that were taken out: the same answers from a network in diffusers'
    /// layout.
    ///
    /// # Errors
    /// As [`UNet2D::expanded`].
    pub fn expanded(&self) -> Result<Self, DiffusionError> {
        Ok(Self {
            unet: self.unet.expanded(&self.config, &self.device)?,
            config: self.config.whole(),
            ..self.clone()
        })
    }

    /// The same pipeline with frozen weights: gradients flow to inputs only.
    pub fn frozen(&self) -> Self {
        Self {
            unet: self.unet.valid(),
            device: self.device.clone().inner(),
            ..self.clone()
        }
    }

    /// Number of parameters.
    pub fn parameter_count(&self) -> usize {
        self.unet
            .parameters()
            .iter()
            .map(|info| info.shape.iter().product::<usize>())
            .sum()
    }
}

fn scheduler_path(checkpoint: &Checkpoint) -> PathBuf {
    checkpoint
        .root
        .join("scheduler")
        .join("scheduler_config.json")
}

impl Denoiser for Pipeline {
    fn schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }

    fn sample_shape(&self) -> SampleShape {
        self.config.sample_shape()
    }

    fn device(&self) -> Device {
        self.device.clone()
    }

    fn predict(
        &self,
        x_t: Tensor<4>,
        t: &[usize],
        tap: &mut dyn Tap,
    ) -> Result<Prediction, DiffusionError> {
        self.schedule.check_timesteps(t)?;
        let value = self.unet.forward(x_t, t, tap)?;
        Ok(Prediction {
            kind: self.parameterisation(),
            value,
        })
    }

    fn predict_at(
        &self,
        x_t: Tensor<4>,
        time: f64,
        tap: &mut dyn Tap,
    ) -> Result<Prediction, DiffusionError> {
        self.schedule.check_time(time)?;
        let value = self.unet.forward_at(x_t, &[time], tap)?;
        Ok(Prediction {
            kind: self.parameterisation(),
            value,
        })
    }
}

impl Pipeline {
    fn parameterisation(&self) -> Parameterisation {
        self.scheduler.prediction_type
    }
}
