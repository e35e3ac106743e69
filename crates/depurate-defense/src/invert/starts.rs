//! Where descents on a shift start.

use depurate_diffusion::{SampleShape, noise::SeedTree};
use rand::RngExt;

/// The starts, in turn: uniform as TERD's and Elijah's code start for BadDiffusion, its negative (Elijah for TrojDiff), and
/// over the whole range (Elijah for VillanDiffusion). With what it is called; `[C, H, W]`.
pub(super) fn start(shape: SampleShape, restart: usize, seed: &SeedTree) -> (String, Vec<f32>) {
    let mut rng = seed.child("start", 0).rng();
    let (label, range) = match restart % 3 {
        0 => ("uniform in [-1, 0]", -1.0..=0.0),
        1 => ("uniform in [0, 1]", 0.0..=1.0),
        _ => ("uniform in [-1, 1]", -1.0..=1.0f32),
    };
    (
        label.to_owned(),
        (0..shape.len())
            .map(|_| rng.random_range(range.clone()))
            .collect(),
    )
}
