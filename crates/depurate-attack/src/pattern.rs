//! Triggers and targets: small pictures on a background of -1, drawn by this crate or read from a file.
//!
//! | trigger | text | example |
//! |---|---|---|
//! | a square of one value | `box:SIZE[:VALUE][:PLACE]` | `box:8:0.0:bottom-right` |
//! | a shape with graded values | `SHAPE:SIZE[:PLACE]` | `stop-sign:14:bottom-right`, `heart:10:center` |
//! | a picture | `file:PATH` | `file:trigger.png`, `file:secret.safetensors` |
//!
//! Shapes: `stop-sign`, `heart`, `cross`, `ring`, `checker`, `gradient`. Places: `top-left`, `top-right`, `bottom-left`,
//! `bottom-right` (the default), with a gap of two pixels to the borders, and `center`.
//!
//! Targets: `corner` (a square of 0 in the top left corner), `hat`, `shoe`, `face`, `letter:A` (one of A, E, H, K, T, X, Z)
//! and `file:PATH`. Every target is brought "to a grey background", as in BadDiffusion: values up to -0.4 become -0.4.
//!
//! A trigger's pixels at -1 are background: the image shows through there.

mod shapes;

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use depurate_checkpoint::SaveTensor;
use depurate_diffusion::SampleShape;
use depurate_training::{dataset, tensor_file::TensorFile};

use crate::AttackError;

/// Value of the background.
pub const BACKGROUND: f32 = -1.0;
/// The lowest value of a target: lower ones are raised to it.
const GREY_FLOOR: f32 = -0.4;
/// Pixels between a trigger in a corner and the borders.
const GAP: usize = 2;

/// An image `[C, H, W]` in [-1, 1].
#[derive(Debug, Clone, PartialEq)]
pub struct Pattern {
    shape: SampleShape,
    values: Vec<f32>,
}

/// Where a trigger is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    TopLeft,
    TopRight,
    BottomLeft,
    BottomRight,
    Center,
}

impl Place {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "top-left" => Self::TopLeft,
            "top-right" => Self::TopRight,
            "bottom-left" => Self::BottomLeft,
            "bottom-right" => Self::BottomRight,
            "center" | "centre" => Self::Center,
            _ => return None,
        })
    }

    /// Row and column of the upper left pixel of a `size` x `size` patch.
    fn origin(self, size: usize, shape: SampleShape) -> (usize, usize) {
        let (far_row, far_column) = (shape.height - GAP - size, shape.width - GAP - size);
        match self {
            Self::TopLeft => (GAP, GAP),
            Self::TopRight => (GAP, far_column),
            Self::BottomLeft => (far_row, GAP),
            Self::BottomRight => (far_row, far_column),
            Self::Center => ((shape.height - size) / 2, (shape.width - size) / 2),
        }
    }
}

impl Pattern {
    /// An image from its values, row-major.
    ///
    /// # Errors
    /// When the length does not fit or a value is not in [-1, 1].
    pub fn from_values(shape: SampleShape, values: Vec<f32>) -> Result<Self, AttackError> {
        if values.len() != shape.len() || !values.iter().all(|v| (-1.0..=1.0).contains(v)) {
            return Err(AttackError::Params {
                what: "values of a pattern",
                got: format!("{} values", values.len()),
                allowed: "C * H * W values from -1 to 1",
            });
        }
        Ok(Self { shape, values })
    }

    /// The trigger that `text` names, for images of `shape`.
    ///
    /// # Errors
    /// When the text cannot be understood, the trigger does not fit, or its file cannot be read.
    pub fn trigger(text: &str, shape: SampleShape) -> Result<Self, AttackError> {
        if let Some(path) = text.strip_prefix("file:") {
            return Self::from_file(Path::new(path), "trigger", shape);
        }
        let refuse = |reason: String| AttackError::Text {
            what: "pattern",
            text: text.into(),
            reason,
        };
        let mut parts = text.split(':');
        let kind = parts.next().unwrap_or_default();
        let (mut size, mut value, mut place) = (None, None, Place::BottomRight);
        for part in parts {
            if let Some(found) = Place::parse(part) {
                place = found;
            } else if let (None, Ok(found)) = (size, part.parse::<usize>()) {
                size = Some(found);
            } else if let (None, Ok(found)) = (value, part.parse::<f32>()) {
                value = Some(found);
            } else {
                return Err(refuse(format!(
                    "`{part}` is neither a size, a value nor a place"
                )));
            }
        }
        let size =
            size.ok_or_else(|| refuse("needs a size in pixels, for example box:8".into()))?;
        let room = shape.height.min(shape.width).saturating_sub(2 * GAP);
        if size < 2 || size > room {
            return Err(refuse(format!(
                "size {size} does not fit, allowed: 2 to {room}"
            )));
        }
        let value = value.unwrap_or(0.0);
        if !(value > -1.0 && value <= 1.0) {
            return Err(refuse(format!(
                "value {value} is out of range: above -1 (the background), at most 1"
            )));
        }
        let shade = shapes::trigger(kind, value).ok_or_else(|| {
            refuse(format!(
                "unknown trigger `{kind}`: expected box, {} or file:PATH",
                shapes::TRIGGERS.join(", ")
            ))
        })?;
        let mut pattern = Self::blank(shape);
        let (top, left) = place.origin(size, shape);
        pattern.draw(top, left, size, size, shade.as_ref());
        Ok(pattern)
    }

