//! From tensors to PNG.

use std::io::Cursor;

use depurate_diffusion::SampleShape;
use image::{ImageFormat, Rgb, RgbImage, imageops};

use crate::Error;

/// Pixels between the images of a sheet.
const GAP: u32 = 1;
const GAP_COLOUR: Rgb<u8> = Rgb([128, 128, 128]);

/// Puts `values: [n, C, H, W]` on one sheet with `columns` images in a row. `low` is black and `high` is white; three
/// channels are red, green and blue, of any other number the first is shown in grey.
///
/// # Errors
/// When `values` do not make up whole images.
pub fn sheet(
    what: &'static str,
    values: &[f32],
    shape: SampleShape,
    columns: usize,
    (low, high): (f32, f32),
) -> Result<RgbImage, Error> {
    let size = shape.len().max(1);
    let count = values.len() / size;
    if count == 0 || !values.len().is_multiple_of(size) {
        return Err(Error::Pixels {
            what,
            got: values.len(),
            expected: size * count.max(1),
        });
    }
    let columns = columns.clamp(1, count);
    let rows = count.div_ceil(columns);
    let (width, height) = (shape.width as u32, shape.height as u32);
    let side = |images: usize, length: u32| images as u32 * (length + GAP) - GAP;
    let mut sheet = RgbImage::from_pixel(side(columns, width), side(rows, height), GAP_COLOUR);
    let scale = 255.0 / (high - low).max(f32::MIN_POSITIVE);
    let plane = shape.height * shape.width;
    for (index, image) in values.chunks_exact(size).enumerate() {
        let left = (index % columns) as u32 * (width + GAP);
        let top = (index / columns) as u32 * (height + GAP);
        for pixel in 0..plane {
            let colour = |channel: usize| {
                let channel = if shape.channels == 3 { channel } else { 0 };
                ((image[channel * plane + pixel] - low) * scale)
                    .clamp(0.0, 255.0)
                    .round() as u8
            };
            let (x, y) = ((pixel % shape.width) as u32, (pixel / shape.width) as u32);
            sheet.put_pixel(left + x, top + y, Rgb([colour(0), colour(1), colour(2)]));
        }
    }
    Ok(sheet)
}

/// The number of columns that makes a sheet of `count` images about square.
pub fn square(count: usize) -> usize {
    (count as f64).sqrt().ceil() as usize
}

/// Enlarges by whole pixels, so that the longer side is about `side` pixels.
pub fn magnify(image: &RgbImage, side: u32) -> RgbImage {
    let factor = (side / image.width().max(image.height()).max(1)).max(1);
    imageops::resize(
        image,
        image.width() * factor,
        image.height() * factor,
        imageops::FilterType::Nearest,
    )
}

/// The PNG file of an image.
///
/// # Errors
/// When it cannot be encoded.
pub fn png(what: &'static str, image: &RgbImage) -> Result<Vec<u8>, Error> {
    let mut bytes = Cursor::new(Vec::new());
    image
        .write_to(&mut bytes, ImageFormat::Png)
        .map_err(|source| Error::Image { what, source })?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TWO_BY_ONE: SampleShape = SampleShape {
        channels: 1,
        height: 1,
        width: 2,
    };

    #[test]
    fn images_stand_in_reading_order_with_a_gap() {
        let values = [-1.0, 1.0, 0.0, 9.0, -9.0, f32::NAN];
        let sheet = sheet("test", &values, TWO_BY_ONE, 2, (-1.0, 1.0)).unwrap();
        assert_eq!(sheet.dimensions(), (5, 3));
        let at = |x, y| sheet.get_pixel(x, y).0[0];
        assert_eq!([at(0, 0), at(1, 0), at(3, 0), at(4, 0)], [0, 255, 128, 255]);
        assert_eq!([at(2, 0), at(0, 2), at(1, 2), at(3, 2)], [128, 0, 0, 128]);
    }

    #[test]
    fn three_channels_are_colours() {
        let shape = SampleShape {
            channels: 3,
            height: 1,
            width: 1,
        };
        let sheet = sheet("test", &[1.0, -1.0, 0.0], shape, 1, (-1.0, 1.0)).unwrap();
        assert_eq!(sheet.get_pixel(0, 0).0, [255, 0, 128]);
    }

    #[test]
    fn pixels_that_are_no_whole_image_are_refused() {
        assert!(sheet("test", &[0.0; 3], TWO_BY_ONE, 2, (-1.0, 1.0)).is_err());
        assert!(sheet("test", &[], TWO_BY_ONE, 2, (-1.0, 1.0)).is_err());
    }

    #[test]
    fn magnified_pixels_are_whole() {
        let image = sheet("test", &[-1.0, 1.0], TWO_BY_ONE, 1, (-1.0, 1.0)).unwrap();
        let large = magnify(&image, 7);
        assert_eq!(large.dimensions(), (6, 3));
        assert_eq!(
            (large.get_pixel(2, 2).0[0], large.get_pixel(3, 0).0[0]),
            (0, 255)
        );
        assert_eq!(&png("test", &large).unwrap()[1..4], b"PNG");
    }
}
