//! Low-rank adapters (LoRA), in the layouts that are published.
//!
//! ```text
//! W' = W + s (alpha / r) U V,   U [m, r] "up" or "B",   V [r, n] "down" or "A"
//! ```
//!
//! | layout | a key of it | alpha |
//! |---|---|---|
//! | kohya | `lora_unet_down_blocks_0_…_to_k.lora_down.weight` | `….alpha` |
//! | diffusers | `unet.down_blocks.0.….to_k.lora_A.weight`, or `.lora.down.weight` | `….alpha`, metadata, else `r` |
//! | attention processors | `down_blocks.0.….attn2.processor.to_k_lora.down.weight` | `r` |
//! | PEFT | `base_model.model.down_blocks.0.….to_k.lora_A.weight` | `adapter_config.json` beside it |
//!
//! Kohya's names have lost their dots. They are found in the table of the model's own names, and never guessed. Convolutions
//! have `V [r, c, h, w]` and `U [m, r, 1, 1]`. Every key must name a parameter of the model; layouts that are no sum of a
//! low-rank product (DoRA, LoHa, LoKr, Tucker form) are refused by name.

mod names;
mod scaling;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::{CheckpointError, Limits, LowRank, ModelPart, ModelWeights, Result, Weights};
use names::{Key, ModuleNames, Role};
use scaling::Scaling;

/// The file of a PEFT adapter in its directory.
const PEFT_WEIGHTS: &str = "adapter_model.safetensors";
/// The file of a diffusers LoRA in its directory.
const DIFFUSERS_WEIGHTS: &str = "pytorch_lora_weights.safetensors";

/// How an adapter names its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraLayout {
    /// Names without dots, as kohya's scripts write them.
    Kohya,
    /// Names of diffusers with the component in front.
    Diffusers,
    /// Names of diffusers' former attention processors.
    AttentionProcessors,
    /// Names of PEFT.
    Peft,
}

/// One adapted parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraPair {
    /// The network.
    pub part: ModelPart,
    /// The parameter that it changes, as the model stores it.
    pub parameter: String,
    /// `r`.
    pub rank: usize,
    /// `alpha / r`, or as the adapter's configuration says.
    pub scale: f32,
    /// `[m, n]`: first dimension of the parameter, product of the others.
    pub shape: (usize, usize),
    up: String,
    down: String,
}

/// The factors of one adapted parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraFactors {
    /// `U [m, r]`.
    pub up: Vec<f32>,
    /// `V [r, n]`.
    pub down: Vec<f32>,
}

/// An adapter that fits a model.
#[derive(Debug, Clone)]
pub struct Lora {
    path: PathBuf,
    layout: LoraLayout,
    weights: Weights,
    pairs: Vec<LoraPair>,
}

impl Lora {
    /// Opens an adapter, a file or a directory, for the model `onto`.
    ///
    /// # Errors
    /// The file cannot be read, is of a layout that is not supported, holds a key that names no parameter of the model, half a
    /// pair, a shape that does not fit, or a factor that is not finite.
    pub fn open(path: &Path, onto: &ModelWeights, limits: &Limits) -> Result<Self> {
        let file = if path.is_dir() {
            let peft = path.join(PEFT_WEIGHTS);
            if peft.exists() {
                peft
            } else {
                path.join(DIFFUSERS_WEIGHTS)
            }
        } else {
            path.to_path_buf()
        };
        let weights = Weights::open_file(&file, limits)?;
        let config = scaling::beside(&file, limits)?;
        Self::from_weights(&file, weights, config.as_ref(), onto, limits)
    }

    /// Takes an opened file for an adapter of `onto`. `config` is PEFT's `adapter_config.json`, which its layout needs; `path`
    /// is named in errors.
    ///
    /// # Errors
    /// As [`Lora::open`], without those of the file system.
    pub fn from_weights(
        path: &Path,
        weights: Weights,
        config: Option<&serde_json::Map<String, serde_json::Value>>,
        onto: &ModelWeights,
        limits: &Limits,
    ) -> Result<Self> {
        let (layout, halves) = group(path, &weights, &ModuleNames::of(onto))?;
        let scaling = Scaling::read(path, layout, &weights, config, limits)?;
        let mut pairs = Vec::with_capacity(halves.len());
        for ((part, parameter), half) in halves {
            pairs.push(half.pair(path, part, parameter, &weights, &scaling, onto)?);
        }
        let lora = Self {
            path: path.into(),
            layout,
            weights,
            pairs,
        };
        lora.weights.check_finite()?;
        Ok(lora)
    }

    /// How it names its tensors.
    pub fn layout(&self) -> LoraLayout {
        self.layout
    }

