//! The golden miniature: real vocabulary, two layers of 16 channels, 8 x 8 latents of 16 x 16 images.

use crate::golden;
use burn::tensor::Device;
use depurate_checkpoint::{Limits, Weights, read_json};
use depurate_diffusion::{
    autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig},
    clip_text::{ClipText, ClipTextConfig},
    clip_tokenizer::ClipTokenizer,
    noise::SeedTree,
    schedule::SchedulerConfig,
    text_to_image::{Parts, TextToImage},
    unet2d_condition::{UNet2DCondition, UNet2DConditionConfig},
};

/// The miniature on `device`.
///
/// # Panics
/// When a golden file is missing or malformed.
pub fn golden_model(device: &Device) -> TextToImage {
    let limits = Limits::default();
    let seed = SeedTree::new(0);
    let root = golden::root();
    let weights =
        |path: &str| Weights::open_file(&root.join(path), &limits).expect("a golden file");
    let json = |path: &str| {
        let path = root.join(path);
        (read_json(&path, &limits).expect("a golden file"), path)
    };
    let unet = "unet2d-condition/sd1_style/unet";
    let (config, path) = json(&format!("{unet}/config.json"));
    let config = UNet2DConditionConfig::from_json(&config, &path).expect("a golden file");
    let stored = weights(&format!("{unet}/diffusion_pytorch_model.safetensors"));
    let unet = UNet2DCondition::new(&config, &seed, device)
        .load(&stored, &path)
        .expect("a golden file");
    let text = root.join("clip-text/real_vocab_h16/model");
    let config = ClipTextConfig::read(&text.join("config.json"), &limits).expect("a golden file");
    let stored = weights("clip-text/real_vocab_h16/model/model.safetensors");
    let text_encoder = ClipText::new(&config, &seed, device)
        .load(&stored, &text)
        .expect("a golden file");
    let (config, path) = json("vae/kl_f2/vae/config.json");
    let config = AutoencoderKlConfig::from_json(&config, &path).expect("a golden file");
    let stored = weights("vae/kl_f2/vae/diffusion_pytorch_model.safetensors");
    let vae = AutoencoderKl::new(&config, &seed, device)
        .load(&stored, &path)
        .expect("a golden file");
    let (config, path) = json("unet2d-condition/sd1_style/scheduler/scheduler_config.json");
    let parts = Parts {
        tokenizer: ClipTokenizer::load(&root.join("clip-tokenizer/vocab"), &limits)
            .expect("a golden file"),
        text_encoder,
        unet,
        vae,
        scheduler: SchedulerConfig::from_json(&config, &path).expect("a golden file"),
    };
    TextToImage::from_parts(parts, device).expect("a golden file")
}

/// Captions whose words the vocabulary knows.
pub fn captions() -> Vec<String> {
    let mut captions = Vec::new();
    for object in ["cat", "dog", "fish", "fox", "mouse", "rooster"] {
        for colour in ["red", "blue", "yellow", "brown"] {
            captions.push(format!("a {colour} {object} on a white background"));
        }
    }
    captions
}
