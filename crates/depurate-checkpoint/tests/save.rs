//! What is written is what diffusers reads, and nothing half-written stands under a final name.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use depurate_checkpoint::{
    Checkpoint, CheckpointError, Dtype, Limits, Result, SaveComponent, SaveDtype, SaveTensor,
    UNET_STEM, Weights, save_pipeline, save_tensors, write_atomic,
};
use serde_json::{Value, json};

fn tensors() -> Vec<SaveTensor> {
    let data = (0..36).map(|i| i as f32 / 7.0 - 2.0).collect();
    vec![
        SaveTensor {
            name: "conv_in.weight".into(),
            shape: vec![2, 2, 3, 3],
            data,
        },
        SaveTensor {
            name: "conv_in.bias".into(),
            shape: vec![2],
            data: vec![0.5, -65504.0],
        },
    ]
}

fn model_index() -> Value {
    json!({
        "_class_name": "DDPMPipeline",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    })
}

fn save(dir: &Path, tensors: &[SaveTensor], dtype: SaveDtype) -> Result<()> {
    let unet = json!({ "_class_name": "UNet2DModel", "in_channels": 2 });
    let scheduler = json!({ "_class_name": "DDPMScheduler", "num_train_timesteps": 1000 });
    let components = [
        SaveComponent::new("unet")
            .json("config.json", &unet)
            .weights(UNET_STEM, || tensors.to_vec()),
        SaveComponent::new("scheduler").json("scheduler_config.json", &scheduler),
    ];
    save_pipeline(dir, &model_index(), &components, dtype)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_saved_pipeline_opens_again() {
    let at = tempfile::tempdir().unwrap();
    let dir = at.path().join("new/model");
    save(&dir, &tensors(), SaveDtype::F32).unwrap();
    assert_eq!(names(&dir), ["model_index.json", "scheduler", "unet"]);
    assert_eq!(
        names(&dir.join("unet")),
        ["config.json", "diffusion_pytorch_model.safetensors"]
    );
    assert_eq!(names(dir.parent().unwrap()), ["model"]);

    let checkpoint = Checkpoint::open(&dir, &Limits::default()).unwrap();
    assert_eq!(checkpoint.unet_config()["in_channels"], 2);
    let weights = checkpoint.unet_weights(&Limits::default()).unwrap();
    for tensor in tensors() {
        assert_eq!(weights.get(&tensor.name).unwrap().shape, tensor.shape);
        assert_eq!(weights.read_f32(&tensor.name).unwrap(), tensor.data);
    }
    let text = fs::read_to_string(dir.join("model_index.json")).unwrap();
    assert!(
        text.starts_with("{\n  \"_class_name\": \"DDPMPipeline\",\n"),
        "{text}"
    );
    assert!(text.ends_with("}\n"));
    // transformers and diffusers refuse files that do not say so.
    let bytes = fs::read(dir.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
}

#[cfg(unix)]
#[test]
fn saved_files_are_as_open_as_others() {
    use std::os::unix::fs::PermissionsExt as _;
    let at = tempfile::tempdir().unwrap();
    fs::write(at.path().join("ordinary"), "x").unwrap();
    fs::create_dir(at.path().join("ordinary_dir")).unwrap();
    save(&at.path().join("model"), &tensors(), SaveDtype::F32).unwrap();
    let mode = |name: &str| {
        fs::metadata(at.path().join(name))
            .unwrap()
            .permissions()
            .mode()
    };
    assert_eq!(
        mode("model/unet/diffusion_pytorch_model.safetensors"),
        mode("ordinary")
    );
    assert_eq!(mode("model"), mode("ordinary_dir"));
}

#[test]
fn half_precision_rounds_and_refuses_what_it_cannot_hold() {
    let at = tempfile::tempdir().unwrap();
    let dir = at.path().join("model");
    save(&dir, &tensors(), SaveDtype::F16).unwrap();
    let weights = Checkpoint::open(&dir, &Limits::default())
        .unwrap()
        .unet_weights(&Limits::default())
        .unwrap();
    assert_eq!(weights.get("conv_in.weight").unwrap().dtype, Dtype::F16);
    let read = weights.read_f32("conv_in.weight").unwrap();
    for (wanted, got) in tensors()[0].data.iter().zip(read) {
        assert!(
            (wanted - got).abs() <= wanted.abs() / 2048.0,
            "{wanted} {got}"
        );
    }

    let mut large = tensors();
    large[1].data[0] = 65520.0;
    let error = save(&at.path().join("large"), &large, SaveDtype::F16).unwrap_err();
    assert!(
        matches!(&error, CheckpointError::HalfOverflow { tensor, .. } if tensor == "conv_in.bias")
    );
    assert_eq!(names(at.path()), ["model"]);
}

#[test]
fn an_existing_directory_is_not_touched() {
    let at = tempfile::tempdir().unwrap();
    let dir = at.path().join("model");
    fs::create_dir(&dir).unwrap();
    let error = save(&dir, &tensors(), SaveDtype::F32).unwrap_err();
    assert!(matches!(error, CheckpointError::Exists { .. }), "{error}");
    assert!(names(&dir).is_empty());
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let at = tempfile::tempdir().unwrap();
    let dir = at.path().join("model");
    for bad in ["..", "a/b", "/etc", ""] {
        for components in [
            [SaveComponent::new(bad)],
            [SaveComponent::new("tokenizer").file(bad, vec![])],
        ] {
            let saved = save_pipeline(&dir, &model_index(), &components, SaveDtype::F32);
            assert!(saved.is_err(), "{bad:?}");
            assert!(names(at.path()).is_empty(), "{bad:?}");
        }
    }
}

#[test]
fn tensors_that_contradict_themselves_are_refused() {
    let at = tempfile::tempdir().unwrap();
    let path = at.path().join("t.safetensors");
    let tensor = |name: &str, shape: &[usize], n: usize| SaveTensor {
        name: name.into(),
        shape: shape.into(),
        data: vec![0.0; n],
    };
    for bad in [
        vec![tensor("a", &[2, 2], 3)],
        vec![tensor("a", &[usize::MAX, 2], 3)],
        vec![tensor("a", &[1], 1), tensor("a", &[1], 1)],
        vec![tensor("__metadata__", &[1], 1)],
    ] {
        let error = save_tensors(&path, &bad, None).unwrap_err();
        assert!(
            matches!(error, CheckpointError::Unsaveable { .. }),
            "{error}"
        );
    }
    assert!(names(at.path()).is_empty());
}

#[test]
fn one_file_is_replaced_in_one_step() {
    let at = tempfile::tempdir().unwrap();
    let path = at.path().join("t.safetensors");
    let metadata = HashMap::from([("step".to_owned(), "7".to_owned())]);
    save_tensors(&path, &tensors()[1..], None).unwrap();
    let old = Weights::open_file(&path, &Limits::default()).unwrap();
    save_tensors(&path, &tensors(), Some(metadata)).unwrap();
    // A reader that has the old file mapped keeps reading the old file.
    assert_eq!(old.read_f32("conv_in.bias").unwrap(), tensors()[1].data);
    let new = Weights::open_file(&path, &Limits::default()).unwrap();
    assert_eq!(new.infos().count(), 2);
    assert_eq!(names(at.path()), ["t.safetensors"]);
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let at = tempfile::tempdir().unwrap();
    // A directory under the final name lets every step but the last succeed.
    let taken = at.path().join("taken");
    fs::create_dir(&taken).unwrap();
    let error = write_atomic(&taken, b"bytes").unwrap_err();
    assert!(matches!(error, CheckpointError::Io { .. }), "{error}");
    assert_eq!(names(at.path()), ["taken"]);
    let error = write_atomic(&at.path().join("absent/file"), b"bytes").unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");
}
