//! What several test programs share.

use std::path::{Path, PathBuf};

/// A tiny pipeline with random weights, saved by diffusers: 1 channel.
pub fn tiny_pipeline() -> PathBuf {
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/unet2d/c4_options_mnist/pipeline");
    assert!(
        root.join("model_index.json").is_file(),
        "{} is missing",
        root.display()
    );
    root
}

/// A copy of [`tiny_pipeline`] that a test may damage.
pub fn copy_of_tiny_pipeline(to: &Path) -> PathBuf {
    let copy = to.join("model");
    for file in [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
    ] {
        let target = copy.join(file);
        std::fs::create_dir_all(target.parent().expect("a file has a folder"))
            .expect("a folder can be made");
        std::fs::copy(tiny_pipeline().join(file), target).expect("a file can be copied");
    }
    copy
}
