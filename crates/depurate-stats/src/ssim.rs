//! # Structural similarity of two grey images
//!
//! ```text
//! ssim = (2 m_a m_b + c_1)(2 v_ab + c_2) / ((m_a² + m_b² + c_1)(v_a + v_b + c_2)),  c_1 = 0.01², c_2 = 0.03²
//! ```
//!
//! with means and (co)variances under a Gaussian window of 11 x 11 pixels, sigma 1.5, averaged over the places where the window
//! lies in the image (Wang et al., IEEE TIP 2004). Values are in [0, 1].

use crate::StatsError;

/// Side of the window.
const WINDOW: usize = 11;
const SIGMA: f64 = 1.5;
const C_1: f64 = 1e-4;
const C_2: f64 = 9e-4;

/// The similarity of `a` and `b`, each `height * width` values in [0, 1], row-major; 1 for equal images.
///
/// # Errors
/// When an image is smaller than the window, a length does not fit or a value is not finite.
pub fn ssim(a: &[f64], b: &[f64], height: usize, width: usize) -> Result<f64, StatsError> {
    if height < WINDOW || width < WINDOW {
        return Err(StatsError::TooFew {
            what: "side of an image",
            got: height.min(width),
            need: WINDOW,
        });
    }
    for (what, image) in [("a", a), ("b", b)] {
        crate::error::check_values(what, image, height * width)?;
        if image.len() != height * width {
            return Err(StatsError::OutOfRange {
                what,
                value: image.len() as f64,
                range: "height * width values",
            });
        }
    }
    let product =
        |x: &[f64], y: &[f64]| -> Vec<f64> { x.iter().zip(y).map(|(x, y)| x * y).collect() };
    let blur = |image: &[f64]| blurred(image, height, width);
    let (m_a, m_b) = (blur(a), blur(b));
    let (aa, bb, ab) = (
        blur(&product(a, a)),
        blur(&product(b, b)),
        blur(&product(a, b)),
    );
    let sum: f64 = (0..m_a.len())
        .map(|i| {
            let (m_a, m_b) = (m_a[i], m_b[i]);
            let (v_a, v_b, v_ab) = (aa[i] - m_a * m_a, bb[i] - m_b * m_b, ab[i] - m_a * m_b);
            (2.0 * m_a * m_b + C_1) * (2.0 * v_ab + C_2)
                / ((m_a * m_a + m_b * m_b + C_1) * (v_a + v_b + C_2))
        })
        .sum();
    Ok(sum / m_a.len() as f64)
}

/// Weighted means under the window, where it lies in the image.
fn blurred(image: &[f64], height: usize, width: usize) -> Vec<f64> {
    let centre = (WINDOW / 2) as f64;
    let weights: Vec<f64> = (0..WINDOW)
        .map(|i| (-(i as f64 - centre).powi(2) / (2.0 * SIGMA * SIGMA)).exp())
        .collect();
    let total: f64 = weights.iter().sum();
    let dot = |at: &dyn Fn(usize) -> f64| -> f64 {
        weights
            .iter()
            .enumerate()
            .map(|(i, w)| w * at(i))
            .sum::<f64>()
            / total
    };
    let (rows, columns) = (height - WINDOW + 1, width - WINDOW + 1);
    let across: Vec<f64> = (0..height * columns)
        .map(|i| dot(&|k| image[i / columns * width + i % columns + k]))
        .collect();
    (0..rows * columns)
        .map(|i| dot(&|k| across[(i / columns + k) * columns + i % columns]))
        .collect()
}