    /// What it changes, ordered by component and parameter.
    pub fn pairs(&self) -> &[LoraPair] {
        &self.pairs
    }

    /// The factors of one of its pairs.
    ///
    /// # Errors
    /// The pair is another adapter's.
    pub fn factors(&self, pair: &LoraPair) -> Result<LoraFactors> {
        Ok(LoraFactors {
            up: self.weights.read_f32(&pair.up)?,
            down: self.weights.read_f32(&pair.down)?,
        })
    }

    /// Lays the adapter over the model that it was opened for, `scale` times.
    ///
    /// # Errors
    /// The model is another one. It may then be changed in part.
    pub fn apply(&self, onto: &mut ModelWeights, scale: f32) -> Result<()> {
        for pair in &self.pairs {
            let weights = onto.get_mut(pair.part, &self.path)?;
            weights.add_low_rank(
                &pair.parameter,
                LowRank {
                    factors: &self.weights,
                    up: &pair.up,
                    down: &pair.down,
                    scale: scale * pair.scale,
                },
            )?;
        }
        Ok(())
    }
}

/// The keys of one parameter, as they are found.
#[derive(Debug, Default)]
struct Halves {
    up: Option<String>,
    down: Option<String>,
    alpha: Option<String>,
    module: String,
}

impl Halves {
    fn pair(
        self,
        path: &Path,
        part: ModelPart,
        parameter: String,
        weights: &Weights,
        scaling: &Scaling,
        onto: &ModelWeights,
    ) -> Result<LoraPair> {
        let unpaired = |key: &Option<String>, missing: &str| CheckpointError::Unpaired {
            path: path.into(),
            key: key.clone().unwrap_or_else(|| self.module.clone()),
            missing: format!("{} of {}", missing, self.module),
        };
        let (up, down) = match (&self.up, &self.down) {
            (Some(up), Some(down)) => (up.clone(), down.clone()),
            (Some(_), None) => return Err(unpaired(&self.up, "the factor \"down\" or \"A\"")),
            (None, Some(_)) => return Err(unpaired(&self.down, "the factor \"up\" or \"B\"")),
            (None, None) => return Err(unpaired(&self.alpha, "both factors")),
        };
        let target = onto.get(part).and_then(|weights| weights.get(&parameter));
        let shapes = weights.get(&up).zip(weights.get(&down)).zip(target);
        let Some(((up_info, down_info), target)) = shapes else {
            return Err(unpaired(&self.up, "the parameter"));
        };
        let rank = crate::weights::rank(up_info, down_info, &parameter, &target.shape)?;
        let (m, n) = (target.shape[0], target.shape[1..].iter().product());
        let alpha = self.alpha.map(|key| scaling::alpha(path, weights, &key));
        Ok(LoraPair {
            part,
            scale: scaling.of(part, &self.module, rank, alpha.transpose()?),
            parameter,
            rank,
            shape: (m, n),
            up,
            down,
        })
    }
}

type Grouped = BTreeMap<(ModelPart, String), Halves>;

/// Sorts the keys by the parameters that they change.
fn group(path: &Path, weights: &Weights, modules: &ModuleNames) -> Result<(LoraLayout, Grouped)> {
    let mut grouped = Grouped::new();
    let mut layouts = Vec::new();
    let mut unknown = Vec::new();
    for info in weights.infos() {
        if let Some((what, mend)) = names::refused(&info.name) {
            return Err(CheckpointError::UnsupportedLayout {
                path: path.into(),
                what,
                mend,
            });
        }
        let key = Key::parse(&info.name);
        let Some((key, place)) = key.and_then(|key| modules.find(&key).map(|place| (key, place)))
        else {
            unknown.push(info.name.clone());
            continue;
        };
        layouts.push(key.layout);
        let halves = grouped.entry(place).or_default();
        halves.module = key.module.clone();
        let slot = match key.role {
            Role::Up => &mut halves.up,
            Role::Down => &mut halves.down,
            Role::Alpha => &mut halves.alpha,
        };
        if slot.replace(info.name.clone()).is_some() {
            return Err(CheckpointError::DuplicateTensor {
                path: path.into(),
                tensor: info.name.clone(),
            });
        }
    }
    // Alphas alone do not tell the layout, so the most telling key counts.
    match layouts
        .into_iter()
        .min_by_key(|layout| names::certainty(*layout))
    {
        Some(layout) if unknown.is_empty() => Ok((layout, grouped)),
        _ => Err(CheckpointError::UnknownKeys {
            path: path.into(),
            what: "a LoRA",
            keys: unknown,
        }),
    }
}
