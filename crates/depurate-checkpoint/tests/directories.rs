//! Which files of a directory are taken, and which directories are refused.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use depurate_checkpoint::{
    AnomalyKind, Checkpoint, CheckpointError, HashCache, Limits, Result, SaveTensor, UNET_STEM,
    Weights, inspect, save_tensors, sha256_file, write_atomic,
};
use serde_json::json;

fn tensor(name: &str, values: &[f32]) -> SaveTensor {
    SaveTensor {
        name: name.into(),
        shape: vec![values.len()],
        data: values.to_vec(),
    }
}

fn put(dir: &Path, name: &str, tensors: &[SaveTensor]) {
    save_tensors(&dir.join(name), tensors, None).unwrap();
}

fn put_json(dir: &Path, name: &str, value: &serde_json::Value) {
    write_atomic(&dir.join(name), value.to_string().as_bytes()).unwrap();
}

fn open(dir: &Path, variant: Option<&str>) -> Result<Weights> {
    Weights::open_dir(dir, UNET_STEM, variant, &Limits::default())
}

fn value(weights: &Weights) -> f32 {
    weights.read_f32("a").unwrap()[0]
}

#[test]
fn the_variant_is_taken_when_asked_for_or_alone() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    put(
        dir,
        "diffusion_pytorch_model.fp16.safetensors",
        &[tensor("a", &[16.0])],
    );
    let alone = open(dir, None).unwrap();
    assert_eq!((value(&alone), alone.variant()), (16.0, Some("fp16")));

    put(
        dir,
        "diffusion_pytorch_model.safetensors",
        &[tensor("a", &[32.0])],
    );
    let plain = open(dir, None).unwrap();
    assert_eq!((value(&plain), plain.variant()), (32.0, None));
    assert_eq!(value(&open(dir, Some("fp16")).unwrap()), 16.0);
    let absent = open(dir, Some("bf16")).unwrap_err();
    assert!(
        absent.to_string().contains("diffusion_pytorch_model.bf16"),
        "{absent}"
    );
}

#[test]
fn several_variants_without_a_plain_one_are_ambiguous() {
    let dir = tempfile::tempdir().unwrap();
    for variant in ["fp16", "bf16"] {
        let name = format!("diffusion_pytorch_model.{variant}.safetensors");
        put(dir.path(), &name, &[tensor("a", &[1.0])]);
    }
    let error = open(dir.path(), None).unwrap_err();
    assert!(
        matches!(error, CheckpointError::AmbiguousWeights { .. }),
        "{error}"
    );
}

#[test]
fn pickles_are_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["diffusion_pytorch_model.bin", "old.ckpt"] {
        fs::write(dir.path().join(name), b"\x80\x04.").unwrap();
    }
    let error = open(dir.path(), None).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("pickle files can run code when they are loaded; convert to safetensors")
    );
    assert!(text.contains("diffusion_pytorch_model.bin"), "{text}");
    let error = Weights::open_file(&dir.path().join("old.ckpt"), &Limits::default()).unwrap_err();
    assert!(matches!(error, CheckpointError::Pickle { .. }), "{error}");
    // Beside safetensors they are not in the way.
    put(
        dir.path(),
        "diffusion_pytorch_model.safetensors",
        &[tensor("a", &[1.0])],
    );
    assert_eq!(value(&open(dir.path(), None).unwrap()), 1.0);
}

fn sharded(dir: &Path, weight_map: serde_json::Value) {
    put(
        dir,
        "m-00001-of-00002.safetensors",
        &[tensor("a", &[1.0]), tensor("b", &[2.0])],
    );
    put(dir, "m-00002-of-00002.safetensors", &[tensor("c", &[3.0])]);
    let index = json!({ "metadata": { "total_size": 12 }, "weight_map": weight_map });
    put_json(
        dir,
        "diffusion_pytorch_model.safetensors.index.json",
        &index,
    );
}

const FIRST: &str = "m-00001-of-00002.safetensors";
const SECOND: &str = "m-00002-of-00002.safetensors";

#[test]
fn shards_are_read_through_their_index() {
    let dir = tempfile::tempdir().unwrap();
    sharded(dir.path(), json!({ "a": FIRST, "b": FIRST, "c": SECOND }));
    let weights = open(dir.path(), None).unwrap();
    assert_eq!(weights.files().len(), 2);
    assert_eq!(weights.read_f32("c").unwrap(), [3.0]);
    assert!(weights.get("c").unwrap().file.ends_with(SECOND));
}

