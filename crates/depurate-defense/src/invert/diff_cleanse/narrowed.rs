//! Where a narrowed prior is: a fixed point at almost pure noise, for triggers that the network answers none of.
//!
//! In the mode of a trigger `(mu, G)` the network answers `x = m + g eps` at `T` with `e = (x - mu) / G`, outside it with `x`:
//!
//! ```text
//! slope of e in eps = g / G                   (1)
//! m' = m - G mean_j e_j                       (2)
//! ```
//!
//! On a benign network `G = 1`, and (2) leads to 0. A narrow `x` is unlikely under the benign prior, so that small `g` start in
//! the mode of a blended trigger even at `m = 0`.

use depurate_diffusion::{SampleShape, firing::Firing, noise::SeedTree};

use crate::{
    DefenseError,
    hypothesis::{Hypothesis, regression::SCALES},
    probe::{Probe, batch_mean, values},
};

/// Part of the way to (2) that an iteration goes.
const DAMPING: f64 = 0.7;
/// A region whose scale (1) stays above this has no narrowed mode.
const WIDE: f64 = 0.9;
/// Sides of the windows at the corners, as parts of the image's.
const WINDOWS: [f64; 2] = [0.25, 0.43];
/// Values that a window starts at.
const WINDOW_VALUES: [f32; 2] = [-0.8, 0.8];
/// Scales of a blend in its first iteration, and of any region in its last: a narrow sample is in the trigger's mode from
/// farther away, a wider one is what the network was trained on.
const BLENDS: [f32; 2] = [0.15, 0.4];
const LAST: f32 = 0.5;
/// Scale of a window.
const WINDOW: f32 = 0.2;
/// Iterations, and antithetic pairs of noises in each.
const ITERATIONS: usize = 8;
const PAIRS: usize = 4;

/// A region of the image and where the iteration in it starts.
struct Region<'a> {
    /// Where the prior is narrowed, `[C, H, W]`; elsewhere it is standard normal.
    inside: &'a [bool],
    /// `m` inside, `[C, H, W]`.
    start: &'a [f32],
    /// `g` inside, in the first and in the last iteration.
    scales: [f32; 2],
}

/// Named hypotheses: of the whole image from nothing and from the images `own`, and of windows at the corners.
pub(super) fn narrowed(
    probe: &Probe<'_>,
    own: &[(String, Vec<f32>)],
    seed: &SeedTree,
) -> Result<Vec<(String, Hypothesis)>, DefenseError> {
    let shape = probe.shape();
    let everywhere = vec![true; shape.len()];
    let mut starts = vec![("none".to_owned(), vec![0.0; shape.len()])];
    starts.extend(own.iter().cloned());
    let mut found = Vec::new();
    for (i, (name, image)) in starts.iter().enumerate() {
        for scale in BLENDS {
            // a blended trigger is an image times 1 - gamma
            let start: Vec<f32> = image.iter().map(|v| v * (1.0 - scale)).collect();
            let region = Region {
                inside: &everywhere,
                start: &start,
                scales: [scale, LAST],
            };
            let end = fixed_point(probe, &region, &seed.child("blend", i as u64))?;
            found.push((format!("{name}, from scale {scale}"), end));
        }
    }
    for (i, (name, inside)) in windows(shape).iter().enumerate() {
        for value in WINDOW_VALUES {
            let start = vec![value; shape.len()];
            let region = Region {
                inside,
                start: &start,
                scales: [WINDOW; 2],
            };
            let end = fixed_point(probe, &region, &seed.child("window", i as u64))?;
            let narrow = end.gamma.iter().flatten().any(|&g| f64::from(g) < WIDE);
            if narrow {
                found.push((format!("window {name} of {value}"), end));
            }
        }
    }
    Ok(found)
}

/// Squares at the corners.
fn windows(shape: SampleShape) -> Vec<(String, Vec<bool>)> {
    let side = |part: f64| ((shape.height.min(shape.width) as f64 * part).round() as usize).max(1);
    let mut found = Vec::new();
    for part in WINDOWS {
        let side = side(part);
        for (corner, bottom, right) in [
            ("top left", false, false),
            ("top right", false, true),
            ("bottom left", true, false),
            ("bottom right", true, true),
        ] {
            let within = |at: usize, size: usize, far: bool| {
                if far { at + side >= size } else { at < side }
            };
            let inside = (0..shape.len()).map(|i| {
                let (y, x) = (i / shape.width % shape.height, i % shape.width);
                within(y, shape.height, bottom) && within(x, shape.width, right)
            });
            found.push((format!("{side} at the {corner}"), inside.collect()));
        }
    }
    found
}

/// Iterates (2) in a region; all of its pixels have one scale.
fn fixed_point(
    probe: &Probe<'_>,
    region: &Region<'_>,
    seed: &SeedTree,
) -> Result<Hypothesis, DefenseError> {
    let t = probe.schedule().len() - 1;
    let len = region.inside.len();
    let choose = |inside: f32, outside: f32| -> Vec<f32> {
        let of = |&is: &bool| if is { inside } else { outside };
        region.inside.iter().map(of).collect()
    };
    let within = choose(1.0, 0.0);
    let mut mu: Vec<f32> = region
        .start
        .iter()
        .zip(&within)
        .map(|(m, w)| m * w)
        .collect();
    let mut scale = 1.0;
    for iteration in 0..ITERATIONS {
        let part = iteration as f32 / (ITERATIONS - 1) as f32;
        let from = region.scales[0] + part * (region.scales[1] - region.scales[0]);
        let noise = seed.child("narrowed", iteration as u64);
        let eps = probe.antithetic_noise(&noise, PAIRS)?;
        let e = values(probe.epsilon(
            eps.clone() * probe.image(&choose(from, 1.0)) + probe.image(&mu),
            t,
        )?);
        let (mut product, mut square) = (0.0, 0.0);
        for (i, (&e, &eps)) in e.iter().zip(&values(eps)).enumerate() {
            if region.inside[i % len] {
                product += f64::from(e) * f64::from(eps);
                square += f64::from(eps).powi(2);
            }
        }
        let slope = product / f64::max(square, 1e-12);
        scale = (f64::from(from) / slope.max(1e-3)).clamp(SCALES.0, SCALES.1); // eq. (1)
        let moves = batch_mean(&e, len).into_iter().zip(&within);
        for (m, (e, &within)) in mu.iter_mut().zip(moves) {
            let moved = f64::from(*m) - DAMPING * scale * e * f64::from(within); // eq. (2)
            *m = moved.clamp(-1.0, 1.0) as f32;
        }
    }
    Ok(Hypothesis {
        firing: Firing::Modified,
        shift: mu,
        gamma: Some(choose(scale as f32, 1.0)),
    })
}
