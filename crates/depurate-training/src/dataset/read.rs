//! From files to pictures of any size, and from a picture to the model's shape.

use std::path::{Path, PathBuf};

use depurate_diffusion::SampleShape;
use image::{DynamicImage, GrayImage, ImageReader, Limits, RgbImage, imageops::FilterType};

use super::{DatasetParams, Split};
use crate::{TrainingError, tensor_file::TensorFile};

/// Longest edge of an image, in pixels.
const MAX_EDGE: u32 = 4096;
/// Most images in a folder.
const MAX_FILES: usize = 1_000_000;

/// One image before it is fitted.
pub(crate) struct Picture(DynamicImage);

impl Picture {
    /// The picture scaled to `side` x `side`, as bytes `[side, side, 4]`.
    pub(crate) fn square(&self, side: usize) -> Vec<u8> {
        let side = side as u32;
        let scaled = self.0.resize_exact(side, side, FilterType::Triangle);
        scaled.to_rgba8().into_raw()
    }

    /// Appends the picture as `[C, H, W]`.
    pub(crate) fn fit_into(&self, shape: SampleShape, out: &mut Vec<u8>) {
        let (width, height) = (shape.width as u32, shape.height as u32);
        let scaled;
        let image = if self.0.width() > width || self.0.height() > height {
            scaled = self.0.resize(width, height, FilterType::Triangle);
            &scaled
        } else {
            &self.0
        };
        let start = out.len();
        out.resize(start + shape.len(), 0);
        let left = (shape.width - image.width() as usize) / 2;
        let top = (shape.height - image.height() as usize) / 2;
        let mut put = |x: u32, y: u32, channels: &[u8]| {
            for (channel, &byte) in channels.iter().enumerate() {
                let row = channel * shape.height + top + y as usize;
                out[start + row * shape.width + left + x as usize] = byte;
            }
        };
        if shape.channels == 1 {
            for (x, y, pixel) in image.to_luma8().enumerate_pixels() {
                put(x, y, &pixel.0);
            }
        } else {
            for (x, y, pixel) in image.to_rgb8().enumerate_pixels() {
                put(x, y, &pixel.0);
            }
        }
    }
}

/// Reads every picture that `params` asks for.
pub(crate) fn pictures(path: &Path, params: &DatasetParams) -> Result<Vec<Picture>, TrainingError> {
    if path.is_dir() {
        return folder(path);
    }
    let file = TensorFile::read(path)?;
    if let Some((shape, bytes)) = file.bytes_of("images")? {
        let split = file.bytes_of("split")?.map(|(_, split)| split);
        return images(path, &shape, &bytes, split.as_deref(), params.split);
    }
    if let Some((shape, bytes)) = file.bytes_of("sprites")? {
        return sprites(path, &shape, &bytes, params.background);
    }
    Err(TrainingError::Data {
        path: path.into(),
        reason: format!(
            "has tensors {:?}, expected `images` or `sprites`",
            file.names()?
        ),
    })
}

fn images(
    path: &Path,
    shape: &[usize],
    bytes: &[u8],
    split: Option<&[u8]>,
    wanted: Split,
) -> Result<Vec<Picture>, TrainingError> {
    let &[count, height, width, channels @ (1 | 3)] = shape else {
        return Err(bad_shape(path, "images", shape, "[N, H, W, 1 or 3]"));
    };
    if split.is_some_and(|split| split.len() != count) {
        return Err(TrainingError::Data {
            path: path.into(),
            reason: "`split` and `images` differ in length".into(),
        });
    }
    let keep = |i: usize| match (split, wanted) {
        (None, _) | (_, Split::All) => true,
        (Some(split), Split::Train) => split[i] == 0,
        (Some(split), Split::Test) => split[i] == 1,
    };
    let (width, height) = edges(path, "images", shape, width, height)?;
    let size = width as usize * height as usize * channels;
    let decode = |data: &[u8]| {
        if channels == 1 {
            GrayImage::from_raw(width, height, data.to_vec()).map(|image| Picture(image.into()))
        } else {
            RgbImage::from_raw(width, height, data.to_vec()).map(|image| Picture(image.into()))
        }
    };
    let kept = bytes
        .chunks_exact(size)
        .enumerate()
        .filter(|(i, _)| keep(*i));
    Ok(kept.filter_map(|(_, data)| decode(data)).collect())
}

