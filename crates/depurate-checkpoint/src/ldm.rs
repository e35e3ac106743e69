//! Single-file checkpoints in the layout of latent-diffusion (CompVis): all networks in one safetensors file.
//!
//! | prefix | network |
//! |---|---|
//! | `model.diffusion_model.` | UNet |
//! | `model_ema.diffusion_model` | its moving average, names without dots |
//! | `first_stage_model.` | autoencoder |
//! | `cond_stage_model.transformer.` | CLIP's text encoder with transformers' names (Stable Diffusion 1) |
//! | `cond_stage_model.model.` | the same with OpenCLIP's names, Q, K and V in one tensor (Stable Diffusion 2) |
//!
//! Names are translated by rules that the configuration's block counts unfold; see [`LdmLayout`]. Nothing is copied: the
//! networks are views of the mapped file. Tables of the noise schedule and the unused end of OpenCLIP's encoder are left out
//! ([`LdmCheckpoint::left_out`]); any other key that is not understood is an error.
//!
//! The moving average is a second UNet in the same file. Programs differ in which one they take, and a backdoor may sit in one
//! of them, so it is kept apart and can be compared.

mod configs;
mod layout;
mod modules;

use std::path::{Path, PathBuf};

pub use configs::{LdmConfigs, LdmFamily};
pub use layout::{LdmLayout, LdmPlace};

use crate::weights::Pick;
use crate::{CheckpointError, Limits, ModelPart, ModelWeights, Result, TensorInfo, Weights};

/// What stands before the names of the moving average.
const EMA: &str = "model_ema.";

/// A single-file checkpoint, taken apart.
#[derive(Debug, Clone)]
pub struct LdmCheckpoint {
    /// The file.
    pub path: PathBuf,
    /// Which Stable Diffusion it is.
    pub family: LdmFamily,
    /// The configurations that belong to it.
    pub configs: LdmConfigs,
    /// UNet, text encoder and autoencoder under the names of diffusers and transformers.
    pub weights: ModelWeights,
    /// The UNet's moving average, if the file holds it.
    pub unet_ema: Option<Weights>,
    /// Keys that belong to no network.
    pub left_out: Vec<String>,
}

impl LdmCheckpoint {
    /// Opens a checkpoint of Stable Diffusion 1 or 2 in its published size.
    ///
    /// # Errors
    /// As [`Weights::open_file`], and when the file is of another family or holds keys that are not understood. Whether
    /// tensors are missing shows when a network is loaded.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self> {
        let weights = Weights::open_file(path, limits)?;
        let family = LdmFamily::detect(path, &weights)?;
        Self::from_weights(path, &weights, family, family.configs())
    }

    /// Takes apart an opened file with these configurations; `path` is named in errors.
    ///
    /// # Errors
    /// A configuration lacks a block count, or the file holds keys that are not understood or tensors of another shape.
    pub fn from_weights(
        path: &Path,
        weights: &Weights,
        family: LdmFamily,
        configs: LdmConfigs,
    ) -> Result<Self> {
        let layout = LdmLayout::new(path, family, &configs)?;
        let mut sorted = Sorted::default();
        for info in weights.infos() {
            sorted.put(info, &layout);
        }
        if !sorted.unknown.is_empty() {
            return Err(CheckpointError::UnknownKeys {
                path: path.into(),
                what: "a single-file checkpoint",
                keys: sorted.unknown,
            });
        }
        let of = |part: ModelPart| -> Result<Option<Weights>> {
            let picks: Vec<Pick> = sorted
                .picks
                .iter()
                .filter(|(of, _)| *of == part)
                .map(|(_, pick)| pick.clone())
                .collect();
            (!picks.is_empty())
                .then(|| weights.pick(&picks))
                .transpose()
        };
        let no_unet = CheckpointError::UnsupportedLayout {
            path: path.into(),
            what: "a checkpoint without a UNet",
            mend: "give the file that holds model.diffusion_model",
        };
        Ok(Self {
            weights: ModelWeights {
                unet: of(ModelPart::Unet)?.ok_or(no_unet)?,
                text_encoder: of(ModelPart::TextEncoder)?,
                vae: of(ModelPart::Vae)?,
            },
            unet_ema: (!sorted.ema.is_empty())
                .then(|| weights.pick(&sorted.ema))
                .transpose()?,
            path: path.into(),
            family,
            configs,
            left_out: sorted.left_out,
        })
    }

    /// The networks alone.
    pub fn into_weights(self) -> ModelWeights {
        self.weights
    }
}

/// A file's tensors by what they are.
#[derive(Default)]
struct Sorted {
    picks: Vec<(ModelPart, Pick)>,
    ema: Vec<Pick>,
    left_out: Vec<String>,
    unknown: Vec<String>,
}

impl Sorted {
    fn put(&mut self, info: &TensorInfo, layout: &LdmLayout) {
        let places = layout.to_diffusers(&info.name);
        if let Some(flat) = info.name.strip_prefix(EMA) {
            match layout.ema_parameter(flat) {
                Some(parameter) => self.ema.push(pick(info, &parameter, None)),
                None if flat == "decay" || flat == "num_updates" => {
                    self.left_out.push(info.name.clone());
                }
                None => self.unknown.push(info.name.clone()),
            }
        } else if !places.is_empty() {
            let picks = places
                .into_iter()
                .map(|place| (place.part, pick(info, &place.parameter, place.third)));
            self.picks.extend(picks);
        } else if layout.is_left_out(&info.name) {
            self.left_out.push(info.name.clone());
        } else {
            self.unknown.push(info.name.clone());
        }
    }
}

fn pick(info: &TensorInfo, parameter: &str, third: Option<usize>) -> Pick {
    let mut shape = match info.shape.as_slice() {
        // the autoencoder's attention has 1x1 convolutions where diffusers has matrices
        [rows, columns, 1, 1] if modules::is_vae_attention(parameter) => vec![*rows, *columns],
        shape => shape.to_vec(),
    };
    if let (Some(_), Some(rows)) = (third, shape.first_mut()) {
        *rows /= 3;
    }
    Pick {
        from: info.name.clone(),
        name: parameter.into(),
        shape,
        third,
    }
}
