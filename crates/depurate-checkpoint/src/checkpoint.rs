//! A diffusers directory: a pipeline with `model_index.json`, or a bare UNet with `config.json`.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::{CheckpointError, Component, Limits, PipelineIndex, Result, Weights, read_json};

/// Start of the file names of a diffusers model's weights.
pub const UNET_STEM: &str = "diffusion_pytorch_model";

/// Start of the file names of the weights of a model of transformers, such as a text encoder.
pub const TRANSFORMERS_STEM: &str = "model";

/// What a directory is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckpointKind {
    /// A pipeline.
    Pipeline {
        /// Class of the pipeline, for example `DDPMPipeline`.
        class_name: String,
        /// Its components.
        components: Vec<Component>,
    },
    /// A UNet alone.
    BareUnet,
}

/// An opened checkpoint: configurations are read, weights are not.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// The directory as given.
    pub root: PathBuf,
    /// Pipeline or bare UNet.
    pub kind: CheckpointKind,
    unet_dir: PathBuf,
    unet_config: Map<String, Value>,
    scheduler_config: Option<Map<String, Value>>,
}

impl Checkpoint {
    /// Opens a pipeline directory or a bare UNet directory. A text-to-image pipeline opens too: ask
    /// [`Checkpoint::is_text_conditional`] before treating it as an image model.
    ///
    /// # Errors
    /// The directory is missing or neither of the two, a JSON file in it is unusable, or the pipeline has no `unet`.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self> {
        let seen = std::fs::metadata(path).map_err(|e| CheckpointError::io("open", path, e))?;
        if !seen.is_dir() {
            return Err(CheckpointError::NotADirectory { path: path.into() });
        }
        let index_path = path.join("model_index.json");
        if exists(&index_path) {
            return Self::open_pipeline(path, PipelineIndex::read(&index_path, limits)?, limits);
        }
        let config_path = path.join("config.json");
        if !exists(&config_path) {
            return Err(CheckpointError::NotACheckpoint { path: path.into() });
        }
        let scheduler_path = path.join("scheduler_config.json");
        Ok(Self {
            root: path.into(),
            kind: CheckpointKind::BareUnet,
            unet_dir: path.into(),
            unet_config: read_json(&config_path, limits)?,
            scheduler_config: match exists(&scheduler_path) {
                true => Some(read_json(&scheduler_path, limits)?),
                false => None,
            },
        })
    }

    fn open_pipeline(root: &Path, index: PipelineIndex, limits: &Limits) -> Result<Self> {
        if index.component("unet").is_none() {
            return Err(CheckpointError::NoUnet {
                path: root.into(),
                class_name: index.class_name,
            });
        }
        let unet_dir = component_dir(root, "unet");
        let unet_config = read_json(&unet_dir.join("config.json"), limits)?;
        let scheduler_config = match index.component("scheduler") {
            Some(_) => {
                let dir = component_dir(root, "scheduler");
                Some(read_json(&dir.join("scheduler_config.json"), limits)?)
            }
            None => None,
        };
        let PipelineIndex {
            class_name,
            components,
        } = index;
        Ok(Self {
            root: root.into(),
            kind: CheckpointKind::Pipeline {
                class_name,
                components,
            },
            unet_dir,
            unet_config,
            scheduler_config,
        })
    }

    /// The directory of the UNet's `config.json` and weights.
    pub fn unet_dir(&self) -> &Path {
        &self.unet_dir
    }

    /// The UNet's `config.json`.
    pub fn unet_config(&self) -> &Map<String, Value> {
        &self.unet_config
    }

    /// Class of the UNet: as the pipeline names it, else as its `config.json` does.
    pub fn unet_class(&self) -> Option<&str> {
        match &self.kind {
            CheckpointKind::Pipeline { components, .. } => components
                .iter()
                .find(|c| c.name == "unet")
                .map(|c| c.class_name.as_str()),
            CheckpointKind::BareUnet => self.config_class(),
        }
    }

    /// Class of the pipeline, if it is one.
    pub fn pipeline_class(&self) -> Option<&str> {
        match &self.kind {
            CheckpointKind::Pipeline { class_name, .. } => Some(class_name),
            CheckpointKind::BareUnet => None,
        }
    }

    /// `scheduler_config.json`; `None` for a bare UNet that has none beside it.
    pub fn scheduler_config(&self) -> Option<&Map<String, Value>> {
        self.scheduler_config.as_ref()
    }

    /// Whether the model is conditioned on text: the pipeline has a text encoder or a tokenizer, or the UNet is a
    /// `UNet2DConditionModel` by the pipeline or by its own `config.json`.
    pub fn is_text_conditional(&self) -> bool {
        const CONDITIONED: Option<&str> = Some("UNet2DConditionModel");
        let has_text_part = match &self.kind {
            CheckpointKind::Pipeline { components, .. } => {
                components.iter().any(Component::is_text)
            }
            CheckpointKind::BareUnet => false,
        };
        has_text_part || self.unet_class() == CONDITIONED || self.config_class() == CONDITIONED
    }

    fn config_class(&self) -> Option<&str> {
        self.unet_config.get("_class_name").and_then(Value::as_str)
    }

    /// The component of a pipeline that is called `name`.
    ///
    /// # Errors
    /// The pipeline names no such component, or this is a UNet alone.
    pub fn component(&self, name: &'static str) -> Result<&Component> {
        let components = match &self.kind {
            CheckpointKind::Pipeline { components, .. } => components.as_slice(),
            CheckpointKind::BareUnet => &[],
        };
        let found = components.iter().find(|c| c.name == name);
        found.ok_or_else(|| CheckpointError::NoComponent {
            path: self.root.clone(),
            component: name,
        })
    }

    /// The directory of the component called `name`.
    ///
    /// # Errors
    /// As [`Checkpoint::component`].
    pub fn component_dir(&self, name: &'static str) -> Result<PathBuf> {
        self.component(name)
            .map(|component| self.root.join(&component.name))
    }

    /// Reads the `config.json` of the component called `name`.
    ///
    /// # Errors
    /// As [`Checkpoint::component`] and [`read_json`].
    pub fn component_config(
        &self,
        name: &'static str,
        limits: &Limits,
    ) -> Result<Map<String, Value>> {
        read_json(&self.component_dir(name)?.join("config.json"), limits)
    }

    /// Opens the weights of the component called `name`; `stem` is the start of their files' names.
    ///
    /// # Errors
    /// As [`Checkpoint::component`] and [`Weights::open_dir`].
    pub fn component_weights(
        &self,
        name: &'static str,
        stem: &str,
        limits: &Limits,
    ) -> Result<Weights> {
        Weights::open_dir(&self.component_dir(name)?, stem, None, limits)
    }

    /// Opens the UNet's weights.
    ///
    /// # Errors
    /// As [`Weights::open_dir`].
    pub fn unet_weights(&self, limits: &Limits) -> Result<Weights> {
        Weights::open_dir(&self.unet_dir, UNET_STEM, None, limits)
    }
}

/// Where a component's files are: in the directory of its name, or, as in the first published DDPM pipelines, in the root.
fn component_dir(root: &Path, name: &str) -> PathBuf {
    let dir = root.join(name);
    if dir.is_dir() { dir } else { root.into() }
}

/// Whether there is anything of this name, even if it cannot be read: a broken link is an error to report, not an absence.
fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
