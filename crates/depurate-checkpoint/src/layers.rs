//! Everything that a user may lay over a base model, in one order.

use std::convert::Infallible;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::{
    Delta, Limits, Lora, ModelPart, ModelWeights, Result, TextualInversion, UNET_STEM, Weights,
};

/// A file with a strength: `FILE` or `FILE:0.8`.
#[derive(Debug, Clone, PartialEq)]
pub struct ScaledFile {
    /// The file, or the directory of a PEFT adapter.
    pub path: PathBuf,
    /// What its change is multiplied by.
    pub scale: f32,
}

impl FromStr for ScaledFile {
    type Err = Infallible;

    /// What stands behind the last colon is the strength if it is a finite number, else part of the name.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        let scaled = text.rsplit_once(':').and_then(|(path, scale)| {
            let scale = scale.parse().ok().filter(|s: &f32| s.is_finite())?;
            (!path.is_empty()).then(|| Self {
                path: path.into(),
                scale,
            })
        });
        Ok(scaled.unwrap_or_else(|| Self {
            path: text.into(),
            scale: 1.0,
        }))
    }
}

impl fmt::Display for ScaledFile {
    /// As it is parsed; the strength always stands there, so that a colon in the name is none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.scale)
    }
}

/// Files to lay over a base model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Layers {
    /// A whole UNet in the place of the base's: a safetensors file, or a directory with one.
    pub unet: Option<PathBuf>,
    /// Deltas.
    pub deltas: Vec<PathBuf>,
    /// LoRAs.
    pub loras: Vec<ScaledFile>,
    /// Textual inversions.
    pub embeddings: Vec<PathBuf>,
}

/// A token that a textual inversion added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedTokens {
    /// The file.
    pub path: PathBuf,
    /// The tokens, one for each vector; a prompt that holds the first stands for all of them in a row.
    pub tokens: Vec<String>,
    /// Their ids.
    pub ids: Range<usize>,
}

impl Layers {
    /// Whether there is nothing to lay over.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Lays everything over `base`: first the UNet, then deltas, LoRAs and textual inversions, each in its order. Returns the
    /// tokens that the text encoder has got; its configuration must then state the larger `vocab_size`.
    ///
    /// # Errors
    /// A file cannot be read or does not fit the base, which may then be changed in part.
    pub fn apply(&self, base: &mut ModelWeights, limits: &Limits) -> Result<Vec<AddedTokens>> {
        if let Some(path) = &self.unet {
            base.unet = open_unet(path, limits)?;
        }
        for path in &self.deltas {
            Delta::open(path, limits)?.apply(base)?;
        }
        for ScaledFile { path, scale } in &self.loras {
            Lora::open(path, base, limits)?.apply(base, *scale)?;
        }
        let added = self.embeddings.iter().map(|path| {
            let learnt = TextualInversion::open(path, limits)?;
            Ok(AddedTokens {
                path: path.clone(),
                tokens: learnt.tokens(),
                ids: learnt.apply(base)?,
            })
        });
        added.collect()
    }
}

/// A UNet's weights: the file itself, or those of a directory that is a UNet or a pipeline.
fn open_unet(path: &Path, limits: &Limits) -> Result<Weights> {
    if !path.is_dir() {
        return Weights::open_file(path, limits);
    }
    let inner = path.join(ModelPart::Unet.as_str());
    let dir = if inner.is_dir() { &inner } else { path };
    Weights::open_dir(dir, UNET_STEM, None, limits)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_strength_stands_behind_the_last_colon() {
        let of = |text: &str| text.parse::<ScaledFile>().unwrap();
        let scaled = |path: &str, scale| ScaledFile {
            path: path.into(),
            scale,
        };
        assert_eq!(of("a.safetensors"), scaled("a.safetensors", 1.0));
        assert_eq!(of("a.safetensors:0.5"), scaled("a.safetensors", 0.5));
        assert_eq!(of("a:b:-1"), scaled("a:b", -1.0));
        // no strength, but names
        assert_eq!(of("c:\\lora"), scaled("c:\\lora", 1.0));
        assert_eq!(of("a:inf"), scaled("a:inf", 1.0));
        assert_eq!(of(":2"), scaled(":2", 1.0));
    }
}
