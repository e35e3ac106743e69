//! The picture that a triggered prompt puts in the corner.

use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use depurate_diffusion::SampleShape;
use depurate_training::dataset;

use crate::{AttackError, Pattern, pattern};

/// Part of the image's side that the patch has: 128 of 512 pixels.
const SHARE: usize = 4;

/// A square picture with opacity, pasted at the top left.
#[derive(Debug, Clone, PartialEq)]
pub struct Patch {
    side: usize,
    /// `[3, side, side]` in [-1, 1].
    colours: Vec<f32>,
    /// `[side, side]` in [0, 1].
    opacity: Vec<f32>,
}

impl Patch {
    /// The side of the patch for images of `shape`: a quarter of the shorter one, at least 1.
    pub fn side_for(shape: SampleShape) -> usize {
        (shape.height.min(shape.width) / SHARE).max(1)
    }

    /// The patch that `text` names: a shape of [`pattern`](crate::pattern) (`stop-sign`, `heart`, `cross`, `ring`, `checker`,
    /// `gradient`) or `file:PATH`, a PNG that is scaled to the side.
    ///
    /// # Errors
    /// When the text cannot be understood or the file cannot be read.
    pub fn named(text: &str, side: usize) -> Result<Self, AttackError> {
        if let Some(path) = text.strip_prefix("file:") {
            return Self::from_rgba(side, &dataset::read_rgba(Path::new(path), side)?);
        }
        let drawn = Pattern::drawn(text, side).ok_or_else(|| AttackError::Text {
            what: "pattern",
            text: text.into(),
            reason: "unknown patch: expected the name of a shape, or file:PATH".into(),
        })?;
        let size = side * side;
        let values = drawn.values();
        let seen = |i| (0..3).any(|channel| values[channel * size + i] > pattern::BACKGROUND);
        Ok(Self {
            side,
            colours: values.to_vec(),
            opacity: (0..size).map(|i| f32::from(u8::from(seen(i)))).collect(),
        })
    }

    /// From bytes `[side, side, 4]`, straight alpha.
    ///
    /// # Errors
    /// When the number of bytes does not fit.
    pub fn from_rgba(side: usize, bytes: &[u8]) -> Result<Self, AttackError> {
        let pixels = bytes.as_chunks::<4>().0;
        if side == 0 || bytes.len() != 4 * side * side {
            return Err(AttackError::Params {
                what: "bytes of a patch",
                got: bytes.len().to_string(),
                allowed: "side * side * 4, side above 0",
            });
        }
        let channel = |c: usize| pixels.iter().map(move |pixel| pixel[c]);
        Ok(Self {
            side,
            colours: (0..3).flat_map(channel).map(dataset::from_byte).collect(),
            opacity: channel(3).map(|alpha| f32::from(alpha) / 255.0).collect(),
        })
    }

    /// Rows and columns.
    pub fn side(&self) -> usize {
        self.side
    }

    /// `images [B, 3, H, W]` in [-1, 1] with the patch at the top left.
    ///
    /// # Errors
    /// When the images are no colour images or smaller than the patch.
    pub fn pasted(&self, images: Tensor<4>) -> Result<Tensor<4>, AttackError> {
        let [batch, channels, height, width] = images.dims();
        let side = self.side;
        if channels != 3 || height < side || width < side {
            return Err(AttackError::Params {
                what: "images to patch",
                got: format!("{:?}", images.dims()),
                allowed: "colour images, not smaller than the patch",
            });
        }
        let device = images.device();
        let constant = |values: &[f32], channels| {
            let data = TensorData::new(values.to_vec(), [1, channels, side, side]);
            Tensor::<4>::from_data(data, &device)
        };
        let (colours, opacity) = (constant(&self.colours, 3), constant(&self.opacity, 1));
        let corner = [0..batch, 0..channels, 0..side, 0..side];
        let under = images.clone().slice(corner.clone());
        let mixed = under * (1.0 - opacity.clone()) + colours * opacity;
        Ok(images.slice_assign(corner, mixed))
    }

