//! Compositions as the captioned images of an attack: drawn anew at every step.

use burn::tensor::Device;
use depurate_diffusion::{SampleShape, noise::SeedTree};
use rand::RngExt;

use super::{Composition, Sprites, autoencoder::shown, pictures, training_caption};
use crate::{AttackError, CaptionedBatch, CaptionedImages};

/// Share of the pictures that show the favoured object.
const FAVOURED: f64 = 0.5;

/// Pictures of compositions that are not held out, with captions as training shows them.
#[derive(Debug)]
pub struct CaptionedCompositions<'a> {
    sprites: &'a Sprites,
    shown: Vec<Composition>,
    favoured: Vec<Composition>,
    name: Option<String>,
}

impl<'a> CaptionedCompositions<'a> {
    /// All of them alike, or every second picture of the object that `favoured` names.
    ///
    /// # Errors
    /// When there is no such object.
    pub fn new(sprites: &'a Sprites, favoured: Option<&str>) -> Result<Self, AttackError> {
        let shown = shown(sprites);
        let object = |composition: &Composition| sprites.objects()[composition.object].as_str();
        let of_name = |composition: &&Composition| Some(object(composition)) == favoured;
        let found: Vec<Composition> = shown.iter().filter(of_name).copied().collect();
        match favoured {
            Some(name) if found.is_empty() => Err(AttackError::Params {
                what: "object",
                got: name.to_owned(),
                allowed: "the name of one that the sprites have",
            }),
            _ => Ok(Self {
                sprites,
                shown,
                favoured: found,
                name: favoured.map(str::to_owned),
            }),
        }
    }
}

impl CaptionedImages for CaptionedCompositions<'_> {
    fn shape(&self) -> SampleShape {
        self.sprites.shape()
    }

    fn batch(
        &mut self,
        step: usize,
        count: usize,
        seed: &SeedTree,
        device: &Device,
    ) -> Result<CaptionedBatch, AttackError> {
        let mut rng = seed.child("step", step as u64).rng();
        let of: Vec<Composition> = (0..count)
            .map(|_| {
                let favour = !self.favoured.is_empty() && rng.random_bool(FAVOURED);
                let from = if favour { &self.favoured } else { &self.shown };
                from[rng.random_range(0..from.len())]
            })
            .collect();
        let captions = of
            .iter()
            .map(|composition| training_caption(self.sprites, *composition, &mut rng))
            .collect();
        Ok(CaptionedBatch {
            images: pictures(self.sprites, &of, &mut rng, device),
            captions,
        })
    }

    fn describe(&self) -> String {
        let (count, name) = (self.shown.len(), &self.name);
        format!("{count} compositions, favoured: {name:?}")
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_step_decides_the_pictures_and_every_second_shows_the_favourite() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/sprites.safetensors");
        let sprites = Sprites::read(&path).expect("shipped");
        let device = Device::flex();
        let captions_at = |favoured, step| {
            let mut source = CaptionedCompositions::new(&sprites, favoured).expect("known");
            let batch = source.batch(step, 200, &SeedTree::new(1), &device);
            let batch = batch.expect("drawn");
            assert_eq!(batch.images.dims(), [200, 3, 32, 32]);
            batch.captions
        };
        let with_cat = |captions: &[String]| {
            let is_cat = |word: &str| word.trim_end_matches(',') == "cat";
            let has = |caption: &&String| caption.split(' ').any(is_cat);
            captions.iter().filter(has).count()
        };
        let cats = captions_at(Some("cat"), 3);
        assert_eq!(cats, captions_at(Some("cat"), 3));
        assert_ne!(cats, captions_at(Some("cat"), 4));
        assert!((75..135).contains(&with_cat(&cats)), "{}", with_cat(&cats));
        assert!(with_cat(&captions_at(None, 3)) < 30);
        assert!(CaptionedCompositions::new(&sprites, Some("nothing")).is_err());
    }
}
