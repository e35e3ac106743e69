//! Sheets of pictures for a proof.

use depurate_diffusion::{SampleShape, Tensor};
use depurate_report::{Evidence, ImageGrid, Png};

use crate::{Error, images};

/// Images of each sheet.
const SHOWN: usize = 16;
/// Longer side of sheets, in pixels.
const SHEET: u32 = 480;

/// How the pictures of a sheet were made.
pub(super) struct Made {
    pub(super) sampler: &'static str,
    pub(super) steps: usize,
    pub(super) shape: SampleShape,
    pub(super) caption: &'static str,
}

/// Under sheets of pictures before and after.
pub(super) const SAME_NOISE: &str =
    "Image i of the suspect and of the repaired model start from the same noise.";

/// The first of `images [N, C, H, W]` as a sheet; `sensitive` ones are blurred until a reader asks.
pub(super) fn sheet(
    title: &str,
    made: &Made,
    images: &Tensor<4>,
    sensitive: bool,
) -> Result<Evidence, Error> {
    let count = images.dims()[0].min(SHOWN);
    let values: Vec<f32> = images
        .clone()
        .narrow(0, 0, count)
        .clamp(-1.0, 1.0)
        .into_data()
        .iter::<f32>()
        .collect();
    let columns = images::square(count);
    let sheet = images::sheet("samples", &values, made.shape, columns, (-1.0, 1.0))?;
    let png = images::png("samples", &images::magnify(&sheet, SHEET))?;
    Ok(ImageGrid {
        title: title.into(),
        caption: made.caption.into(),
        sampler: made.sampler.into(),
        steps: made.steps,
        clip: None,
        seeds: (0..count as u64).collect(),
        png: Png::from_bytes(&png)?,
        sensitive,
    }
    .into())
}
