//! # A contrastively trained pair of encoders
//!
//! CLIP's objective on a small scale: a text encoder whose EOS state is projected into a space shared with an image encoder.
//!
//! ## Paper
//! Radford et al., ICML 2021, arXiv:2103.00020, sec. 2.3 and figure 3: a symmetric cross-entropy over the similarities of a
//! batch, with a learnt temperature whose inverse is at most 100.
//!
//! | symbol | shape |
//! |---|---|
//! | `u` | `[B, E]`, texts, each of length 1 |
//! | `v` | `[B, E]`, images, each of length 1 |
//! | similarity | `u v^T`, in [-1, 1] |
//!
//! ## Deviations
//! The image encoder is a small convolutional one ([`ImageTower`]). A batch may hold the same caption twice; its pictures then
//! count as each other's negatives, as in the paper.

use std::path::Path;

use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor, activation::log_softmax},
};
use depurate_checkpoint::{SaveTensor, Weights};

use crate::{
    DiffusionError,
    clip_text::{ClipText, ClipTextConfig},
    image_tower::{ImageTower, ImageTowerConfig},
    layers::{Init, Projection},
    module_weights,
    noise::SeedTree,
};

/// Logarithm of the inverse temperature at the start, `ln(1 / 0.07)`.
const FIRST_LOG_SCALE: f32 = 2.659_26;
/// And at the most, `ln(100)`.
const LARGEST_LOG_SCALE: f64 = 4.605_170_185_988_092;

/// The pair. See the [module](self).
#[derive(Module, Debug)]
pub struct ClipPair {
    text_encoder: ClipText,
    text_projection: Projection,
    image_encoder: ImageTower,
    logit_scale: Param<Tensor<1>>,
}

impl ClipPair {
    /// A pair with random weights drawn from `seed`; the image encoder's outputs are the width of the shared space.
    ///
    /// # Errors
    /// As [`ImageTower::new`].
    pub fn new(
        text: &ClipTextConfig,
        image: &ImageTowerConfig,
        seed: &SeedTree,
        device: &Device,
    ) -> Result<Self, DiffusionError> {
        let init = Init::new(device.clone(), seed.clone());
        let projection = init.at("text_projection");
        Ok(Self {
            text_encoder: ClipText::new(text, &seed.child("text", 0), device),
            text_projection: Projection::new(&projection, text.hidden_size, image.outputs),
            image_encoder: ImageTower::new(image, &seed.child("image", 0), device)?,
            logit_scale: init.constant("logit_scale", [1], FIRST_LOG_SCALE),
        })
    }

    /// The text encoder, as a pipeline takes it.
    pub fn text_encoder(&self) -> &ClipText {
        &self.text_encoder
    }

    /// The image encoder.
    pub fn image_encoder(&self) -> &ImageTower {
        &self.image_encoder
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

    /// Where prompts of equal length lie: `[B, E]`, each of length 1.
    ///
    /// # Errors
    /// As [`ClipText::forward`].
    pub fn embed_texts(&self, ids: &[Vec<u32>]) -> Result<Tensor<2>, DiffusionError> {
        let pooled = self.text_encoder.forward(ids)?.pooled;
        let projected = self.text_projection.forward(pooled.unsqueeze_dim::<3>(2));
        Ok(normalised(projected.squeeze_dim::<2>(2)))
    }

    /// Where images `[B, C, H, W]` in [-1, 1] lie: `[B, E]`, each of length 1.
    ///
    /// # Errors
    /// As [`ImageTower::forward`].
    pub fn embed_images(&self, images: Tensor<4>) -> Result<Tensor<2>, DiffusionError> {
        Ok(normalised(self.image_encoder.forward(images)?))
    }

    /// The symmetric cross-entropy `[1]` of a batch whose i-th image and i-th prompt belong together.
    ///
    /// # Errors
    /// When there are not as many prompts as images, or as the encoders.
    pub fn loss(&self, images: Tensor<4>, ids: &[Vec<u32>]) -> Result<Tensor<1>, DiffusionError> {
        let [batch, ..] = images.dims();
        if ids.len() != batch {
            return Err(DiffusionError::Shape {
                what: "prompts of a batch",
                expected: format!("{batch}, one an image"),
                got: vec![ids.len()],
            });
        }
        let (u, v) = (self.embed_texts(ids)?, self.embed_images(images)?);
        let scale = self.logit_scale.val().clamp_max(LARGEST_LOG_SCALE).exp();
        let logits = u.matmul(v.transpose()) * scale.unsqueeze_dim::<2>(1);
        let own = Tensor::<2>::eye(batch, &logits.device());
        let entropy =
            |logits: Tensor<2>| -(log_softmax(logits, 1) * own.clone()).sum() / batch as f64;
        Ok((entropy(logits.clone()) + entropy(logits.transpose())) * 0.5)
    }
}

/// Rows of length 1.
fn normalised(x: Tensor<2>) -> Tensor<2> {
    let length = x.clone().square().sum_dim(1).sqrt();
    x / (length + 1e-12)
}