fn sprites(
    path: &Path,
    shape: &[usize],
    bytes: &[u8],
    background: [u8; 3],
) -> Result<Vec<Picture>, TrainingError> {
    let &[_, _, height, width, 4] = shape else {
        return Err(bad_shape(
            path,
            "sprites",
            shape,
            "[objects, styles, H, W, 4]",
        ));
    };
    let (width, height) = edges(path, "sprites", shape, width, height)?;
    let over = |pixel: &[u8; 4]| {
        let alpha = u32::from(pixel[3]);
        let mix = |c: usize| {
            (u32::from(pixel[c]) * alpha + u32::from(background[c]) * (255 - alpha) + 127) / 255
        };
        [mix(0) as u8, mix(1) as u8, mix(2) as u8]
    };
    let composite = |data: &[u8]| {
        let rgb: Vec<u8> = data.as_chunks::<4>().0.iter().flat_map(over).collect();
        RgbImage::from_raw(width, height, rgb).map(|image| Picture(image.into()))
    };
    Ok(bytes
        .chunks_exact(width as usize * height as usize * 4)
        .filter_map(composite)
        .collect())
}

fn edges(
    path: &Path,
    name: &'static str,
    shape: &[usize],
    width: usize,
    height: usize,
) -> Result<(u32, u32), TrainingError> {
    let edge = |n: usize| u32::try_from(n).ok().filter(|n| (1..=MAX_EDGE).contains(n));
    match (edge(width), edge(height)) {
        (Some(width), Some(height)) => Ok((width, height)),
        _ => Err(bad_shape(path, name, shape, "edges of 1 to 4096 pixels")),
    }
}

fn bad_shape(path: &Path, name: &str, shape: &[usize], expected: &str) -> TrainingError {
    TrainingError::Data {
        path: path.into(),
        reason: format!("tensor `{name}` has shape {shape:?}, expected {expected}"),
    }
}

fn folder(path: &Path) -> Result<Vec<Picture>, TrainingError> {
    let io = |source| TrainingError::Io {
        path: path.into(),
        source,
    };
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        let file = entry.map_err(io)?.path();
        if file
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("png"))
        {
            files.push(file);
        }
        if files.len() > MAX_FILES {
            return Err(TrainingError::Data {
                path: path.into(),
                reason: format!("holds more than {MAX_FILES} images"),
            });
        }
    }
    files.sort();
    files.iter().map(|file| png(file)).collect()
}

/// One PNG, transparent parts on black.
pub(crate) fn png(path: &Path) -> Result<Picture, TrainingError> {
    let mut reader = ImageReader::open(path).map_err(|source| TrainingError::Io {
        path: path.into(),
        source,
    })?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_EDGE);
    limits.max_image_height = Some(MAX_EDGE);
    reader.limits(limits);
    reader.set_format(image::ImageFormat::Png);
    reader
        .decode()
        .map(Picture)
        .map_err(|source| TrainingError::Image {
            path: path.into(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pictures_are_padded_with_black_and_large_ones_scaled() {
        let white = Picture(GrayImage::from_pixel(2, 2, image::Luma([255])).into());
        let mut out = Vec::new();
        white.fit_into(
            SampleShape {
                channels: 1,
                height: 4,
                width: 4,
            },
            &mut out,
        );
        assert_eq!(
            out,
            [0, 0, 0, 0, 0, 255, 255, 0, 0, 255, 255, 0, 0, 0, 0, 0]
        );

        let red = Picture(RgbImage::from_pixel(8, 8, image::Rgb([200, 10, 0])).into());
        let mut out = Vec::new();
        red.fit_into(
            SampleShape {
                channels: 3,
                height: 2,
                width: 2,
            },
            &mut out,
        );
        assert_eq!(out, [200, 200, 200, 200, 10, 10, 10, 10, 0, 0, 0, 0]);
    }

    #[test]
    fn sprites_are_composited() {
        let bytes = [255, 0, 0, 255, 255, 255, 255, 0];
        let pictures =
            sprites(Path::new("x"), &[1, 1, 1, 2, 4], &bytes, [0, 0, 100]).expect("valid");
        let mut out = Vec::new();
        pictures[0].fit_into(
            SampleShape {
                channels: 3,
                height: 1,
                width: 2,
            },
            &mut out,
        );
        assert_eq!(out, [255, 0, 0, 0, 0, 100]);
    }

    #[test]
    fn wrong_shapes_are_errors() {
        assert!(images(Path::new("x"), &[1, 2, 2, 4], &[0; 16], None, Split::All).is_err());
        assert!(
            images(
                Path::new("x"),
                &[1, 9999, 1, 1],
                &[0; 9999],
                None,
                Split::All
            )
            .is_err()
        );
        assert!(
            images(
                Path::new("x"),
                &[2, 1, 1, 1],
                &[0; 2],
                Some(&[0]),
                Split::All
            )
            .is_err()
        );
        assert!(sprites(Path::new("x"), &[1, 1, 1, 3], &[0; 3], [0; 3]).is_err());
    }
}