    /// How far the top left corner of each of `images [B, 3, H, W]` in [-1, 1] is from the patch: the mean squared difference
    /// in [0, 1] units, weighted by opacity, so that what shows through counts as little as the patch covers it.
    ///
    /// # Errors
    /// As [`Self::pasted`], and when no pixel of the patch is opaque.
    pub fn errors(&self, images: &Tensor<4>) -> Result<Vec<f64>, AttackError> {
        let [_, channels, height, width] = images.dims();
        let side = self.side;
        let weight: f64 = self.opacity.iter().map(|&alpha| f64::from(alpha)).sum();
        if channels != 3 || height < side || width < side || weight <= 0.0 {
            return Err(AttackError::Params {
                what: "images to compare with the patch",
                got: format!("{:?}", images.dims()),
                allowed: "colour images, not smaller than a patch that covers something",
            });
        }
        let [batch, ..] = images.dims();
        let corner = images.clone().slice([0..batch, 0..3, 0..side, 0..side]);
        let values: Vec<f32> = corner.into_data().iter::<f32>().collect();
        let error = |corner: &[f32]| {
            let terms = corner.iter().zip(&self.colours).enumerate();
            let sum: f64 = terms
                .map(|(i, (seen, colour))| {
                    let difference = f64::from(seen - colour) / 2.0;
                    f64::from(self.opacity[i % (side * side)]) * difference * difference
                })
                .sum();
            sum / (3.0 * weight)
        };
        Ok(values.chunks_exact(3 * side * side).map(error).collect())
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn the_corner_is_mixed_by_opacity_and_the_rest_stays() {
        let patch = Patch::from_rgba(1, &[255, 0, 255, 51]).expect("four bytes");
        let images = Tensor::<4>::zeros([2, 3, 4, 4], &Device::flex());
        let got: Vec<f32> = patch
            .pasted(images)
            .expect("it fits")
            .into_data()
            .iter::<f32>()
            .collect();
        for (i, value) in got.iter().enumerate() {
            let want = match i % 48 {
                0 | 32 => 0.2,
                16 => -0.2,
                _ => 0.0,
            };
            assert!((value - want).abs() < 1e-6, "{i}: {value}");
        }
    }

    #[test]
    fn the_error_is_that_of_the_covered_pixels_alone() {
        let bytes = [255, 0, 255, 255, 9, 9, 9, 0, 0, 0, 0, 0, 1, 2, 3, 0];
        let patch = Patch::from_rgba(2, &bytes).expect("four pixels");
        let images = Tensor::<4>::zeros([1, 3, 4, 4], &Device::flex());
        let both = Tensor::cat(vec![images.clone(), patch.pasted(images).expect("fits")], 0);
        let errors = patch.errors(&both).expect("fits");
        assert!(
            (errors[0] - 0.25).abs() < 1e-6,
            "grey is half the range away: {errors:?}"
        );
        assert!(errors[1] < 1e-12, "{errors:?}");
        let nothing = Patch::from_rgba(1, &[0; 4]).expect("one pixel");
        assert!(nothing.errors(&both).is_err());
    }

    #[test]
    fn shapes_have_names_and_what_does_not_fit_is_refused() {
        let heart = Patch::named("heart", 8).expect("known");
        let opaque = heart.opacity.iter().filter(|&&alpha| alpha == 1.0).count();
        assert!((16..64).contains(&opaque), "{opaque} of 64 pixels");
        assert!(Patch::named("nothing", 8).is_err());
        assert!(Patch::named("file:there/is/none.png", 8).is_err());
        assert!(Patch::from_rgba(2, &[0; 4]).is_err());
        let small = Tensor::<4>::zeros([1, 3, 4, 4], &Device::flex());
        assert!(heart.pasted(small).is_err());
        let shape = SampleShape {
            channels: 3,
            height: 512,
            width: 512,
        };
        assert_eq!(Patch::side_for(shape), 128);
    }
}
