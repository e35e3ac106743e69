//! Base and delta: a safetensors file of the tensors that differ from a base model.
//!
//! Names are those of diffusers and transformers with the component in front: `unet.…`, `text_encoder.…`, `vae.…`. A name
//! without one is a parameter of the UNet, as concept-editing code saves them. The metadata entry `delta` says how the tensors
//! are meant:
//!
//! | `delta` | effective weight |
//! |---|---|
//! | `replace`, or no entry | the tensor of the file |
//! | `add` | the base's tensor plus that of the file |

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::{
    CheckpointError, Limits, ModelPart, ModelWeights, Result, SaveTensor, Weights, save_tensors,
};

/// The metadata entry that says how a delta is meant.
const KIND_KEY: &str = "delta";

/// How a delta's tensors are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeltaKind {
    /// In the place of the base's.
    Replace,
    /// Added to the base's.
    Add,
}

impl DeltaKind {
    /// The value of the metadata entry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replace => "replace",
            Self::Add => "add",
        }
    }
}

/// A delta file, opened.
#[derive(Debug, Clone)]
pub struct Delta {
    path: PathBuf,
    kind: DeltaKind,
    weights: Weights,
}

impl Delta {
    /// Opens a delta.
    ///
    /// # Errors
    /// As [`Weights::open_file`], and when its metadata states another kind than the two.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self> {
        Self::from_weights(path, Weights::open_file(path, limits)?)
    }

    /// Takes an opened file for a delta; `path` is named in errors.
    ///
    /// # Errors
    /// Its metadata states another kind than the two.
    pub fn from_weights(path: &Path, weights: Weights) -> Result<Self> {
        let kind = match weights.metadata(KIND_KEY) {
            None | Some("replace") => DeltaKind::Replace,
            Some("add") => DeltaKind::Add,
            Some(other) => {
                return Err(CheckpointError::OutOfBounds {
                    path: path.into(),
                    field: KIND_KEY.into(),
                    got: other.escape_debug().to_string(),
                    allowed: "`replace` or `add`",
                });
            }
        };
        Ok(Self {
            path: path.into(),
            kind,
            weights,
        })
    }

    /// How its tensors are meant.
    pub fn kind(&self) -> DeltaKind {
        self.kind
    }

    /// Lays the delta over a base, and says what it changes: component and stored name, in order.
    ///
    /// # Errors
    /// A name is not one of the base's, a component is missing, or a shape differs. The base may then be changed in part.
    pub fn apply(&self, onto: &mut ModelWeights) -> Result<Vec<(ModelPart, String)>> {
        let mut unknown = Vec::new();
        let mut places = Vec::new();
        for info in self.weights.infos() {
            match place(&info.name, onto) {
                Some((part, target)) => places.push((info.name.clone(), part, target)),
                None => unknown.push(info.name.clone()),
            }
        }
        if !unknown.is_empty() {
            return Err(CheckpointError::UnknownKeys {
                path: self.path.clone(),
                what: "a delta",
                keys: unknown,
            });
        }
        let mut changed = Vec::with_capacity(places.len());
        for (stored, part, target) in places {
            let weights = onto.get_mut(part, &self.path)?;
            match self.kind {
                DeltaKind::Replace => weights.replace(&target, &self.weights, &stored)?,
                DeltaKind::Add => weights.add(&target, &self.weights, &stored, 1.0)?,
            }
            changed.push((part, target));
        }
        Ok(changed)
    }
}

/// The component and stored name that a delta's name stands for.
fn place(name: &str, onto: &ModelWeights) -> Option<(ModelPart, String)> {
    let prefixed = ModelPart::ALL.iter().find_map(|&part| {
        let parameter = name.strip_prefix(part.as_str())?.strip_prefix('.')?;
        Some((part, onto.stored_name(part, parameter)?))
    });
    let bare = || Some((ModelPart::Unet, onto.stored_name(ModelPart::Unet, name)?));
    prefixed.or_else(bare)
}

/// Writes a delta in F32; names carry the component in front, as in `unet.conv_in.weight`.
///
/// # Errors
/// As [`save_tensors`].
pub fn save_delta(path: &Path, kind: DeltaKind, tensors: &[SaveTensor]) -> Result<()> {
    let metadata = HashMap::from([
        ("format".to_owned(), "pt".to_owned()),
        (KIND_KEY.to_owned(), kind.as_str().to_owned()),
    ]);
    save_tensors(path, tensors, Some(metadata))
}
