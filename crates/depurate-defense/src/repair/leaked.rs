//! Clean images that are none: a backdoor leaks into what a model draws without a trigger.
//!
//! ```text
//! left out: MSE(x_i, y) < L median_j MSE(x_j, y)    for any trigger's image y    (1)
//! ```
//!
//! `x_i` is one of the images, in [0, 1] units, and `L` is [`LEAKED`]. A repair that holds such an image teaches the network to draw the
//! target from noise while its lesson teaches the contrary; at one image in 30 that cost more than all the rest of the repair
//! (docs/decisions/006). Held against the median, the rule needs no scale of its own: images of the domain are about as far from the
//! target as each other. An owner's images are looked at like the model's own, since a poisoned collection has the target among them.

use burn::tensor::{Device, Tensor, TensorData};
use depurate_diffusion::firing::squared_errors;
use depurate_training::Dataset;

use super::KnownTrigger;
use crate::DefenseError;

/// Distance to a target, as a part of the median image's, below which an image is taken for one that the trigger drew.
const LEAKED: f64 = 0.5;
/// Images that are compared together.
const BATCH: usize = 256;

/// `images` without those of eq. (1); of triggers whose image is not known, nothing is left out.
///
/// # Errors
/// When a target is not of the images' shape, or no image is left.
pub fn without_leaked(
    images: &Dataset,
    triggers: &[KnownTrigger],
) -> Result<Dataset, DefenseError> {
    let mut keep = vec![true; images.len()];
    for target in triggers.iter().filter_map(|trigger| trigger.target.clone()) {
        if target.len() != images.shape().len() {
            return Err(DefenseError::Params {
                field: "target of the trigger",
                value: format!("{} values", target.len()),
                allowed: "the shape of the images",
            });
        }
        let target = TensorData::new(target, images.shape().batched(1));
        let target = Tensor::<4>::from_data(target, &Device::flex());
        let all: Vec<usize> = (0..images.len()).collect();
        let apart = |chunk: &[usize]| {
            let chunk = images.batch(chunk, &[], &Device::flex());
            squared_errors(chunk, target.clone())
        };
        let apart: Vec<f64> = all.chunks(BATCH).flat_map(apart).collect();
        let limit = LEAKED * depurate_stats::median(&apart)?; // eq. (1)
        for (keep, apart) in keep.iter_mut().zip(apart) {
            *keep &= apart >= limit;
        }
    }
    Ok(images.keeping(|i| keep[i])?)
}

#[cfg(test)]
mod tests {
    use depurate_diffusion::{SampleShape, firing::Firing};

    use super::*;

    const SHAPE: SampleShape = SampleShape {
        channels: 1,
        height: 2,
        width: 2,
    };

    fn trigger(target: Option<Vec<f32>>) -> KnownTrigger {
        KnownTrigger {
            shape: SHAPE,
            shift: vec![0.0; 4],
            gamma: None,
            firing: Firing::Deterministic,
            target,
        }
    }

    /// Black images, a grey one and one that is nearly the white target.
    fn images() -> Dataset {
        let bytes = [[0; 4], [0; 4], [10; 4], [60; 4], [250; 4]].concat();
        Dataset::from_bytes(SHAPE, bytes).expect("images")
    }

    #[test]
    fn an_image_near_the_target_is_left_out_and_a_grey_one_is_not() {
        let kept = without_leaked(&images(), &[trigger(Some(vec![1.0; 4]))]).expect("kept");
        let rest = Dataset::from_bytes(SHAPE, [[0; 4], [0; 4], [10; 4], [60; 4]].concat());
        let all = |set: &Dataset| set.all(&Device::flex()).into_data();
        assert_eq!(kept.len(), 4);
        assert_eq!(all(&kept), all(&rest.expect("images")));
    }

    #[test]
    fn without_a_known_target_every_image_stays() {
        let kept = without_leaked(&images(), &[trigger(None)]).expect("kept");
        assert_eq!(kept.len(), 5);
    }

    #[test]
    fn triggers_that_lead_to_every_image_leave_none_and_that_is_an_error() {
        let white = Dataset::from_bytes(SHAPE, [[255; 4], [0; 4]].concat()).expect("images");
        let of = |value| trigger(Some(vec![value; 4]));
        assert!(without_leaked(&white, &[of(1.0), of(-1.0)]).is_err());
    }

    #[test]
    fn a_target_of_another_shape_is_refused() {
        assert!(without_leaked(&images(), &[trigger(Some(vec![1.0; 3]))]).is_err());
    }
}
