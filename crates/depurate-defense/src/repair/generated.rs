//! Clean images for a repair, drawn by the suspect itself.

use depurate_diffusion::{Denoiser, Pipeline, firing::Firing, noise::SeedTree};
use depurate_training::Dataset;

use super::replay::{drawn, steps};
use crate::{Cx, DefenseError};

/// `count` images of `model` from noise without a trigger, by deterministic sampling ([`Firing::Deterministic`]), in 8 bits. A
/// backdoor that leaks into ordinary samples leaks into these, too.
///
/// # Errors
/// When the model cannot be run, the budget is spent or the caller asked to stop.
pub fn generated(
    model: &Pipeline,
    count: usize,
    seed: &SeedTree,
    cx: &Cx<'_>,
) -> Result<Dataset, DefenseError> {
    let frozen = model.frozen();
    let shape = frozen.sample_shape();
    let total = steps(&frozen, Firing::Deterministic, count);
    cx.progress.start("own images", total);
    let bytes: Vec<u8> = cx.stage(&format!("own-images-{count}"), || {
        let images = drawn(&frozen, Firing::Deterministic, None, count, seed, cx)?;
        let bytes = (images.clamp(-1.0, 1.0) + 1.0) * 127.5;
        Ok(bytes
            .round()
            .into_data()
            .iter::<f32>()
            .map(|v| v as u8)
            .collect())
    })?;
    Ok(Dataset::from_bytes(shape, bytes)?)
}
