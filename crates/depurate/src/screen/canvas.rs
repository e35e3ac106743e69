//! A picture of maps and letters, in 256 colours: the colours of maps from low to high, then greys.

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use png::{BitDepth, ColorType, Encoder, EncodingError};

use crate::Error;

/// Colours of maps.
const MAP_COLOURS: usize = 192;
/// Greys after them, from black to white.
const GREYS: usize = 64;
const WHITE: u8 = (MAP_COLOURS + GREYS - 1) as u8;
/// Dark violet to light yellow; lightness rises evenly, so that it reads without colour as well.
const ANCHORS: [[f32; 3]; 9] = [
    [0.0, 0.0, 4.0],
    [28.0, 16.0, 68.0],
    [79.0, 18.0, 123.0],
    [129.0, 37.0, 129.0],
    [181.0, 54.0, 122.0],
    [229.0, 80.0, 100.0],
    [251.0, 135.0, 97.0],
    [254.0, 194.0, 135.0],
    [252.0, 253.0, 191.0],
];
const WEIGHT: FontWeight = FontWeight::Regular;
const SIZE: RasterHeight = RasterHeight::Size16;

/// Height of a line of text in pixels.
pub(super) const LINE: usize = 18;

/// Width of `letters` in pixels.
pub(super) const fn text_width(letters: usize) -> usize {
    letters * get_raster_width(WEIGHT, SIZE)
}

/// An indexed picture.
#[derive(Debug, Clone)]
pub(super) struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Canvas {
    pub fn new(width: usize, height: usize) -> Self {
        Self {
            width,
            height,
            pixels: vec![WHITE; width * height],
        }
    }

    /// Writes one line of at most `letters` letters, its upper left corner at `(x, y)`. Longer text ends in two dots, and what is
    /// not ASCII is a question mark.
    pub fn text(&mut self, (x, y): (usize, usize), text: &str, letters: usize) {
        let long = text.chars().count() > letters;
        let shown = if long {
            letters.saturating_sub(2)
        } else {
            letters
        };
        let dots = if long { ".." } else { "" };
        for (index, c) in text.chars().take(shown).chain(dots.chars()).enumerate() {
            let Some(glyph) = get_raster(c, WEIGHT, SIZE).or(get_raster('?', WEIGHT, SIZE)) else {
                continue;
            };
            let left = x + index * glyph.width();
            for (row, values) in glyph.rows().enumerate() {
                for (column, ink) in values.iter().enumerate() {
                    self.set((left + column, y + row), WHITE - ink / 4);
                }
            }
        }
    }

    /// Draws a map of `(rows, columns)`, each value as a square of `factor` pixels; `low` is the darkest colour, `high` the lightest.
    pub fn map(
        &mut self,
        (x, y): (usize, usize),
        values: &[f32],
        (rows, columns): (usize, usize),
        factor: usize,
        (low, high): (f32, f32),
    ) {
        let scale = (MAP_COLOURS - 1) as f32 / (high - low).max(f32::MIN_POSITIVE);
        for row in 0..rows * factor {
            for column in 0..columns * factor {
                let value = values[row / factor * columns + column / factor];
                let level = ((value - low) * scale).clamp(0.0, (MAP_COLOURS - 1) as f32);
                self.set((x + column, y + row), level.round() as u8);
            }
        }
    }

    /// Fills a rectangle with a grey, 0 is black and 63 is white.
    pub fn fill(&mut self, (x, y): (usize, usize), (width, height): (usize, usize), grey: u8) {
        for row in y..y + height {
            for column in x..x + width {
                self.set((column, row), MAP_COLOURS as u8 + grey.min(GREYS as u8 - 1));
            }
        }
    }

    fn set(&mut self, (x, y): (usize, usize), colour: u8) {
        if x < self.width && y < self.height {
            self.pixels[y * self.width + x] = colour;
        }
    }
}

/// A PNG file of pictures of one size, each with the time for which it is shown in milliseconds: of several an animation without
/// end, whose first picture is also what viewers without animation show.
pub(super) fn png(what: &'static str, frames: &[(Canvas, u16)]) -> Result<Vec<u8>, Error> {
    encode(frames).map_err(|source| Error::Png { what, source })
}

fn encode(frames: &[(Canvas, u16)]) -> Result<Vec<u8>, EncodingError> {
    let mut bytes = Vec::new();
    let (width, height) = frames.first().map_or((0, 0), |(first, _)| {
        (first.width as u32, first.height as u32)
    });
    let mut encoder = Encoder::new(&mut bytes, width, height);
    encoder.set_color(ColorType::Indexed);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_palette(palette());
    let animated = frames.len() > 1;
    if animated {
        encoder.set_animated(frames.len() as u32, 0)?;
    }
    let mut writer = encoder.write_header()?;
    for (frame, milliseconds) in frames {
        if animated {
            writer.set_frame_delay(*milliseconds, 1000)?;
        }
        writer.write_image_data(&frame.pixels)?;
    }
    writer.finish()?;
    Ok(bytes)
}

/// Red, green and blue of each colour.
fn palette() -> Vec<u8> {
    let maps = (0..MAP_COLOURS).flat_map(|level| {
        let at = level as f32 / (MAP_COLOURS - 1) as f32 * (ANCHORS.len() - 1) as f32;
        let below = (at.floor() as usize).min(ANCHORS.len() - 2);
        let share = at - below as f32;
        let (from, to) = (ANCHORS[below], ANCHORS[below + 1]);
        [0, 1, 2].map(|i| (from[i] + (to[i] - from[i]) * share).round() as u8)
    });
    let greys = (0..GREYS).flat_map(|level| [(level * 255 / (GREYS - 1)) as u8; 3]);
    maps.chain(greys).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn maps_letters_and_their_colours_come_back_from_the_file() {
        let mut canvas = Canvas::new(40, 24);
        canvas.map((2, 3), &[0.0, 1.0, 0.5, 9.0], (2, 2), 2, (0.0, 1.0));
        canvas.text((10, 2), "ab\u{B20}defgh", 4);
        canvas.fill((38, 0), (9, 9), 0);
        let bytes = png("test", &[(canvas, 0)]).unwrap();
        let image = image::load_from_memory(&bytes).unwrap().to_rgb8();
        assert_eq!(image.dimensions(), (40, 24));
        let at = |x, y| image.get_pixel(x, y).0;
        assert_eq!((at(2, 3), at(3, 4)), ([0, 0, 4], [0, 0, 4]));
        assert_eq!((at(4, 3), at(5, 6)), ([252, 253, 191], [252, 253, 191]));
        assert_eq!((at(0, 0), at(38, 8)), ([255; 3], [0; 3]));
        let ink = (10..38).flat_map(|x| (2..20).map(move |y| (x, y)));
        let ink = ink.filter(|&(x, y)| at(x, y)[0] < 128).count();
        assert!((20..200).contains(&ink), "{ink}");
    }

    #[test]
    fn several_pictures_are_an_animation() {
        let frame = |grey| {
            let mut canvas = Canvas::new(4, 4);
            canvas.fill((0, 0), (4, 4), grey);
            (canvas, 100)
        };
        let bytes = png("test", &[frame(0), frame(30), frame(63)]).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes))
            .read_info()
            .unwrap();
        let info = reader.info().animation_control.unwrap();
        assert_eq!((info.num_frames, info.num_plays), (3, 0));
        let mut pixels = vec![0; 16 * 3];
        for grey in [0, 30, 63] {
            reader.next_frame(&mut pixels).unwrap();
            assert_eq!(pixels[0], MAP_COLOURS as u8 + grey);
        }
        assert!(png("test", &[]).is_err());
    }
}