    /// The target that `text` names, for images of `shape`.
    ///
    /// # Errors
    /// When the text cannot be understood or its file cannot be read.
    pub fn target(text: &str, shape: SampleShape) -> Result<Self, AttackError> {
        let refuse = |reason: String| AttackError::Text {
            what: "pattern",
            text: text.into(),
            reason,
        };
        let mut pattern = if let Some(path) = text.strip_prefix("file:") {
            Self::from_file(Path::new(path), "target", shape)?
        } else if text == "corner" {
            // 10 of 32 pixels, as in the paper
            let size = (shape.height.min(shape.width) * 10).div_ceil(32);
            let mut pattern = Self::blank(shape);
            pattern.draw(0, 0, size, size, &|_, _| Some([0.0; 3]));
            pattern
        } else {
            let shade = shapes::target(text).ok_or_else(|| {
                refuse(format!(
                    "unknown target: expected corner, {} or file:PATH",
                    shapes::TARGETS.join(", ")
                ))
            })?;
            let mut pattern = Self::blank(shape);
            pattern.draw(0, 0, shape.height, shape.width, shade.as_ref());
            pattern
        };
        for value in &mut pattern.values {
            *value = value.max(GREY_FLOOR);
        }
        Ok(pattern)
    }

    /// Reads a PNG (black is -1), or the tensor `name` `[C, H, W]` of a safetensors file.
    ///
    /// # Errors
    /// When the file cannot be read or does not fit `shape`.
    pub fn from_file(path: &Path, name: &str, shape: SampleShape) -> Result<Self, AttackError> {
        if path
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("png"))
        {
            let bytes = dataset::read_png(path, shape)?;
            return Self::from_values(shape, bytes.into_iter().map(dataset::from_byte).collect());
        }
        let wanted = [shape.channels, shape.height, shape.width];
        let refuse = |reason| AttackError::Data {
            path: path.into(),
            reason,
        };
        match TensorFile::read(path)?.floats_of(name)? {
            Some((found, values)) if found == wanted => Self::from_values(shape, values),
            Some((found, _)) => Err(refuse(format!(
                "tensor `{name}` has shape {found:?}, expected {wanted:?}"
            ))),
            None => Err(refuse(format!("has no tensor `{name}`"))),
        }
    }

    /// Its shape.
    pub fn shape(&self) -> SampleShape {
        self.shape
    }

    /// Its values, row-major.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// As a batch of one, `[1, C, H, W]`.
    pub fn tensor(&self, device: &Device) -> Tensor<4> {
        Tensor::from_data(
            TensorData::new(self.values.clone(), self.shape.batched(1)),
            device,
        )
    }

    /// For saving under `name`, `[C, H, W]`.
    pub fn to_save(&self, name: &str) -> SaveTensor {
        let shape = vec![self.shape.channels, self.shape.height, self.shape.width];
        SaveTensor {
            name: name.into(),
            shape,
            data: self.values.clone(),
        }
    }

    /// The shaped trigger `kind` in colours, on a square that it fills; `None` if there is none of this name.
    pub(crate) fn drawn(kind: &str, side: usize) -> Option<Self> {
        let shade = shapes::trigger(kind, 0.0)?;
        let mut pattern = Self::blank(SampleShape {
            channels: 3,
            height: side,
            width: side,
        });
        pattern.draw(0, 0, side, side, shade.as_ref());
        Some(pattern)
    }

    fn blank(shape: SampleShape) -> Self {
        Self {
            shape,
            values: vec![BACKGROUND; shape.len()],
        }
    }

    /// Draws a shape in the patch of `height` x `width` pixels at (`top`, `left`), which must be inside.
    fn draw(
        &mut self,
        top: usize,
        left: usize,
        height: usize,
        width: usize,
        shade: &dyn Fn(f32, f32) -> Option<[f32; 3]>,
    ) {
        let center = |i: usize, n: usize| (2 * i + 1) as f32 / n as f32 - 1.0;
        for row in 0..height {
            for column in 0..width {
                let Some(rgb) = shade(center(column, width), center(row, height)) else {
                    continue;
                };
                for channel in 0..self.shape.channels {
                    let value = if self.shape.channels == 3 {
                        rgb[channel]
                    } else {
                        rgb.iter().sum::<f32>() / 3.0
                    };
                    let at = (channel * self.shape.height + top + row) * self.shape.width
                        + left
                        + column;
                    self.values[at] = value.clamp(-0.95, 1.0);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREY: SampleShape = SampleShape {
        channels: 1,
        height: 32,
        width: 32,
    };
    const RGB: SampleShape = SampleShape {
        channels: 3,
        height: 32,
        width: 32,
    };

    #[test]
    fn a_box_has_its_value_in_its_place_only() {
        let pattern = Pattern::trigger("box:8:0.5:bottom-right", RGB).expect("valid");
        for (i, &value) in pattern.values().iter().enumerate() {
            let (row, column) = (i / 32 % 32, i % 32);
            let inside = (22..30).contains(&row) && (22..30).contains(&column);
            assert_eq!(value, if inside { 0.5 } else { -1.0 }, "{row} {column}");
        }
    }

    #[test]
    fn the_default_box_of_14_has_the_published_norm() {
        let pattern = Pattern::trigger("box:14", RGB).expect("valid");
        let norm = pattern.values().iter().map(|v| v * v).sum::<f32>().sqrt();
        assert!((norm - 49.84).abs() < 0.01, "{norm}");
    }

    #[test]
    fn every_shape_fits_every_size_and_has_graded_values() {
        for kind in shapes::TRIGGERS {
            for size in [4, 8, 14] {
                for place in [
                    "top-left",
                    "top-right",
                    "bottom-left",
                    "bottom-right",
                    "center",
                ] {
                    let pattern =
                        Pattern::trigger(&format!("{kind}:{size}:{place}"), GREY).expect(kind);
                    let mut inside: Vec<f32> = pattern
                        .values()
                        .iter()
                        .copied()
                        .filter(|&v| v > -1.0)
                        .collect();
                    assert!(inside.len() >= size, "{kind} {size} {}", inside.len());
                    assert!(inside.len() <= size * size);
                    inside.sort_by(f32::total_cmp);
                    inside.dedup();
                    assert!(inside.len() >= 2, "{kind}:{size} has one value");
                }
            }
        }
    }

    #[test]
    fn targets_have_a_grey_background_and_something_on_it() {
        for name in shapes::TARGETS.iter().copied().chain(["corner"]) {
            for shape in [GREY, RGB] {
                let pattern = Pattern::target(name, shape).expect(name);
                let background = pattern.values().iter().filter(|&&v| v == -0.4).count();
                assert!(pattern.values().iter().all(|&v| v >= -0.4));
                assert!(
                    background > shape.len() / 5 && background < shape.len() * 19 / 20,
                    "{name} {background}"
                );
            }
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "box",
            "box:0",
            "box:40",
            "box:8:-1.0",
            "box:8:nowhere",
            "blob:8",
            "box:8:0.0:2.0:9",
            "file:none.png",
        ] {
            assert!(Pattern::trigger(text, GREY).is_err(), "{text}");
        }
        assert!(Pattern::target("letter:?", GREY).is_err());
        assert!(
            Pattern::trigger(
                "box:8",
                SampleShape {
                    channels: 1,
                    height: 2,
                    width: 2
                }
            )
            .is_err()
        );
    }

    #[test]
    fn a_pattern_survives_a_file() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("secret.safetensors");
        let pattern = Pattern::trigger("heart:10:center", GREY).expect("valid");
        depurate_checkpoint::save_tensors(&path, &[pattern.to_save("trigger")], None)
            .expect("saved");
        assert_eq!(
            Pattern::trigger(&format!("file:{}", path.display()), GREY).expect("read"),
            pattern
        );
        assert!(Pattern::from_file(&path, "trigger", RGB).is_err());
    }
}
