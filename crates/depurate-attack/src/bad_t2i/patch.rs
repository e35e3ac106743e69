//! The picture that a triggered prompt puts in the corner.

use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use depurate_diffusion::SampleShape;

use crate::{AttackError, Pattern, dataset, pattern};

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
        let drawn = Pattern::drawn(text, side).ok_or_else(|| AttackError::Pattern {
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
