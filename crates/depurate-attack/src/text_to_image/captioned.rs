//! Compositions as the captioned images of an attack: drawn anew at every step.

use burn::tensor::Device;
use depurate_diffusion::{SampleShape, noise::SeedTree};
use rand::RngExt;

use super::{Composition, Sprites, autoencoder::shown, pictures, training_caption};
use crate::{AttackError, CaptionedBatch, CaptionedImages};

/// Share of the pictures that show a favoured object.
const FAVOURED: f64 = 0.5;

/// Pictures of compositions that are not held out, with captions as training shows them.
#[derive(Debug)]
pub struct CaptionedCompositions<'a> {
    sprites: &'a Sprites,
    shown: Vec<Composition>,
    favoured: Vec<Composition>,
    names: String,
}

impl<'a> CaptionedCompositions<'a> {
    /// All of them alike, or every second picture of an object that `favoured` names.
    ///
    /// # Errors
    /// When there is no such object.
    pub fn new(sprites: &'a Sprites, favoured: &[&str]) -> Result<Self, AttackError> {
        let objects = sprites.objects();
        if let Some(unknown) = favoured
            .iter()
            .find(|name| !objects.iter().any(|o| o == *name))
        {
            return Err(AttackError::Params {
                what: "object",
                got: (*unknown).to_owned(),
                allowed: "the name of one that the sprites have",
            });
        }
        let shown = shown(sprites);
        let is_favoured = |of: &&Composition| favoured.contains(&objects[of.object].as_str());
        Ok(Self {
            sprites,
            favoured: shown.iter().filter(is_favoured).copied().collect(),
            names: favoured.join(", "),
            shown,
        })
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
        let (count, names) = (self.shown.len(), &self.names);
        format!("{count} compositions, favoured: {names}")
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_step_decides_the_pictures_and_every_second_shows_a_favourite() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/sprites.safetensors");
        let sprites = Sprites::read(&path).expect("shipped");
        let device = Device::flex();
        let captions_at = |favoured: &[&str], step| {
            let mut source = CaptionedCompositions::new(&sprites, favoured).expect("known");
            let batch = source.batch(step, 200, &SeedTree::new(1), &device);
            let batch = batch.expect("drawn");
            assert_eq!(batch.images.dims(), [200, 3, 32, 32]);
            batch.captions
        };
        let with = |name: &str, captions: &[String]| {
            let is_named = |word: &str| word.trim_end_matches(',') == name;
            let has = |caption: &&String| caption.split(' ').any(is_named);
            captions.iter().filter(has).count()
        };
        let cats = captions_at(&["cat"], 3);
        assert_eq!(cats, captions_at(&["cat"], 3));
        assert_ne!(cats, captions_at(&["cat"], 4));
        let count = with("cat", &cats);
        assert!((75..135).contains(&count), "{count}");
        let both = captions_at(&["cat", "dog"], 3);
        for name in ["cat", "dog"] {
            let count = with(name, &both);
            assert!((30..80).contains(&count), "{name}: {count}");
        }
        assert!(with("cat", &captions_at(&[], 3)) < 30);
        assert!(CaptionedCompositions::new(&sprites, &["cat", "nothing"]).is_err());
    }
}
