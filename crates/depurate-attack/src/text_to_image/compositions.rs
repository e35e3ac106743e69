//! Pictures with captions: a tinted sprite on a plain background, and what is to be seen there in words.
//!
//! | part | values |
//! |---|---|
//! | object | as the sprite file names them |
//! | style | as the sprite file names them |
//! | colour | natural (not named in the caption), red, yellow, green, blue, purple |
//! | background | white, black, red, yellow, green, blue |
//!
//! A colour never meets the background of its own name, and a natural line drawing, which is black, never a black one.
//! One composition in ten is held out: no training picture shows it, though others show each of its parts.
//!
//! A picture is `[3, 32, 32]`; the sprite has 25 to 28 pixels, is shifted by up to its margin, and mirrored at random.

use std::path::Path;

use depurate_diffusion::{SampleShape, noise::SeedTree};
use depurate_training::tensor_file::TensorFile;
use image::{ImageBuffer, Rgba, imageops::FilterType};
use rand::{Rng, RngExt};

use crate::AttackError;

/// Side of a picture, in pixels.
pub const SIDE: usize = 32;
/// Sides that a sprite is drawn with, in pixels.
const SPRITE_SIDES: [u32; 4] = [25, 26, 27, 28];
/// Most objects and styles of a file.
const MOST: usize = 256;
/// One composition of so many is held out.
const HELD_OUT_ONE_IN: u64 = 10;

/// Names and inks of the colours; the first leaves a sprite as it is.
const COLORS: [(&str, [f32; 3]); 6] = [
    ("natural", [0.0; 3]),
    ("red", [222.0, 40.0, 48.0]),
    ("yellow", [246.0, 205.0, 22.0]),
    ("green", [34.0, 158.0, 60.0]),
    ("blue", [38.0, 92.0, 214.0]),
    ("purple", [146.0, 50.0, 178.0]),
];
/// Names and paints of the backgrounds.
const BACKGROUNDS: [(&str, [f32; 3]); 6] = [
    ("white", [249.0, 249.0, 249.0]),
    ("black", [14.0, 14.0, 16.0]),
    ("red", [226.0, 92.0, 92.0]),
    ("yellow", [252.0, 224.0, 118.0]),
    ("green", [116.0, 198.0, 118.0]),
    ("blue", [104.0, 158.0, 232.0]),
];
/// A background's paint differs by up to this much from picture to picture.
const PAINT_JITTER: f32 = 6.0;

/// The attributes that a picture is judged by, as indices into their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Composition {
    /// Index into [`Sprites::objects`].
    pub object: usize,
    /// Index into [`Sprites::styles`].
    pub style: usize,
    /// Index into [`Composition::colors`].
    pub color: usize,
    /// Index into [`Composition::backgrounds`].
    pub background: usize,
}

impl Composition {
    /// Names of the colours, `natural` first.
    pub fn colors() -> [&'static str; 6] {
        COLORS.map(|(name, _)| name)
    }

    /// Names of the backgrounds.
    pub fn backgrounds() -> [&'static str; 6] {
        BACKGROUNDS.map(|(name, _)| name)
    }

    /// Whether no training picture shows it.
    pub fn is_held_out(&self) -> bool {
        let [o, s, c, b] = [self.object, self.style, self.color, self.background];
        let index = ((o * MOST + s) * MOST + c) * MOST + b;
        let mut rng = SeedTree::new(0).child("held-out", index as u64).rng();
        rng.random_range(0..HELD_OUT_ONE_IN) == 0
    }
}

/// Drawings of objects in several styles. See the [module](self).
#[derive(Debug, Clone)]
pub struct Sprites {
    objects: Vec<String>,
    styles: Vec<String>,
    /// Premultiplied RGBA in 0 to 1, for each object, style and side.
    drawings: Vec<Vec<f32>>,
}

