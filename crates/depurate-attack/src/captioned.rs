//! Images with captions, dealt step by step.

use burn::tensor::{Device, Tensor};
use depurate_diffusion::{SampleShape, noise::SeedTree};
use depurate_training::{Dataset, training::Order};

use crate::AttackError;

/// A batch of captioned images.
#[derive(Debug, Clone)]
pub struct CaptionedBatch {
    /// `[B, C, H, W]` in [-1, 1].
    pub images: Tensor<4>,
    /// One a picture.
    pub captions: Vec<String>,
}

/// A source of captioned images: stored ones, or ones that are drawn on demand.
pub trait CaptionedImages {
    /// Shape of one image.
    fn shape(&self) -> SampleShape;

    /// The batch of a step. It must depend on `step`, `count` and `seed` alone.
    ///
    /// # Errors
    /// When an image cannot be made.
    fn batch(
        &mut self,
        step: usize,
        count: usize,
        seed: &SeedTree,
        device: &Device,
    ) -> Result<CaptionedBatch, AttackError>;

    /// What tells this source from others in a resumable state.
    fn describe(&self) -> String;
}

/// A data set with a caption for each image; one permutation an epoch.
pub struct CaptionedDataset {
    images: Dataset,
    captions: Vec<String>,
    order: Option<(SeedTree, Order)>,
}

impl CaptionedDataset {
    /// The `images` with their `captions`, in the same order.
    ///
    /// # Errors
    /// When their numbers differ.
    pub fn new(images: Dataset, captions: Vec<String>) -> Result<Self, AttackError> {
        if images.len() != captions.len() {
            return Err(AttackError::Params {
                what: "number of captions",
                got: format!("{} for {} images", captions.len(), images.len()),
                allowed: "one for each image",
            });
        }
        Ok(Self {
            images,
            captions,
            order: None,
        })
    }

    /// The captions.
    pub fn captions(&self) -> &[String] {
        &self.captions
    }
}

impl CaptionedImages for CaptionedDataset {
    fn shape(&self) -> SampleShape {
        self.images.shape()
    }

    fn batch(
        &mut self,
        step: usize,
        count: usize,
        seed: &SeedTree,
        device: &Device,
    ) -> Result<CaptionedBatch, AttackError> {
        let known = self.order.take().filter(|(of, _)| of == seed);
        let (_, order) = self.order.insert(known.unwrap_or_else(|| {
            let order = Order::new(self.captions.len(), seed.child("order", 0));
            (seed.clone(), order)
        }));
        let indices = order.batch(step, count);
        Ok(CaptionedBatch {
            images: self.images.batch(&indices, &[], device),
            captions: indices.iter().map(|&i| self.captions[i].clone()).collect(),
        })
    }

    fn describe(&self) -> String {
        format!("{} captioned images", self.captions.len())
    }
}
