//! Saves a model again and writes what it answers, for `tools/diffusers/compare.py`.
//!
//! `cargo run --release -p depurate-diffusion --example forward -- MODEL OUT_DIR` writes `OUT_DIR/model` (a diffusers
//! directory) and `OUT_DIR/answers.safetensors` (`x_t`, `t` and `out`).

use std::{error::Error, path::Path};

use depurate_checkpoint::{Limits, SaveDtype, SaveTensor, save_tensors};
use depurate_diffusion::{
    Denoiser, Device, NoTap, Pipeline,
    noise::{NoiseSource, SeedTree},
};

const BATCH: usize = 4;
const TIMESTEPS: [usize; BATCH] = [0, 10, 500, 999];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, out] = arguments.as_slice() else {
        return Err("expected: MODEL OUT_DIR".into());
    };
    let out = Path::new(out);
    let device = Device::flex();
    let pipeline = Pipeline::load(Path::new(model), &Limits::default(), &device)?;
    let shape = pipeline.sample_shape().batched(BATCH);
    let last = pipeline.schedule().len() - 1;
    let t = TIMESTEPS.map(|t| t.min(last));
    let x_t = SeedTree::new(0).noise(0, BATCH).normal(shape, &device)?;
    let answer = pipeline.predict(x_t.clone(), &t, &mut NoTap)?.value;

    std::fs::create_dir_all(out)?;
    pipeline.save(&out.join("model"), SaveDtype::F32)?;
    let save = |name: &str, shape: &[usize], data: Vec<f32>| SaveTensor {
        name: name.to_owned(),
        shape: shape.to_vec(),
        data,
    };
    let tensors = [
        save("x_t", &shape, x_t.into_data().iter::<f32>().collect()),
        save("t", &[BATCH], t.iter().map(|&t| t as f32).collect()),
        save(
            "out",
            &answer.dims(),
            answer.into_data().iter::<f32>().collect(),
        ),
    ];
    save_tensors(&out.join("answers.safetensors"), &tensors, None)?;
    Ok(())
}