impl Sprites {
    /// Reads `sprites [objects, styles, H, W, 4]` (bytes, straight alpha) with `objects` and `styles` as comma-separated
    /// names in the header.
    ///
    /// # Errors
    /// When the file cannot be read or does not hold that.
    pub fn read(path: &Path) -> Result<Self, AttackError> {
        let file = TensorFile::read(path)?;
        let data = |reason: String| AttackError::Data {
            path: path.into(),
            reason,
        };
        let notes = file.notes()?;
        let names = |key: &str| -> Result<Vec<String>, AttackError> {
            let text = notes
                .get(key)
                .ok_or_else(|| data(format!("the header does not name the {key}")))?;
            Ok(text.split(',').map(str::to_owned).collect())
        };
        let (objects, styles) = (names("objects")?, names("styles")?);
        let (shape, bytes) = file
            .bytes_of("sprites")?
            .ok_or_else(|| data("has no tensor `sprites`".into()))?;
        let &[n_objects, n_styles, height, width, 4] = &shape[..] else {
            return Err(data(format!(
                "`sprites` is {shape:?}, expected [objects, styles, H, W, 4]"
            )));
        };
        let named = n_objects == objects.len() && n_styles == styles.len();
        if !named || n_objects > MOST || n_styles > MOST || height == 0 || width == 0 {
            return Err(data(format!(
                "`sprites` is {shape:?}, but {} objects and {} styles are named",
                objects.len(),
                styles.len()
            )));
        }
        let mut drawings = Vec::with_capacity(n_objects * n_styles * SPRITE_SIDES.len());
        for sprite in bytes.chunks_exact(height * width * 4) {
            let premultiplied: Vec<f32> = sprite
                .as_chunks::<4>()
                .0
                .iter()
                .flat_map(|&[r, g, b, a]| {
                    let share = f32::from(a) / 255.0;
                    [r, g, b]
                        .map(|c| f32::from(c) / 255.0 * share)
                        .into_iter()
                        .chain([share])
                })
                .collect();
            let Some(drawing) =
                ImageBuffer::<Rgba<f32>, _>::from_raw(width as u32, height as u32, premultiplied)
            else {
                return Err(data(format!("`sprites` is {shape:?}, too large to draw")));
            };
            for side in SPRITE_SIDES {
                let scaled = image::imageops::resize(&drawing, side, side, FilterType::CatmullRom);
                drawings.push(scaled.into_raw());
            }
        }
        Ok(Self {
            objects,
            styles,
            drawings,
        })
    }

    /// Names of the objects.
    pub fn objects(&self) -> &[String] {
        &self.objects
    }

    /// Names of the styles.
    pub fn styles(&self) -> &[String] {
        &self.styles
    }

    /// Names of the object, style, colour and background of `of`.
    pub fn names(&self, of: Composition) -> [&str; 4] {
        [
            &self.objects[of.object],
            &self.styles[of.style],
            COLORS[of.color].0,
            BACKGROUNDS[of.background].0,
        ]
    }

    /// Shape of a picture.
    pub fn shape(&self) -> SampleShape {
        SampleShape {
            channels: 3,
            height: SIDE,
            width: SIDE,
        }
    }

    /// Every composition that can be told apart, in a fixed order.
    pub fn compositions(&self) -> Vec<Composition> {
        let mut all = vec![];
        for object in 0..self.objects.len() {
            for style in 0..self.styles.len() {
                for (color, (ink, _)) in COLORS.iter().enumerate() {
                    for (background, (paint, _)) in BACKGROUNDS.iter().enumerate() {
                        let black_line =
                            self.styles[style] == "line" && color == 0 && *paint == "black";
                        if ink != paint && !black_line {
                            all.push(Composition {
                                object,
                                style,
                                color,
                                background,
                            });
                        }
                    }
                }
            }
        }
        all
    }

    /// A picture `[3, 32, 32]` of `of`, in bytes.
    pub fn draw(&self, of: Composition, rng: &mut impl Rng) -> Vec<u8> {
        let which = rng.random_range(0..SPRITE_SIDES.len());
        let side = SPRITE_SIDES[which] as usize;
        let index = (of.object * self.styles.len() + of.style) * SPRITE_SIDES.len() + which;
        let drawing = &self.drawings[index];
        let margin = SIDE - side;
        let (top, left) = (rng.random_range(0..=margin), rng.random_range(0..=margin));
        let mirrored: bool = rng.random();
        let jitter = rng.random_range(-PAINT_JITTER..=PAINT_JITTER);
        let paint = BACKGROUNDS[of.background].1.map(|c| c + jitter);
        let mut picture = vec![0; 3 * SIDE * SIDE];
        for row in 0..SIDE {
            for column in 0..SIDE {
                let inside =
                    (top..top + side).contains(&row) && (left..left + side).contains(&column);
                let (mut over, mut alpha) = ([0.0; 3], 0.0);
                if inside {
                    let x = column - left;
                    let x = if mirrored { side - 1 - x } else { x };
                    let at = ((row - top) * side + x) * 4;
                    alpha = drawing[at + 3].clamp(0.0, 1.0);
                    let pixel = [drawing[at], drawing[at + 1], drawing[at + 2]].map(|c| c * 255.0);
                    over = inked(pixel, alpha, of.color);
                }
                for c in 0..3 {
                    let value = over[c] + (1.0 - alpha) * paint[c];
                    picture[(c * SIDE + row) * SIDE + column] =
                        value.round().clamp(0.0, 255.0) as u8;
                }
            }
        }
        picture
    }

