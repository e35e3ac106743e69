//! Features by which sets of images are compared: those of a small classifier of handwritten digits, trained for this and built in.
//!
//! A Fréchet distance on them is not the FID. It says whether two sets of *similar* images differ; for images unlike digits
//! the features are those of an untrained eye, still the same one before and after.

use std::path::Path;

use burn::tensor::Tensor;
use depurate_checkpoint::{Limits, Weights};
use depurate_diffusion::{
    Device, DiffusionError,
    image_tower::{ImageTower, ImageTowerConfig},
    noise::SeedTree,
};
use depurate_stats::{StatsError, frechet_distance};

use crate::DefenseError;

const WEIGHTS: &[u8] = include_bytes!("../../features/digits.safetensors");
const WIDTHS: [usize; 3] = [16, 32, 32];
/// Features of an image.
pub const FEATURES: usize = WIDTHS[2];
/// Images that pass the network at once.
const BATCH: usize = 64;

/// The network.
#[derive(Debug)]
pub struct Features(ImageTower);

impl Features {
    /// Reads the built-in weights.
    ///
    /// # Errors
    /// When they do not fit, which a test excludes.
    pub fn built_in() -> Result<Self, DefenseError> {
        let config = ImageTowerConfig {
            channels: 1,
            widths: WIDTHS.to_vec(),
            groups: 8,
            outputs: 10,
        };
        let name = Path::new("built-in features");
        let weights = Weights::from_bytes(name, WEIGHTS.to_vec(), &Limits::default())?;
        let tower = ImageTower::new(&config, &SeedTree::new(0), &Device::flex())?;
        Ok(Self(tower.load(&weights, name)?))
    }

    /// Features of `images [N, C, H, W]`, row-major, [`FEATURES`] an image. Colours are averaged, sides filled up with black to
    /// multiples of 4.
    ///
    /// # Errors
    /// When there is no image.
    pub fn of(&self, images: Tensor<4>) -> Result<Vec<f64>, DiffusionError> {
        let grey = images.mean_dim(1).clamp(-1.0, 1.0);
        let [count, _, height, width] = grey.dims();
        let (rows, columns) = (height.next_multiple_of(4), width.next_multiple_of(4));
        let black = Tensor::full([count, 1, rows, columns], -1.0, &grey.device());
        let filled = black.slice_assign([0..count, 0..1, 0..height, 0..width], grey);
        let mut found = Vec::with_capacity(count * FEATURES);
        for first in (0..count).step_by(BATCH) {
            let part = filled.clone().narrow(0, first, BATCH.min(count - first));
            found.extend(self.0.features(part)?.into_data().iter::<f64>());
        }
        Ok(found)
    }

    /// Fréchet distance of the features of two sets of images, `[N, C, H, W]` and `[M, C, H, W]`.
    ///
    /// # Errors
    /// When a set holds fewer than two images or values that are not finite.
    pub fn distance(&self, a: Tensor<4>, b: Tensor<4>) -> Result<f64, DefenseError> {
        distance(&self.of(a)?, &self.of(b)?)
    }
}

/// Fréchet distance of two sets of features, row-major, [`FEATURES`] an image.
///
/// # Errors
/// When a set holds fewer than two images or values that are not finite.
pub fn distance(a: &[f64], b: &[f64]) -> Result<f64, DefenseError> {
    frechet_distance(a, b, FEATURES).map_err(refused)
}

/// Sum of the variances of a set of features, row-major, [`FEATURES`] an image: the scale of a Fréchet distance.
pub(super) fn variance(features: &[f64]) -> f64 {
    let count = (features.len() / FEATURES) as f64;
    let column = |k: usize| features.iter().skip(k).step_by(FEATURES);
    let variance = |k: usize| {
        let mean = column(k).sum::<f64>() / count;
        column(k).map(|v| (v - mean).powi(2)).sum::<f64>() / count
    };
    (0..FEATURES).map(variance).sum()
}

/// What to say of sets of images that cannot be compared.
pub(super) fn refused(error: StatsError) -> DefenseError {
    DefenseError::Params {
        field: "images to compare",
        value: error.to_string(),
        allowed: "two or more finite images in each set",
    }
}
