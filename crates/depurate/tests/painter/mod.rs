//! A tiny text-to-image model.

use std::path::{Path, PathBuf};

/// A tiny text-to-image pipeline with random weights, put together from parts that diffusers and transformers saved.
pub fn tiny_text_to_image(to: &Path) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden");
    let pipeline = to.join("painter");
    let write = |file: &str, text: &str| {
        let target = pipeline.join(file);
        std::fs::create_dir_all(target.parent().expect("a file has a folder"))
            .expect("a folder can be made");
        std::fs::write(target, text).expect("a file can be written");
    };
    write(
        "model_index.json",
        r#"{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", "PNDMScheduler"],
            "safety_checker": [null, null], "requires_safety_checker": false}"#,
    );
    write(
        "scheduler/scheduler_config.json",
        r#"{"_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
            "num_train_timesteps": 1000, "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1}"#,
    );
    for (part, from) in [
        ("unet", "unet2d-condition/sd1_style/unet"),
        ("vae", "vae/kl_f2/vae"),
        ("text_encoder", "clip-text/real_vocab_h16/model"),
        ("tokenizer", "clip-tokenizer/vocab"),
    ] {
        let folder = std::fs::read_dir(golden.join(from)).expect("a part of the pipeline");
        std::fs::create_dir_all(pipeline.join(part)).expect("a folder can be made");
        for entry in folder {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a file has a name");
            std::fs::copy(&path, pipeline.join(part).join(name)).expect("a file can be copied");
        }
    }
    pipeline
}