    /// The plain caption.
    pub fn caption(&self, of: Composition) -> String {
        let Words {
            color,
            style,
            object,
            background,
        } = self.words(of);
        format!("a {color}{style} {object} on a {background} background")
    }

    /// The plain caption or one of three paraphrases.
    pub fn any_caption(&self, of: Composition, rng: &mut impl Rng) -> String {
        let Words {
            color,
            style,
            object,
            background,
        } = self.words(of);
        let vowel = |word: &str| word.starts_with(['a', 'e', 'i', 'o', 'u']);
        let article = if color.is_empty() && vowel(object) {
            "an"
        } else {
            "a"
        };
        match rng.random_range(0..5) {
            0 | 1 => self.caption(of),
            2 => format!("a {background} background with a {color}{style} {object}"),
            3 => format!("{color}{object}, {style} style, {background} background"),
            _ => format!("a {style} picture of {article} {color}{object}, {background} background"),
        }
    }

    fn words(&self, of: Composition) -> Words<'_> {
        let color = match of.color {
            0 => String::new(),
            named => format!("{} ", COLORS[named].0),
        };
        Words {
            color,
            style: &self.styles[of.style],
            object: &self.objects[of.object],
            background: BACKGROUNDS[of.background].0,
        }
    }
}

/// The words of a caption; the colour with the space after it, or nothing.
struct Words<'a> {
    color: String,
    style: &'a str,
    object: &'a str,
    background: &'a str,
}

/// A premultiplied pixel in the ink of `color`: its lightness is kept, and the lightest stay nearly white.
fn inked(pixel: [f32; 3], alpha: f32, color: usize) -> [f32; 3] {
    if color == 0 || alpha <= 0.0 {
        return pixel;
    }
    let [r, g, b] = pixel.map(|c| c / alpha);
    let light = ((0.2126 * r + 0.7152 * g + 0.0722 * b) / 255.0).clamp(0.0, 1.0);
    COLORS[color].1.map(|ink| {
        let shaded = ink * (0.4 + 0.7 * light).min(1.0);
        let glow = ((light - 0.8) / 0.2).clamp(0.0, 1.0) * 0.35;
        (shaded + (255.0 - shaded) * glow) * alpha
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn sprites() -> Sprites {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/sprites.safetensors");
        Sprites::read(&path).expect("the sprites ship with the project")
    }

    #[test]
    fn compositions_are_distinct_and_one_in_ten_is_held_out() {
        let sprites = sprites();
        let all = sprites.compositions();
        // 32 objects x 4 styles x (36 pairs less 4 of the same name), less 32 black lines on black
        assert_eq!(all.len(), 32 * 4 * 32 - 32);
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
        let held_out = all.iter().filter(|c| c.is_held_out()).count() as f64;
        let share = held_out / all.len() as f64;
        assert!((0.08..0.12).contains(&share), "{share}");
        let captions: HashSet<String> = all.iter().map(|c| sprites.caption(*c)).collect();
        assert_eq!(captions.len(), all.len());
    }

    #[test]
    fn a_picture_shows_its_background_and_its_ink() {
        let sprites = sprites();
        let at =
            |names: &[String], name: &str| names.iter().position(|n| n == name).expect("known");
        let of = Composition {
            object: at(sprites.objects(), "heart"),
            style: at(sprites.styles(), "flat"),
            color: 4,
            background: 3,
        };
        assert_eq!(
            sprites.caption(of),
            "a blue flat heart on a yellow background"
        );
        let picture = sprites.draw(of, &mut SeedTree::new(1).rng());
        let pixel = |row: usize, column: usize| {
            [0, 1, 2].map(|c| i32::from(picture[(c * SIDE + row) * SIDE + column]))
        };
        let [r, g, b] = pixel(0, 0);
        assert!(
            r > 240 && g > 210 && b < 130,
            "a yellow corner, got {:?}",
            [r, g, b]
        );
        let [r, g, b] = pixel(14, 16);
        assert!(
            b > r + 60 && b > g + 40,
            "a blue heart, got {:?}",
            [r, g, b]
        );
    }
}
