//! The workflows of a calibration and of sampling.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    sync::{Arc, Mutex},
};

use depurate::{
    Detector,
    cache::Cache,
    calibrate::{BenignModel, CalibrateSettings, calibrate},
    device::Device,
    sample::{SampleSettings, SamplerName, sample_sheet},
    scan::Watch,
    triggers,
};
use depurate_checkpoint::{Layers, Limits};
use depurate_defense::{
    CancelToken, Cx, DefenseError, Silent,
    detect::model_level::{Inspection, ModelDetector},
};
use depurate_diffusion::{Pipeline, sampler::Clip};

mod known;
mod support;
use known::{Known, known, run, settings};
use support::tiny_pipeline;

#[test]
fn the_trigger_of_a_report_can_be_sampled_with() {
    let dir = tempfile::tempdir().unwrap();
    run(
        &known(9.0, None).0,
        &settings(dir.path()),
        &Cache::default(),
    )
    .close();
    let file = dir.path().join(triggers::FILE);
    let bytes = fs::read(&file).unwrap();
    run(
        &known(9.0, None).0,
        &settings(dir.path()),
        &Cache::default(),
    )
    .close();
    assert_eq!(
        bytes,
        fs::read(&file).unwrap(),
        "the same scan writes the same bytes"
    );

    let cancel = CancelToken::default();
    let sheet = |trigger, count| {
        let settings = SampleSettings {
            layers: Layers::default(),
            prompt: None,
            trigger,
            sampler: Some(SamplerName::Ddim),
            steps: Some(2),
            clip: Some(Clip::Range(1.0)),
            seed: 3,
            count,
            device: Device::Cpu,
            limits: Limits::default(),
        };
        let watch = Watch {
            cancel: &cancel,
            progress: &Silent,
        };
        sample_sheet(&tiny_pipeline(), &settings, None, watch)
            .unwrap()
            .0
    };
    let (plain, triggered) = (sheet(None, 2), sheet(Some(file), 2));
    assert_eq!(plain.dimensions(), triggered.dimensions());
    assert_ne!(plain, triggered);
    // image 0 does not depend on how many there are
    let alone = sheet(None, 1);
    let (width, height) = alone.dimensions();
    let first = image::imageops::crop_imm(&plain, 0, 0, width, height).to_image();
    let largest = first
        .iter()
        .zip(alone.iter())
        .map(|(a, b)| a.abs_diff(*b))
        .max();
    assert!(largest <= Some(1), "{largest:?}");
}

#[test]
fn a_calibration_scores_each_model_once_and_goes_on_after_a_kill() {
    struct Scores(Mutex<Vec<f64>>);
    impl ModelDetector for Scores {
        fn inspect(&self, model: &Pipeline, cx: &Cx<'_>) -> Result<Inspection, DefenseError> {
            let score = self
                .0
                .lock()
                .unwrap()
                .pop()
                .ok_or(DefenseError::Cancelled)?;
            let found = Known {
                score,
                stop_in: None,
                computed: Arc::default(),
            };
            found.inspect(model, cx)
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let models: Vec<BenignModel> = (0..5)
        .map(|i| {
            let path = support::copy_of_tiny_pipeline(&dir.path().join(i.to_string()));
            let weights = path.join("unet/diffusion_pytorch_model.safetensors");
            let mut bytes = fs::read(&weights).unwrap();
            let last = bytes.len() - 1 - i;
            bytes[last] ^= 1;
            fs::write(&weights, bytes).unwrap();
            BenignModel {
                path,
                provenance: format!("seed {i}"),
            }
        })
        .collect();
    let cache = Cache::open(&dir.path().join("cache"));
    let settings = CalibrateSettings {
        population: "five".into(),
        seed: 1,
        resume: true,
        device: Device::Cpu,
        limits: Limits::default(),
        command: "depurate calibrate".into(),
    };
    let cancel = CancelToken::default();
    let watch = Watch {
        cancel: &cancel,
        progress: &Silent,
    };
    let detector = |scores: &[f64]| Detector {
        run: Box::new(Scores(Mutex::new(scores.to_vec()))),
        ..known(0.0, None).0
    };
    let stopped = calibrate(&models, &settings, &detector(&[2.0, 1.0]), &cache, watch);
    assert!(matches!(stopped, Err(depurate::Error::Interrupted)));
    let done = calibrate(
        &models,
        &settings,
        &detector(&[5.0, 4.0, 3.0]),
        &cache,
        watch,
    )
    .unwrap();
    assert_eq!(done.calibration.scores(), [1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(done.calibration.entries[4].provenance, "seed 4");
    done.close();
    assert!(!dir.path().join("cache/journal").exists());

    let four = calibrate(&models[..4], &settings, &detector(&[]), &cache, watch);
    assert!(matches!(
        four,
        Err(depurate::Error::TooFewModels { got: 4, .. })
    ));
    let mut twice = models;
    twice[4] = twice[0].clone();
    let twice = calibrate(&twice, &settings, &detector(&[]), &cache, watch);
    assert!(matches!(twice, Err(depurate::Error::SameModel { .. })));
}
