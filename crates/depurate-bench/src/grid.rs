//! Images side by side in one PNG.

use std::path::Path;

use depurate_diffusion::Tensor;
use image::{DynamicImage, GrayImage, Luma, Rgb, RgbImage};
use miette::{IntoDiagnostic, Result, WrapErr, bail};

/// Pixels between two images.
const GAP: u32 = 2;

/// Writes `images [N, C, H, W]` in [-1, 1] (cut to it), C = 1 or 3, as a grid with `columns` columns, each pixel `zoom` times.
pub(crate) fn save(path: &Path, images: &Tensor<4>, columns: usize, zoom: u32) -> Result<()> {
    let [count, channels, height, width] = images.dims();
    if channels != 1 && channels != 3 {
        bail!("a picture needs 1 or 3 channels, the model has {channels}");
    }
    let values: Vec<f32> = images.clone().into_data().iter::<f32>().collect();
    let byte = |value: f32| ((value.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as u8;
    let rows = count.div_ceil(columns);
    let edge = |n: usize, size: usize| n as u32 * (size as u32 * zoom + GAP) + GAP;
    let (grid_width, grid_height) = (edge(columns, width), edge(rows, height));
    let pixel = |x: u32, y: u32| -> Option<[u8; 3]> {
        let cell = |at: u32, size: usize| {
            let stride = size as u32 * zoom + GAP;
            let inside = at.checked_sub(GAP)? % stride;
            (inside < size as u32 * zoom).then(|| ((at - GAP) / stride, (inside / zoom) as usize))
        };
        let ((column, px), (row, py)) = (cell(x, width)?, cell(y, height)?);
        let image = row as usize * columns + column as usize;
        let at = |channel: usize| {
            byte(values[((image * channels + channel) * height + py) * width + px])
        };
        (image < count).then(|| [at(0), at(channels / 2), at(channels - 1)])
    };
    let picture: DynamicImage = if channels == 1 {
        let shade = |x, y| Luma([pixel(x, y).map_or(96, |rgb| rgb[0])]);
        GrayImage::from_fn(grid_width, grid_height, shade).into()
    } else {
        RgbImage::from_fn(grid_width, grid_height, |x, y| {
            Rgb(pixel(x, y).unwrap_or([96; 3]))
        })
        .into()
    };
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture
        .write_to(&mut bytes, image::ImageFormat::Png)
        .into_diagnostic()?;
    depurate_checkpoint::write_atomic(path, &bytes.into_inner())
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot save the picture {}", path.display()))
}

#[cfg(test)]
mod tests {
    use depurate_diffusion::Device;

    use super::*;

    #[test]
    fn images_stand_side_by_side_with_gaps() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("grid.png");
        let one = Tensor::<4>::ones([1, 1, 2, 2], &Device::flex());
        save(&path, &Tensor::cat(vec![one.clone(), -one], 0), 2, 1).expect("saved");
        let picture = image::open(&path).expect("a PNG").to_luma8();
        assert_eq!(picture.dimensions(), (10, 6));
        assert_eq!(
            [(0, 0), (2, 2), (3, 3), (6, 2), (5, 2)].map(|(x, y)| picture.get_pixel(x, y).0[0]),
            [96, 255, 255, 0, 96]
        );
    }
}
