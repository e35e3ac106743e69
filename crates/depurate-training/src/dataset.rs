//! Training images, kept as bytes and decoded a batch at a time.
//!
//! | source | what is read |
//! |---|---|
//! | a safetensors file with `images` | bytes `[N, H, W, C]`, C = 1 or 3; `split` `[N]` (0 train, 1 test) if there is one |
//! | a safetensors file with `sprites` | bytes `[objects, styles, H, W, 4]`, straight alpha, composited on a background colour |
//! | a folder | every `*.png` in it, in the order of their names |
//!
//! An image smaller than the model's size is padded with black, -1, on all sides (MNIST, 28 to 32
//! pixels); a larger one is scaled down. Grey is the mean weight of ITU-R BT.709, as `image` has it.

mod read;

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use depurate_diffusion::{SampleShape, noise::SeedTree};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::TrainingError;

/// Which part of a file with a `split` tensor is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Images marked 0.
    #[default]
    Train,
    /// Images marked 1.
    Test,
    /// All images.
    All,
}

/// How images are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DatasetParams {
    /// Which part of a file that has a split.
    pub split: Split,
    /// At most so many images, chosen by `subset_seed`; `None` takes all.
    pub limit: Option<usize>,
    /// Chooses the subset.
    pub subset_seed: u64,
    /// What is behind sprites, RGB.
    pub background: [u8; 3],
}

impl Default for DatasetParams {
    fn default() -> Self {
        Self {
            split: Split::Train,
            limit: None,
            subset_seed: 0,
            background: [0, 0, 0],
        }
    }
}

/// Images of one shape.
#[derive(Debug, Clone)]
pub struct Dataset {
    shape: SampleShape,
    /// `[N, C, H, W]`.
    bytes: Vec<u8>,
}

impl Dataset {
    /// Reads the file or folder `path` for a model of `shape` (1 or 3 channels).
    ///
    /// # Errors
    /// When nothing usable is there, a file is malformed or too large, or no image is left.
    pub fn read(
        path: &Path,
        shape: SampleShape,
        params: &DatasetParams,
    ) -> Result<Self, TrainingError> {
        if shape.channels != 1 && shape.channels != 3 {
            return Err(TrainingError::Params {
                what: "number of image channels",
                got: shape.channels.to_string(),
                allowed: "1 (grey) or 3 (RGB)",
            });
        }
        let mut images = read::pictures(path, params)?;
        if let Some(limit) = params.limit.filter(|&limit| limit < images.len()) {
            images.shuffle(&mut SeedTree::new(params.subset_seed).child("subset", 0).rng());
            images.truncate(limit);
        }
        if images.is_empty() {
            return Err(TrainingError::Data {
                path: path.into(),
                reason: "holds no image of the chosen split".into(),
            });
        }
        let mut bytes = Vec::with_capacity(images.len() * shape.len());
        for picture in &images {
            picture.fit_into(shape, &mut bytes);
        }
        Ok(Self { shape, bytes })
    }

    /// Images given as bytes `[N, C, H, W]`, 0 is -1 and 255 is 1.
    ///
    /// # Errors
    /// When there is no image or the number of bytes is not a multiple of the shape's.
    pub fn from_bytes(shape: SampleShape, bytes: Vec<u8>) -> Result<Self, TrainingError> {
        if shape.is_empty() || bytes.is_empty() || !bytes.len().is_multiple_of(shape.len()) {
            return Err(TrainingError::Params {
                what: "number of image bytes",
                got: bytes.len().to_string(),
                allowed: "a positive multiple of C * H * W",
            });
        }
        Ok(Self { shape, bytes })
    }

    /// These images and then `other`.
    ///
    /// # Errors
    /// When their shapes differ.
    pub fn joined(mut self, other: Self) -> Result<Self, TrainingError> {
        if other.shape != self.shape {
            return Err(TrainingError::Params {
                what: "shape of the images",
                got: format!("{:?}", other.shape),
                allowed: "that of the others",
            });
        }
        self.bytes.extend(other.bytes);
        Ok(self)
    }

    /// The images whose index is `kept`.
    ///
    /// # Errors
    /// When none is.
    pub fn keeping(&self, kept: impl Fn(usize) -> bool) -> Result<Self, TrainingError> {
        let images = self.bytes.chunks_exact(self.shape.len()).enumerate();
        let bytes = images.filter(|(i, _)| kept(*i)).flat_map(|(_, b)| b);
        Self::from_bytes(self.shape, bytes.copied().collect())
    }

    /// Number of images.
    #[expect(clippy::len_without_is_empty, reason = "a data set is never empty")]
    pub fn len(&self) -> usize {
        self.bytes.len() / self.shape.len()
    }

    /// Shape of one image.
    pub fn shape(&self) -> SampleShape {
        self.shape
    }

    /// All images `[N, C, H, W]` in [-1, 1].
    pub fn all(&self, device: &Device) -> Tensor<4> {
        let indices: Vec<usize> = (0..self.len()).collect();
        self.batch(&indices, &[], device)
    }

    /// The images `[B, C, H, W]` in [-1, 1] at `indices` (taken modulo the length), those marked in
    /// `flip` mirrored left to right.
    pub fn batch(&self, indices: &[usize], flip: &[bool], device: &Device) -> Tensor<4> {
        let mut values = Vec::with_capacity(indices.len() * self.shape.len());
        for (i, &index) in indices.iter().enumerate() {
            let start = (index % self.len()) * self.shape.len();
            let image = &self.bytes[start..start + self.shape.len()];
            for row in image.chunks_exact(self.shape.width) {
                if flip.get(i).copied().unwrap_or(false) {
                    values.extend(row.iter().rev().map(|&byte| from_byte(byte)));
                } else {
                    values.extend(row.iter().map(|&byte| from_byte(byte)));
                }
            }
        }
        Tensor::from_data(
            TensorData::new(values, self.shape.batched(indices.len())),
            device,
        )
    }
}

/// A PNG as `[C, H, W]`, fitted to `shape` as training images are.
pub fn read_png(path: &Path, shape: SampleShape) -> Result<Vec<u8>, TrainingError> {
    let mut bytes = Vec::with_capacity(shape.len());
    read::png(path)?.fit_into(shape, &mut bytes);
    Ok(bytes)
}

/// A PNG as bytes `[side, side, 4]`, scaled to the square, with straight alpha.
pub fn read_rgba(path: &Path, side: usize) -> Result<Vec<u8>, TrainingError> {
    Ok(read::png(path)?.square(side))
}

/// A byte's value in [-1, 1].
pub fn from_byte(byte: u8) -> f32 {
    f32::from(byte) / 127.5 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_cover_the_range_and_flips_mirror_rows() {
        let shape = SampleShape {
            channels: 1,
            height: 1,
            width: 2,
        };
        let data = Dataset::from_bytes(shape, vec![0, 255, 255, 255]).expect("valid");
        let batch = data.batch(&[0, 0, 1], &[false, true, false], &Device::flex());
        let values: Vec<f32> = batch.into_data().iter::<f32>().collect();
        assert_eq!(values, [-1.0, 1.0, 1.0, -1.0, 1.0, 1.0]);
    }

    #[test]
    fn refuses_a_length_that_does_not_fit() {
        let shape = SampleShape {
            channels: 3,
            height: 2,
            width: 2,
        };
        assert!(Dataset::from_bytes(shape, vec![0; 13]).is_err());
        assert!(Dataset::from_bytes(shape, vec![]).is_err());
    }
}
