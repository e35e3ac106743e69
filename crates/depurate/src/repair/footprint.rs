//! Where a trigger acts, for a person to see.

use depurate_defense::{
    Cx,
    repair::text::{Drawing, Footprint, Latents, Material, TextPatient, sau_weights},
};
use depurate_diffusion::{SampleShape, Tensor, noise::SeedTree};
use depurate_report::Evidence;

use super::pictures::{Made, sheet};
use crate::Error;

/// Pairs of pictures that the maps are taken of.
const PAIRS: usize = 16;

/// Three maps of the latent's places: what the trigger changes, what attends to it, and the mask that `sau-weights` makes of both.
pub(super) fn maps(
    patient: &TextPatient<'_>,
    drawing: Drawing,
    seed: &SeedTree,
    cx: &Cx<'_>,
) -> Result<Evidence, Error> {
    let material = Material::new(patient, Latents::Noise, cx)?;
    let how = (drawing.steps, drawing.guidance);
    let footprint = Footprint::of(&material, PAIRS, how, seed, cx)?;
    let mask = sau_weights::mask(&footprint);
    let [height, width] = mask.dims();
    let map = |map: Tensor<2>| map.reshape([1, 1, height, width]) * 2.0 - 1.0;
    let maps = [footprint.change, footprint.attention, mask].map(map);
    let made = Made {
        sampler: "DDIM (eta = 0)",
        steps: drawing.steps,
        shape: SampleShape {
            channels: 1,
            height,
            width,
        },
        caption: "Places of the latent. First how far pictures of triggered prompts are from those of the clean ones, then the \
                  attention to the trigger, each from its least (black) to its most (white), then the mask of both.",
    };
    sheet(
        "where the trigger acts",
        &made,
        &Tensor::cat(maps.to_vec(), 0),
        false,
    )
}
