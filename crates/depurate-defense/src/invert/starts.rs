//! Where an inversion starts: shifts that may lie in a backdoor's basin.

use depurate_diffusion::{firing::Firing, noise::SeedTree};

use crate::{
    DefenseError,
    hypothesis::Hypothesis,
    probe::{Probe, values},
};

/// Named starts `[C, H, W]`: two constants, and `own` samples of the model with doubled contrast or, every
/// fourth, reduced to signs.
///
/// A poisoned shift is an image that carries the trigger, so an image is near one; a network takes a faint
/// shift for noise, so they are amplified.
pub(crate) fn starts(
    probe: &Probe<'_>,
    own: usize,
    steps: usize,
    seed: &SeedTree,
) -> Result<Vec<(String, Vec<f32>)>, DefenseError> {
    let len = probe.shape().len();
    let mut found = vec![
        ("constant, dark".to_owned(), vec![-1.0; len]),
        ("constant, bright".to_owned(), vec![1.0; len]),
    ];
    let eps = probe.noise(&seed.child("own samples", 0), own)?;
    // with no shift, sampling in shifted coordinates is ordinary deterministic sampling
    let none = Hypothesis::plain(Firing::Stochastic, vec![0.0; len]);
    let samples = values(none.sample(probe, eps, steps)?.clamp(-1.0, 1.0));
    for (i, image) in samples.chunks_exact(len).enumerate() {
        let (label, shift): (_, Vec<f32>) = if i % 4 == 3 {
            ("signs", image.iter().map(|v| v.signum()).collect())
        } else {
            (
                "doubled contrast",
                image.iter().map(|v| (2.0 * v).clamp(-1.0, 1.0)).collect(),
            )
        };
        found.push((format!("own sample {}, {label}", i + 1), shift));
    }
    Ok(found)
}
