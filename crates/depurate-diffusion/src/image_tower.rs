//! # A small convolutional encoder of images
//!
//! Residual blocks that halve the image, the mean over what is left, and a linear layer: the image side of a contrastively
//! trained pair, and the body of classifiers that judge generated images. Not a model of anybody's checkpoint.
//!
//! | symbol | shape |
//! |---|---|
//! | `x` | `[B, C, H, W]`, an image in `[-1, 1]` |
//! | features | `[B, widths.last()]`, before the linear layer |
//! | output | `[B, outputs]` |

use std::path::Path;

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};
use depurate_checkpoint::{SaveTensor, Weights};
use serde::{Deserialize, Serialize};

use crate::{
    DiffusionError,
    blocks::{Resample, ResnetBlock, ResnetOptions},
    layers::{Conv3x3, GroupNorm, Init, Linear},
    module_weights,
    noise::SeedTree,
    ops::{self, Activation, Stride},
};

/// Added to the variance in every normalisation.
const NORM_EPS: f64 = 1e-5;

/// Sizes of an [`ImageTower`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageTowerConfig {
    /// Channels of the images.
    pub channels: usize,
    /// Channels of each level; between two levels the image is halved. Multiples of `groups`.
    pub widths: Vec<usize>,
    /// Groups of every group normalisation.
    pub groups: usize,
    /// Numbers that come out.
    pub outputs: usize,
}

/// The encoder. See the [module](self).
#[derive(Module, Debug)]
pub struct ImageTower {
    conv_in: Conv3x3,
    resnets: Vec<ResnetBlock>,
    downsamplers: Vec<Resample>,
    norm_out: GroupNorm,
    head: Linear,
    #[module(skip)]
    config: ImageTowerConfig,
}

impl ImageTower {
    /// An encoder with random weights drawn from `seed`.
    ///
    /// # Errors
    /// When there is no level, or a width is zero or no multiple of the groups.
    pub fn new(
        config: &ImageTowerConfig,
        seed: &SeedTree,
        device: &Device,
    ) -> Result<Self, DiffusionError> {
        let widths = &config.widths;
        let fits = |width: &usize| *width > 0 && width.is_multiple_of(config.groups.max(1));
        let (Some(&first), Some(&last), true) =
            (widths.first(), widths.last(), widths.iter().all(fits))
        else {
            return Err(DiffusionError::Argument {
                what: "widths of an image tower",
                got: format!("{widths:?}"),
                allowed: format!("one or more multiples of {}", config.groups.max(1)),
            });
        };
        let init = Init::new(device.clone(), seed.clone());
        let options = ResnetOptions {
            groups: config.groups.max(1),
            eps: NORM_EPS,
            time_width: None,
            scale_shift: false,
            output_scale: 1.0,
        };
        let resnet = |i: usize| {
            let c_in = widths[i.saturating_sub(1)];
            ResnetBlock::new(&init.at(format!("resnets.{i}")), options, c_in, widths[i])
        };
        let downsampler =
            |i: usize| Resample::new(&init.at(format!("downsamplers.{i}")), widths[i]);
        Ok(Self {
            conv_in: Conv3x3::new(&init.at("conv_in"), config.channels, first),
            resnets: (0..widths.len()).map(resnet).collect(),
            downsamplers: (0..widths.len() - 1).map(downsampler).collect(),
            norm_out: GroupNorm::new(&init.at("norm_out"), last, options.groups, NORM_EPS),
            head: Linear::new(&init.at("head"), last, config.outputs),
            config: config.clone(),
        })
    }

    /// What the encoder was made from.
    pub fn config(&self) -> &ImageTowerConfig {
        &self.config
    }

    /// Replaces every parameter by the one of the same name in `weights`.
    ///
    /// # Errors
    /// When a parameter is missing, unexpected, mis-shaped or not finite; `path` is named.
    pub fn load(self, weights: &Weights, path: &Path) -> Result<Self, DiffusionError> {
        module_weights::load(self, weights, path, &|_| None, &|_| false)
    }

    /// Every parameter's values under its name.
    pub fn to_tensors(&self) -> Vec<SaveTensor> {
        module_weights::to_tensors(self)
    }

    /// What the last level sees on average, `[B, widths.last()]`.
    ///
    /// # Errors
    /// When the shape of `x [B, C, H, W]` does not fit.
    pub fn features(&self, x: Tensor<4>) -> Result<Tensor<2>, DiffusionError> {
        let halvings = 1 << self.downsamplers.len();
        let [batch, channels, height, width] = x.dims();
        let whole = height.is_multiple_of(halvings) && width.is_multiple_of(halvings);
        if batch == 0 || height * width == 0 || channels != self.config.channels || !whole {
            return Err(DiffusionError::Shape {
                what: "images of an image tower",
                expected: format!(
                    "[B, {}, H, W] with H and W multiples of {halvings}",
                    self.config.channels
                ),
                got: x.dims().to_vec(),
            });
        }
        let mut x = self.conv_in.forward(x, Stride::One);
        for (i, resnet) in self.resnets.iter().enumerate() {
            x = resnet.forward(x, None);
            if let Some(downsampler) = self.downsamplers.get(i) {
                x = downsampler.conv.forward(x, Stride::TwoAfterOnly);
            }
        }
        let x = ops::activation(self.norm_out.forward(x), Activation::Silu);
        let x: Tensor<3> = x.flatten(2, 3);
        Ok(x.mean_dim(2).squeeze_dim::<2>(2))
    }

    /// The output for images `x [B, C, H, W]`: `[B, outputs]`.
    ///
    /// # Errors
    /// As [`ImageTower::features`].
    pub fn forward(&self, x: Tensor<4>) -> Result<Tensor<2>, DiffusionError> {
        Ok(self.head.forward(self.features(x)?))
    }
}
