//! Saves a text-to-image pipeline again and writes what it makes of a prompt, for `tools/diffusers/compare_text_to_image.py`.
//!
//! `cargo run --release -p depurate-diffusion --example text_to_image -- MODEL OUT_DIR "PROMPT" [GUIDANCE [STEPS]]` writes
//! `OUT_DIR/model` (a diffusers directory), `OUT_DIR/answers.safetensors` (`latents`: the noise that it started from, `image`: in
//! `[0, 1]`) and `OUT_DIR/answers.json` (the prompt and how it was sampled: with the pipeline's own sampler).

use std::{error::Error, path::Path};

use depurate_checkpoint::{Limits, SaveDtype, SaveTensor, save_tensors, write_atomic};
use depurate_diffusion::{
    Device, TextToImage,
    noise::{NoNoise, NoiseSource, SeedTree},
    sampler::{self, never_stop, sample},
};
use serde_json::json;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, out, prompt, numbers @ ..] = arguments.as_slice() else {
        return Err("expected: MODEL OUT_DIR PROMPT [GUIDANCE [STEPS]]".into());
    };
    let guidance: f64 = numbers.first().map_or(Ok(7.5), |text| text.parse())?;
    let steps: usize = numbers.get(1).map_or(Ok(20), |text| text.parse())?;
    let (out, device) = (Path::new(out), Device::flex());
    let pipeline = TextToImage::load(Path::new(model), &Limits::default(), &device)?.frozen();
    let shape = pipeline.latent_shape().batched(1);
    let latents = SeedTree::new(0).noise(0, 1).normal(shape, &device)?;
    let states = |text: &str| pipeline.encode(&[text]).map(|encoded| encoded.states);
    let denoiser = pipeline.guided(states(prompt)?, states("")?, guidance)?;
    let sampler = sampler::from_config(pipeline.scheduler(), steps)?;
    let x = latents.clone();
    let x_0 = sample(
        &denoiser,
        sampler.as_ref(),
        x,
        &mut NoNoise,
        &mut never_stop,
    )?;
    let image = (pipeline.decode(x_0)? / 2.0 + 0.5).clamp(0.0, 1.0);

    std::fs::create_dir_all(out)?;
    pipeline.save(&out.join("model"), SaveDtype::F32)?;
    let tensors = [("latents", latents), ("image", image)].map(|(name, tensor)| SaveTensor {
        name: name.to_owned(),
        shape: tensor.dims().to_vec(),
        data: tensor.into_data().iter::<f32>().collect(),
    });
    save_tensors(&out.join("answers.safetensors"), &tensors, None)?;
    let how = json!({ "prompt": prompt, "guidance": guidance, "steps": steps });
    write_atomic(&out.join("answers.json"), format!("{how:#}\n").as_bytes())?;
    Ok(())
}
