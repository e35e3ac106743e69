//! The networks of a text-to-image model: UNet, text encoder and autoencoder.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use crate::{
    CheckpointError, LdmCheckpoint, Limits, Result, TRANSFORMERS_STEM, UNET_STEM, Weights,
};

/// A network of a text-to-image model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelPart {
    /// The denoising network.
    Unet,
    /// The text encoder.
    TextEncoder,
    /// The autoencoder.
    Vae,
}

impl ModelPart {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Unet, Self::TextEncoder, Self::Vae];

    /// The name of its directory: `unet`, `text_encoder`, `vae`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::TextEncoder => "text_encoder",
            Self::Vae => "vae",
        }
    }

    /// Start of the file names of its weights in a pipeline directory.
    pub fn stem(self) -> &'static str {
        match self {
            Self::TextEncoder => TRANSFORMERS_STEM,
            Self::Unet | Self::Vae => UNET_STEM,
        }
    }
}

impl fmt::Display for ModelPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The weights of a text-to-image model's networks, under the names of diffusers and transformers. Other files can be laid over
/// them: see [`Layers`](crate::Layers).
#[derive(Debug, Clone)]
pub struct ModelWeights {
    /// The denoising network.
    pub unet: Weights,
    /// The text encoder, where the model has one.
    pub text_encoder: Option<Weights>,
    /// The autoencoder, where the model has one.
    pub vae: Option<Weights>,
}

impl ModelWeights {
    /// Opens a pipeline directory or a single-file checkpoint of Stable Diffusion 1 or 2.
    ///
    /// # Errors
    /// As [`ModelWeights::open_dir`] and [`LdmCheckpoint::open`].
    pub fn open(path: &Path, limits: &Limits) -> Result<Self> {
        if path.is_file() {
            return Ok(LdmCheckpoint::open(path, limits)?.into_weights());
        }
        Self::open_dir(path, limits)
    }

    /// Opens the networks in a pipeline directory, or the UNet alone if `root` is its directory. A text encoder or autoencoder
    /// whose directory is missing is `None`.
    ///
    /// # Errors
    /// As [`Weights::open_dir`], for each of the networks.
    pub fn open_dir(root: &Path, limits: &Limits) -> Result<Self> {
        let own = |part: ModelPart| root.join(part.as_str());
        let open = |dir: &Path, part: ModelPart| Weights::open_dir(dir, part.stem(), None, limits);
        let present = |part: ModelPart| own(part).is_dir().then(|| open(&own(part), part));
        let unet = match present(ModelPart::Unet) {
            Some(unet) => unet?,
            None => open(root, ModelPart::Unet)?,
        };
        Ok(Self {
            unet,
            text_encoder: present(ModelPart::TextEncoder).transpose()?,
            vae: present(ModelPart::Vae).transpose()?,
        })
    }

    /// The weights of one network.
    pub fn get(&self, part: ModelPart) -> Option<&Weights> {
        match part {
            ModelPart::Unet => Some(&self.unet),
            ModelPart::TextEncoder => self.text_encoder.as_ref(),
            ModelPart::Vae => self.vae.as_ref(),
        }
    }

    /// The weights of one network, to be changed.
    ///
    /// # Errors
    /// The model does not have it; `path` is the file that would change it.
    pub fn get_mut(&mut self, part: ModelPart, path: &Path) -> Result<&mut Weights> {
        let found = match part {
            ModelPart::Unet => Some(&mut self.unet),
            ModelPart::TextEncoder => self.text_encoder.as_mut(),
            ModelPart::Vae => self.vae.as_mut(),
        };
        found.ok_or_else(|| CheckpointError::NoPart {
            path: path.into(),
            part,
        })
    }

    /// The stored name of a parameter. Text encoders are stored with and without `text_model.` in front of every name; either
    /// is found by the other.
    pub fn stored_name(&self, part: ModelPart, parameter: &str) -> Option<String> {
        const CLASSIC: &str = "text_model.";
        let weights = self.get(part)?;
        let has = |name: &str| weights.get(name).map(|info| info.name.clone());
        has(parameter).or_else(|| {
            if part != ModelPart::TextEncoder {
                return None;
            }
            match parameter.strip_prefix(CLASSIC) {
                Some(short) => has(short),
                None => has(&format!("{CLASSIC}{parameter}")),
            }
        })
    }
}
