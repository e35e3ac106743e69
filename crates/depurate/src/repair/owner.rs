//! Clean images of the owner's.
//!
//! What a training has seen says too little of its result. So the images are parted by the run's seed: one half teaches, and quality is
//! held against the other, without the images that a trigger leads to: a collection can be poisoned.

use std::path::Path;

use depurate_defense::{
    DefenseError,
    repair::{KnownTrigger, without_leaked},
};
use depurate_diffusion::{SampleShape, noise::SeedTree};
use depurate_training::{Dataset, DatasetParams, Split};
use rand::seq::SliceRandom;

use crate::Error;

/// Images of the owner's.
#[derive(Debug)]
pub(super) struct OwnerImages {
    /// Those that a repair may use.
    pub(super) taught: Dataset,
    /// Those that no training sees.
    pub(super) held: Dataset,
}

impl OwnerImages {
    /// Reads the folder or file at `path`.
    pub(super) fn read(
        path: &Path,
        shape: SampleShape,
        triggers: &[KnownTrigger],
        seed: u64,
    ) -> Result<Self, Error> {
        let params = DatasetParams {
            split: Split::All,
            ..DatasetParams::default()
        };
        let all = Dataset::read(path, shape, &params).map_err(DefenseError::from)?;
        Self::parted(&all, triggers, seed)
    }

    fn parted(all: &Dataset, triggers: &[KnownTrigger], seed: u64) -> Result<Self, Error> {
        if all.len() < 2 {
            return Err(Error::Usage {
                problem: "one clean image cannot both teach a repair and judge it".into(),
                mend: "give two or more with --clean-data, better some hundreds",
            });
        }
        let mut teaches: Vec<bool> = (0..all.len()).map(|i| i % 2 == 0).collect();
        let mut rng = SeedTree::new(seed).child("owner's images", 0).rng();
        teaches.shuffle(&mut rng);
        let part = |wanted: bool| all.keeping(|i| teaches[i] == wanted);
        let held = part(false).map_err(DefenseError::from)?;
        Ok(Self {
            taught: part(true).map_err(DefenseError::from)?,
            held: without_leaked(&held, triggers)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use depurate_diffusion::{Device, firing::Firing};

    use super::*;

    const SHAPE: SampleShape = SampleShape {
        channels: 1,
        height: 1,
        width: 2,
    };

    fn brightness(set: &Dataset) -> Vec<i64> {
        let all = set.all(&Device::flex()).into_data();
        let mut first: Vec<i64> = all
            .iter::<f32>()
            .step_by(2)
            .map(|v| ((v + 1.0) * 127.5).round() as i64)
            .collect();
        first.sort_unstable();
        first
    }

    #[test]
    fn every_image_teaches_or_is_held_back() {
        let bytes: Vec<u8> = (0..50).flat_map(|i| [i, i]).collect();
        let all = Dataset::from_bytes(SHAPE, bytes).expect("images");
        let parts = |seed| OwnerImages::parted(&all, &[], seed).expect("parted");
        let of = parts(1);
        assert_eq!((of.taught.len(), of.held.len()), (25, 25));
        let mut both = [brightness(&of.taught), brightness(&of.held)].concat();
        both.sort_unstable();
        assert_eq!(both, (0..50).collect::<Vec<i64>>());
        assert_eq!(brightness(&of.held), brightness(&parts(1).held));
        assert_ne!(brightness(&of.held), brightness(&parts(2).held));
    }

    #[test]
    fn quality_is_not_held_against_the_target() {
        let target = [255, 0];
        let bytes: Vec<u8> = (0..40)
            .flat_map(|i| if i < 4 { target } else { [i, 100 + i] })
            .collect();
        let all = Dataset::from_bytes(SHAPE, bytes).expect("images");
        let trigger = KnownTrigger {
            shape: SHAPE,
            shift: vec![1.0, 1.0],
            gamma: None,
            firing: Firing::Stochastic,
            target: Some(vec![1.0, -1.0]),
        };
        let of = OwnerImages::parted(&all, &[trigger], 0).expect("parted");
        assert!(!brightness(&of.held).contains(&255));
        assert!(of.held.len() < 20 && of.taught.len() == 20);
    }

    #[test]
    fn one_image_is_too_few() {
        let one = Dataset::from_bytes(SHAPE, vec![0, 1]).expect("an image");
        assert!(OwnerImages::parted(&one, &[], 0).is_err());
    }
}
