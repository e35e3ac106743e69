//! Control shifts: as large as the candidate trigger, but not it.

use rand::{RngExt, seq::SliceRandom};

use depurate_diffusion::{SampleShape, noise::SeedTree};

use crate::probe::norm;

/// A shift with a name.
#[derive(Debug, Clone)]
pub(crate) struct NamedShift {
    pub(crate) label: String,
    pub(crate) shift: Vec<f32>,
}

/// Controls of the norm of `candidate [C, H, W]`: two pixel permutations, the sign flip, two
/// constants, three smooth random fields.
pub(crate) fn controls(candidate: &[f32], shape: SampleShape, seed: &SeedTree) -> Vec<NamedShift> {
    let size = norm(candidate);
    let mut found = Vec::with_capacity(8);
    for i in 0..2 {
        found.push((
            format!("permuted pixels {}", i + 1),
            permuted(candidate, shape, &seed.child("permuted", i)),
        ));
    }
    found.push((
        "sign flipped".to_owned(),
        candidate.iter().map(|v| -v).collect(),
    ));
    found.push(("constant, dark".to_owned(), vec![-1.0; candidate.len()]));
    found.push(("constant, bright".to_owned(), vec![1.0; candidate.len()]));
    for i in 0..3 {
        found.push((
            format!("smooth random {}", i + 1),
            smooth(shape, &seed.child("smooth", i)),
        ));
    }
    found
        .into_iter()
        .map(|(label, shift)| NamedShift {
            label,
            shift: with_norm(shift, size),
        })
        .collect()
}

fn with_norm(mut shift: Vec<f32>, size: f64) -> Vec<f32> {
    let factor = size / norm(&shift).max(1e-12);
    shift
        .iter_mut()
        .for_each(|v| *v = (f64::from(*v) * factor) as f32);
    shift
}

/// The same pixels in another order, whole colours kept together.
fn permuted(image: &[f32], shape: SampleShape, seed: &SeedTree) -> Vec<f32> {
    let plane = shape.height * shape.width;
    let mut order: Vec<usize> = (0..plane).collect();
    order.shuffle(&mut seed.rng());
    (0..shape.channels)
        .flat_map(|c| order.iter().map(move |&i| (c, i)))
        .map(|(c, i)| image[c * plane + i])
        .collect()
}

/// A random field of a few low frequencies a channel, root mean square about 1.
pub(crate) fn smooth(shape: SampleShape, seed: &SeedTree) -> Vec<f32> {
    const WAVES: usize = 6;
    let mut rng = seed.rng();
    let mut field = Vec::with_capacity(shape.len());
    for _ in 0..shape.channels {
        let waves: Vec<[f32; 4]> = (0..WAVES)
            .map(|_| {
                let frequency = || 0.0..2.0f32;
                [
                    rng.random_range(frequency()),
                    rng.random_range(frequency()),
                    rng.random_range(0.0..1.0),
                    rng.random_range(0.5..1.0),
                ]
            })
            .collect();
        for y in 0..shape.height {
            for x in 0..shape.width {
                let (y, x) = (
                    y as f32 / shape.height as f32,
                    x as f32 / shape.width as f32,
                );
                let value: f32 = waves
                    .iter()
                    .map(|[fy, fx, phase, amplitude]| {
                        amplitude * (std::f32::consts::TAU * (fy * y + fx * x + phase)).sin()
                    })
                    .sum();
                field.push(value / (WAVES as f32 * 0.3).sqrt());
            }
        }
    }
    field
}