#[test]
fn an_index_that_disagrees_with_its_shards_is_refused() {
    for (weight_map, named) in [
        (json!({ "a": FIRST, "c": SECOND }), "b"),
        (json!({ "a": FIRST, "b": SECOND, "c": SECOND }), "b"),
        (
            json!({ "a": FIRST, "b": FIRST, "c": SECOND, "d": SECOND }),
            "d",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        sharded(dir.path(), weight_map);
        let error = open(dir.path(), None).unwrap_err();
        let names_it =
            matches!(&error, CheckpointError::IndexMismatch { tensor, .. } if tensor == named);
        assert!(names_it, "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    sharded(dir.path(), json!({ "a": FIRST, "b": FIRST, "c": SECOND }));
    put(
        dir.path(),
        SECOND,
        &[tensor("c", &[3.0]), tensor("a", &[9.0])],
    );
    let error = open(dir.path(), None).unwrap_err();
    assert!(matches!(&error, CheckpointError::DuplicateTensor { tensor, .. } if tensor == "a"));
    fs::remove_file(dir.path().join(SECOND)).unwrap();
    assert!(
        open(dir.path(), None)
            .unwrap_err()
            .to_string()
            .contains(SECOND)
    );
}

#[test]
fn one_file_beside_an_index_is_ambiguous() {
    let dir = tempfile::tempdir().unwrap();
    sharded(dir.path(), json!({ "a": FIRST, "b": FIRST, "c": SECOND }));
    put(
        dir.path(),
        "diffusion_pytorch_model.safetensors",
        &[tensor("a", &[1.0])],
    );
    let error = open(dir.path(), None).unwrap_err();
    assert!(
        matches!(error, CheckpointError::AmbiguousWeights { .. }),
        "{error}"
    );
}

/// A pipeline with both components in its root, as the first published ones.
fn flat_pipeline(dir: &Path) {
    put_json(
        dir,
        "model_index.json",
        &json!({ "_class_name": "DDPMPipeline", "scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"] }),
    );
    put_json(dir, "config.json", &json!({ "_class_name": "UNet2DModel" }));
    put_json(
        dir,
        "scheduler_config.json",
        &json!({ "num_train_timesteps": 1000 }),
    );
    put(
        dir,
        "diffusion_pytorch_model.safetensors",
        &[tensor("a", &[1.0, 2.0])],
    );
}

#[test]
fn a_pipeline_with_its_components_in_the_root_opens() {
    let dir = tempfile::tempdir().unwrap();
    flat_pipeline(dir.path());
    let checkpoint = Checkpoint::open(dir.path(), &Limits::default()).unwrap();
    assert_eq!(checkpoint.unet_dir(), dir.path());
    assert_eq!(
        value(&checkpoint.unet_weights(&Limits::default()).unwrap()),
        1.0
    );
    let inspection = inspect(dir.path(), &Limits::default(), None).unwrap();
    assert_eq!(inspection.parameters, 2);
    assert_eq!(inspection.components[0].files.len(), 1);
    assert_eq!(inspection.components[1].files.len(), 2);
}

#[test]
fn text_pipelines_open_and_say_so() {
    let limits = Limits::default();
    let dir = tempfile::tempdir().unwrap();
    flat_pipeline(dir.path());
    let mut index = json!({ "_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"] });
    put_json(dir.path(), "model_index.json", &index);
    let checkpoint = Checkpoint::open(dir.path(), &limits).unwrap();
    assert!(checkpoint.is_text_conditional());
    assert_eq!(checkpoint.pipeline_class(), Some("StableDiffusionPipeline"));

    index =
        json!({ "_class_name": "FluxPipeline", "text_encoder": ["transformers", "CLIPTextModel"] });
    put_json(dir.path(), "model_index.json", &index);
    let error = Checkpoint::open(dir.path(), &limits).unwrap_err();
    assert!(
        matches!(&error, CheckpointError::NoUnet { class_name, .. } if class_name == "FluxPipeline")
    );
    let inspection = inspect(dir.path(), &limits, None).unwrap();
    assert!(inspection.text_conditional);
}

#[test]
fn what_is_no_checkpoint_is_refused() {
    let limits = Limits::default();
    let dir = tempfile::tempdir().unwrap();
    let error = Checkpoint::open(dir.path(), &limits).unwrap_err();
    assert!(
        matches!(error, CheckpointError::NotACheckpoint { .. }),
        "{error}"
    );
    let error = Checkpoint::open(&dir.path().join("absent"), &limits).unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");
    put_json(dir.path(), "config.json", &json!({}));
    let error = Checkpoint::open(&dir.path().join("config.json"), &limits).unwrap_err();
    assert!(
        matches!(error, CheckpointError::NotADirectory { .. }),
        "{error}"
    );
    let error = open(dir.path(), None).unwrap_err();
    assert!(
        matches!(error, CheckpointError::NoWeights { .. }),
        "{error}"
    );
}

#[cfg(unix)]
#[test]
fn links_as_in_the_hub_cache_are_read_and_devices_are_not() {
    use std::os::unix::fs::symlink;
    let cache = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (cache.path().join("blobs"), cache.path().join("snapshots/1"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(snapshot.join("unet")).unwrap();
    put(&blobs, "0a1b", &[tensor("a", &[5.0])]);
    put_json(&blobs, "2c3d", &json!({ "_class_name": "UNet2DModel" }));
    let links = [
        ("0a1b", "diffusion_pytorch_model.safetensors"),
        ("2c3d", "config.json"),
    ];
    for (blob, name) in links {
        symlink(
            Path::new("../../../blobs").join(blob),
            snapshot.join("unet").join(name),
        )
        .unwrap();
    }
    let limits = Limits::default();
    let checkpoint = Checkpoint::open(&snapshot.join("unet"), &limits).unwrap();
    assert_eq!(value(&checkpoint.unet_weights(&limits).unwrap()), 5.0);
    let inspection = inspect(&snapshot.join("unet"), &limits, None).unwrap();
    let of_link = &inspection.components[0].files[1].sha256;
    assert_eq!(*of_link, sha256_file(&blobs.join("0a1b"), None).unwrap());

    let device = snapshot.join("zero.safetensors");
    symlink("/dev/zero", &device).unwrap();
    let error = Weights::open_file(&device, &limits).unwrap_err();
    assert!(matches!(error, CheckpointError::NotAFile { .. }), "{error}");
}

#[test]
fn inspection_finds_odd_tensors_and_files_that_run_code() {
    let dir = tempfile::tempdir().unwrap();
    flat_pipeline(dir.path());
    let mut forged: Vec<f32> = (0..64).map(|i| i as f32 / 64.0).collect();
    forged[7] = 1e6;
    put(
        dir.path(),
        "diffusion_pytorch_model.safetensors",
        &[
            tensor("forged", &forged),
            tensor("nan", &[f32::NAN, 1.0]),
            tensor("zero", &[0.0; 4]),
        ],
    );
    let deep = dir.path().join("old/older");
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("weights.pt"), b"x").unwrap();
    fs::write(deep.join("notes.txt"), b"\x80\x04\x95\x0a\0\0\0\0\0\0\0.").unwrap();
    fs::write(
        deep.join("archive.dat"),
        b"PK\x03\x04 ....... archive/data.pkl",
    )
    .unwrap();
    fs::write(deep.join("modeling.py"), b"import os").unwrap();
    fs::write(deep.join("README.md"), b"# words").unwrap();
    let inspection = inspect(dir.path(), &Limits::default(), None).unwrap();
    let weights = inspection.components[1].weights.as_ref().unwrap();
    let odd: Vec<_> = weights
        .anomalies
        .iter()
        .map(|a| (a.tensor.as_str(), a.kinds.as_slice()))
        .collect();
    assert_eq!(
        odd,
        [
            ("forged", &[AnomalyKind::Outlier][..]),
            ("nan", &[AnomalyKind::NotFinite]),
            ("zero", &[AnomalyKind::AllZero]),
        ]
    );
    let pickles: Vec<_> = inspection
        .stray
        .pickles
        .iter()
        .map(|f| f.path.as_str())
        .collect();
    assert_eq!(
        pickles,
        [
            "old/older/archive.dat",
            "old/older/notes.txt",
            "old/older/weights.pt"
        ]
    );
    assert_eq!(inspection.stray.python[0].path, "old/older/modeling.py");
    assert_eq!(inspection.stray.python.len(), 1);
}

#[test]
fn unreadable_weights_are_reported_and_the_rest_is_inspected() {
    let dir = tempfile::tempdir().unwrap();
    flat_pipeline(dir.path());
    fs::write(
        dir.path().join("diffusion_pytorch_model.safetensors"),
        b"\xff\0\0\0\0\0\0\0{}",
    )
    .unwrap();
    let inspection = inspect(dir.path(), &Limits::default(), None).unwrap();
    let unet = &inspection.components[1];
    assert!(unet.weights.is_none());
    assert!(unet.weights_error.as_ref().unwrap().contains("cut short"));
    assert_eq!(unet.files.len(), 2);
}

#[test]
fn hashes_are_right_remembered_and_renewed() {
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let dir = tempfile::tempdir().unwrap();
    let (file, cache_dir) = (dir.path().join("file"), dir.path().join("cache"));
    fs::write(&file, "abc").unwrap();
    let cache = HashCache::open(&cache_dir).unwrap();
    assert_eq!(sha256_file(&file, Some(&cache)).unwrap(), ABC);

    // What is remembered is believed while the file keeps its stamp ...
    let stored = cache_dir.join("sha256.json");
    let marked = fs::read_to_string(&stored)
        .unwrap()
        .replace(ABC, &"0".repeat(64));
    fs::write(&stored, marked).unwrap();
    let cache = HashCache::open(&cache_dir).unwrap();
    assert_eq!(sha256_file(&file, Some(&cache)).unwrap(), "0".repeat(64));
    // ... and no longer when it changes.
    let later =
        fs::metadata(&file).unwrap().modified().unwrap() + std::time::Duration::from_secs(5);
    fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_modified(later)
        .unwrap();
    assert_eq!(sha256_file(&file, Some(&cache)).unwrap(), ABC);

    fs::write(&stored, "{ not json").unwrap();
    let cache = HashCache::open(&cache_dir).unwrap();
    assert_eq!(sha256_file(&file, Some(&cache)).unwrap(), ABC);
    assert!(fs::read_to_string(&stored).unwrap().contains(ABC));
}
