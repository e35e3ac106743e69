//! The configurations of Stable Diffusion 1.5 and 2.1 at full size: every parameter listed, none allocated.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};

use depurate_checkpoint::{Limits, read_json};
use depurate_diffusion::{
    Device,
    autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig},
    clip_text::{ClipText, ClipTextConfig},
    module_weights::ParameterInfo,
    noise::SeedTree,
    sampler,
    schedule::{SchedulerClass, SchedulerConfig},
    unet2d_condition::{UNet2DCondition, UNet2DConditionConfig},
};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/full_size")
        .join(name)
}

fn object(name: &str) -> serde_json::Map<String, serde_json::Value> {
    read_json(&file(name), &Limits::default()).unwrap()
}

fn unet(name: &str) -> Vec<ParameterInfo> {
    let config = UNet2DConditionConfig::from_json(&object(name), &file(name)).unwrap();
    UNet2DCondition::new(&config, &SeedTree::new(0), &Device::flex()).parameters()
}

fn text(name: &str) -> Vec<ParameterInfo> {
    let config = ClipTextConfig::read(&file(name), &Limits::default()).unwrap();
    ClipText::new(&config, &SeedTree::new(0), &Device::flex()).parameters()
}

fn vae(name: &str) -> Vec<ParameterInfo> {
    let config = AutoencoderKlConfig::from_json(&object(name), &file(name)).unwrap();
    AutoencoderKl::new(&config, &SeedTree::new(0), &Device::flex()).parameters()
}

fn count(parameters: &[ParameterInfo]) -> usize {
    let size = |info: &ParameterInfo| info.shape.iter().product::<usize>();
    parameters.iter().map(size).sum()
}

fn shape<'a>(parameters: &'a [ParameterInfo], name: &str) -> &'a [usize] {
    let found = parameters.iter().find(|info| info.name == name);
    &found.unwrap_or_else(|| panic!("no {name}")).shape
}

#[test]
fn stable_diffusion_1_has_its_parameters() {
    let (unet, text, vae) = (
        unet("sd1/unet.json"),
        text("sd1/text_encoder.json"),
        vae("sd1/vae.json"),
    );
    assert_eq!((unet.len(), count(&unet)), (686, 859_520_964));
    assert_eq!((text.len(), count(&text)), (196, 123_060_480));
    assert_eq!((vae.len(), count(&vae)), (248, 83_653_863));
    let attention = "up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_k.weight";
    assert_eq!(shape(&unet, attention), [320, 768]);
    assert_eq!(
        shape(&unet, "mid_block.attentions.0.proj_in.weight"),
        [1280, 1280, 1, 1]
    );
}

#[test]
fn stable_diffusion_2_has_its_parameters() {
    let (unet, text) = (unet("sd2/unet.json"), text("sd2/text_encoder.json"));
    assert_eq!((unet.len(), count(&unet)), (686, 865_910_724));
    assert_eq!((text.len(), count(&text)), (372, 340_387_840));
    assert_eq!(count(&vae("sd2/vae.json")), 83_653_863);
    assert_eq!(
        shape(&unet, "mid_block.attentions.0.proj_in.weight"),
        [1280, 1280]
    );
}

#[test]
fn their_schedulers_are_read() {
    let read = |name| SchedulerConfig::from_json(&object(name), &file(name)).unwrap();
    let own = read("sd1/scheduler.json");
    assert_eq!(own.class, SchedulerClass::Pndm);
    let sampler = sampler::from_config(&own, 50).unwrap();
    assert_eq!(sampler.timesteps().len(), 51);
    assert_eq!(sampler.timesteps()[..4], [981, 961, 961, 941]);
    assert_eq!(sampler.timesteps()[50], 1);
    let second = read("sd2/scheduler.json");
    let sampler = sampler::from_config(&second, 50).unwrap();
    assert_eq!(sampler.timesteps().len(), 50);
}
