//! Models that ship with the project.

use crate::golden;
use burn::tensor::Device;
use depurate_checkpoint::{Checkpoint, Layers, Limits};
use depurate_diffusion::text_to_image::TextToImage;

/// The zoo's text-to-image model with `deltas` of the zoo laid over it, on `device`.
///
/// # Panics
/// When a file is missing or malformed.
pub fn emoji(deltas: &[&str], device: &Device) -> TextToImage {
    let zoo = golden::root().join("../zoo");
    let limits = Limits::default();
    let checkpoint = Checkpoint::open(&zoo.join("emoji-a"), &limits).expect("a model of the zoo");
    let layers = Layers {
        deltas: deltas.iter().map(|delta| zoo.join(delta)).collect(),
        ..Layers::default()
    };
    let loaded = TextToImage::layered(&checkpoint, &layers, &limits, device);
    loaded.expect("a model of the zoo").0
}
