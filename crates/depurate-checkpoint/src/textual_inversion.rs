//! Textual inversions: vectors that were learnt for a new token.
//!
//! | layout | key | shape |
//! |---|---|---|
//! | diffusers | the token itself, as in `<cat-toy>` | `[C]` or `[n, C]` |
//! | A1111 | `emb_params`; the token is the file's name | `[n, C]` |
//!
//! Of a token with several vectors the further ones are called `token_1`, `token_2`, …, as diffusers does.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::{CheckpointError, Limits, ModelPart, ModelWeights, Result, Weights};

/// The key of A1111's layout.
const A1111_KEY: &str = "emb_params";
/// Where a text encoder keeps its tokens.
const TABLE: &str = "text_model.embeddings.token_embedding.weight";
/// Most vectors of one token: as many as a prompt has places.
const MOST_VECTORS: usize = 77;

/// A file of one learnt token.
#[derive(Debug, Clone)]
pub struct TextualInversion {
    path: PathBuf,
    token: String,
    count: usize,
    width: usize,
    key: String,
    weights: Weights,
}

impl TextualInversion {
    /// Opens a learnt token.
    ///
    /// # Errors
    /// As [`Weights::open_file`], and when the file does not hold the vectors of exactly one token for one text encoder.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self> {
        Self::from_weights(path, Weights::open_file(path, limits)?)
    }

    /// Takes an opened file for a learnt token; `path` is named in errors, and its stem is the token in A1111's layout.
    ///
    /// # Errors
    /// The file does not hold the vectors of exactly one token for one text encoder.
    pub fn from_weights(path: &Path, weights: Weights) -> Result<Self> {
        let keys: Vec<String> = weights.infos().map(|info| info.name.clone()).collect();
        if keys.iter().any(|key| key == "clip_l" || key == "clip_g") {
            return Err(CheckpointError::UnsupportedLayout {
                path: path.into(),
                what: "a textual inversion for the two text encoders of SDXL",
                mend: "give one for Stable Diffusion 1 or 2",
            });
        }
        let [key] = keys.as_slice() else {
            return Err(CheckpointError::UnknownKeys {
                path: path.into(),
                what: "the vectors of one token",
                keys,
            });
        };
        let shape = weights.get(key).map(|info| info.shape.clone());
        let (count, width) = match shape.as_deref() {
            Some(&[width]) => (1, width),
            Some(&[count, width]) => (count, width),
            _ => (0, 0),
        };
        if count == 0 || count > MOST_VECTORS || width == 0 {
            return Err(CheckpointError::OutOfBounds {
                path: path.into(),
                field: key.clone(),
                got: format!("{:?}", shape.unwrap_or_default()),
                allowed: "[C] or [n, C] with n from 1 to 77",
            });
        }
        let token = if key == A1111_KEY {
            let stem = path.file_stem().unwrap_or_default();
            stem.to_string_lossy().replace(char::is_control, "")
        } else {
            key.clone()
        };
        let key = key.clone();
        weights.read_f32(&key)?;
        Ok(Self {
            path: path.into(),
            token,
            count,
            width,
            key,
            weights,
        })
    }

    /// The token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The token and, if it has several vectors, the ones after it: one for each vector.
    pub fn tokens(&self) -> Vec<String> {
        let name = |i: usize| match i {
            0 => self.token.clone(),
            i => format!("{}_{i}", self.token),
        };
        (0..self.count).map(name).collect()
    }

    /// `(n, C)`: vectors and their width.
    pub fn shape(&self) -> (usize, usize) {
        (self.count, self.width)
    }

    /// The vectors, `[n, C]`.
    ///
    /// # Errors
    /// As [`Weights::read_f32`].
    pub fn vectors(&self) -> Result<Vec<f32>> {
        self.weights.read_f32(&self.key)
    }

    /// Appends the vectors to a text encoder's table of tokens, and says which ids they have got. The encoder's configuration
    /// must then state the larger `vocab_size`.
    ///
    /// # Errors
    /// The model has no text encoder or table, or its width is another.
    pub fn apply(&self, onto: &mut ModelWeights) -> Result<Range<usize>> {
        let part = ModelPart::TextEncoder;
        let table = onto
            .stored_name(part, TABLE)
            .ok_or_else(|| CheckpointError::NoPart {
                path: self.path.clone(),
                part,
            })?;
        onto.get_mut(part, &self.path)?
            .append_rows(&table, &self.weights, &self.key)
    }
}
