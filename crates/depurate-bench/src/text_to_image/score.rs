//! How well pictures fit their captions by a pair of encoders that was trained contrastively: our CLIP-style score. It is not CLIP's,
//! and where the model's own text encoder comes from the same training it is not independent of the model.

use std::path::Path;

use depurate_diffusion::{
    Device, Tensor, clip_pair::ClipPair, clip_text::ClipTextConfig, image_tower::ImageTowerConfig,
    noise::SeedTree, text_to_image::TextToImage,
};
use miette::{IntoDiagnostic, Result};
use serde_json::Value;

use super::component;

/// Pictures that pass the encoders together.
const BATCH: usize = 32;

/// A pair of encoders.
pub(crate) struct Scorer(ClipPair);

impl Scorer {
    /// Loads the folder `pair` that `text-to-image encoders` writes.
    pub(crate) fn load(dir: &Path, device: &Device) -> Result<Self> {
        let config = component::config(dir)?;
        let part = |name: &str| config.get(name).cloned().unwrap_or(Value::Null);
        let image: ImageTowerConfig = serde_json::from_value(part("image")).into_diagnostic()?;
        let text: ClipTextConfig = serde_json::from_value(part("text")).into_diagnostic()?;
        let weights = component::weights(dir, component::TRANSFORMERS_STEM)?;
        let pair = ClipPair::new(&text, &image, &SeedTree::new(0), device)
            .and_then(|pair| pair.load(&weights, dir))
            .into_diagnostic()?;
        Ok(Self(pair))
    }

    /// 100 times the mean cosine of `pictures [N, 3, H, W]` and their `captions`, as `model` splits these into tokens.
    pub(crate) fn score(
        &self,
        model: &TextToImage,
        pictures: &Tensor<4>,
        captions: &[String],
    ) -> Result<f64> {
        let mut sum = 0.0;
        for (round, some) in captions.chunks(BATCH).enumerate() {
            let ids: Result<Vec<Vec<u32>>, _> = some
                .iter()
                .map(|caption| model.tokenizer().encode(caption).map(|tokens| tokens.ids))
                .collect();
            let texts = self
                .0
                .embed_texts(&ids.into_diagnostic()?)
                .into_diagnostic()?;
            let images = pictures.clone().narrow(0, round * BATCH, some.len());
            let images = self.0.embed_images(images).into_diagnostic()?;
            sum += f64::from((texts * images).sum().into_scalar::<f32>());
        }
        Ok(100.0 * sum / captions.len().max(1) as f64)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use depurate_diffusion::noise::NoiseSource as _;
    use depurate_testkit::miniature::golden_model;
    use serde_json::json;

    use super::*;

    /// A pair with random weights beside the text encoder `text`, saved to `dir`.
    pub(crate) fn save_pair(dir: &Path, text: &ClipTextConfig) -> ClipPair {
        let image = ImageTowerConfig {
            channels: 3,
            widths: vec![8, 8],
            groups: 4,
            outputs: 8,
        };
        let seed = SeedTree::new(3);
        let pair = ClipPair::new(text, &image, &seed, &Device::flex()).expect("a pair");
        let config = json!({ "image": image, "text": component::text_config(text, 0) });
        let stem = component::TRANSFORMERS_STEM;
        component::save(dir, stem, &config, &pair.to_tensors()).expect("saved");
        pair
    }

    /// A caption's own embedding has a cosine of 1 with itself, and no score leaves [-100, 100].
    #[test]
    fn a_score_is_a_mean_cosine_of_the_saved_pair() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let device = Device::flex();
        let model = golden_model(&device);
        let text = model.text_encoder().config();
        let pair = save_pair(dir.path(), text);
        let scorer = Scorer::load(dir.path(), &device).expect("loads");
        let captions: Vec<String> = (0..BATCH + 3).map(|i| format!("a dog {i}")).collect();
        let shape = [captions.len(), 3, 16, 16];
        let mut noise = SeedTree::new(4).noise(0, captions.len());
        let pictures = noise.normal(shape, &device).expect("noise");
        let score = scorer.score(&model, &pictures, &captions).expect("scored");
        let one = |i: usize| -> f64 {
            let ids = model.tokenizer().encode(&captions[i]).expect("tokens").ids;
            let text = pair.embed_texts(&[ids]).expect("a text");
            let image = pair
                .embed_images(pictures.clone().narrow(0, i, 1))
                .expect("a picture");
            f64::from((text * image).sum().into_scalar::<f32>())
        };
        let each: f64 = (0..captions.len()).map(one).sum();
        let expected = 100.0 * each / captions.len() as f64;
        assert!((score - expected).abs() < 1e-3, "{score} {expected}");
    }
}
