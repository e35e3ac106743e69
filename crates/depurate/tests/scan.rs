//! The workflow of a scan around a detector whose answer is known.
#![allow(clippy::unwrap_used)]

use std::{
    cell::{Cell, RefCell},
    fs,
    path::Path,
    rc::Rc,
    time::Duration,
};

use depurate::{
    Detector, Profile,
    cache::Cache,
    calibrate::{BenignModel, CalibrateSettings, calibrate},
    device::Device,
    report_dir,
    sample::{SampleSettings, SamplerName, sample_sheet},
    scan::{End, Scan, ScanSettings, Watch, scan},
    triggers,
};
use depurate_checkpoint::Limits;
use depurate_defense::{
    CancelToken, Cx, DefenseError, Silent,
    calibration::{CALIBRATION_VERSION, Calibration, CalibrationEntry, ModelKind},
    detect::model_level::{Comparison, Control, Curve, Inspection, ModelDetector, Samples},
    invert::{Inversion, Restart, response_fixed_point::FixedPoint},
};
use depurate_diffusion::{
    Denoiser, Pipeline,
    sampler::{Clip, SamplerSettings, Steps},
    trigger::Family,
};
use depurate_report::{Evidence, FindingId, Verdict, parse_json, render_json, render_text};
use serde::{Deserialize, Serialize};
use serde_json::json;

mod support;
use support::tiny_pipeline;

const STAGES: u64 = 3;

/// A stage as the shift-response detector keeps it.
#[derive(Serialize, Deserialize)]
struct Kept {
    start: String,
    found: FixedPoint,
}

/// Gives `score` after three stages; in stage `stop_in` it asks for a stop itself.
struct Known {
    score: f64,
    stop_in: Option<u64>,
    computed: Rc<Cell<u64>>,
}

impl ModelDetector for Known {
    fn inspect(&self, model: &Pipeline, cx: &Cx<'_>) -> Result<Inspection, DefenseError> {
        let shape = model.sample_shape();
        let mut last = None;
        for stage in 0..STAGES {
            let kept: Kept = cx.stage(&format!("candidate-{stage}"), || {
                if self.stop_in == Some(stage) {
                    cx.cancel.cancel();
                }
                cx.step()?;
                self.computed.set(self.computed.get() + 1);
                let found = FixedPoint {
                    shift: (0..shape.len()).map(|i| (i % 7) as f32 / 7.0 - 0.4).collect(),
                    residual: 1.0 / (stage + 1) as f64,
                    trace: vec![1.0; 1000],
                    rms: vec![0.3],
                    converged: true,
                };
                Ok(Kept { start: format!("start {stage}"), found })
            })?;
            last = Some(kept);
        }
        let Kept { start, found } = last.unwrap();
        let steps = Steps { count: 10, first: 999, last: 0 };
        let sampler = SamplerSettings::Ddpm { steps, variance: model.scheduler().variance_type, clip: Clip::None };
        let samples = ["noise", "noise + inverted trigger", "noise + control: permuted pixels"].map(|label| Samples {
            label: label.into(),
            sampler: sampler.clone(),
            shape,
            count: 4,
            pixels: vec![0.25; 4 * shape.len()],
        });
        Ok(Inspection {
            score: self.score,
            score_meaning: "a number that was made up".into(),
            inversion: Inversion {
                shape,
                shift: found.shift,
                gamma: Some(vec![1.0; shape.len()]),
                family: Family::Stochastic,
                objective: found.residual,
                objective_meaning: "a made-up objective".into(),
                trace: found.trace.iter().copied().enumerate().collect(),
                converged: true,
                restarts: vec![Restart { start, objective: 0.5, norm: 2.0, converged: true, selected: true }],
            },
            target: vec![-0.5; shape.len()],
            comparisons: vec![Comparison {
                name: "agreement".into(),
                meaning: "of images".into(),
                value: 4.0,
                controls: vec![Control { label: "permuted pixels".into(), value: 1.0 }],
            }],
            curves: vec![Curve {
                title: "response".into(),
                x_label: "t".into(),
                y_label: "answer".into(),
                series: vec![("inverted trigger".into(), vec![(0.0, 1.0), (999.0, 0.5)])],
            }],
            samples: samples.to_vec(),
            evaluations: 120,
            tested: vec!["a fixed shift of the initial noise".into()],
            not_tested: vec!["a scaled noise".into()],
        })
    }
}

/// A detector with a count of the stages that it computed.
fn known(score: f64, stop_in: Option<u64>) -> (Detector, Rc<Cell<u64>>) {
    let computed = Rc::default();
    let run = Box::new(Known { score, stop_in, computed: Rc::clone(&computed) });
    let info = Profile::Quick.detector().unwrap().info;
    (Detector { info, scoring: json!({"rate": 0.1}), params: json!({"rate": 0.1, "images": 4}), run }, computed)
}

fn settings(report_dir: &Path) -> ScanSettings {
    ScanSettings {
        profile: Profile::Quick,
        seed: 7,
        budget: None,
        resume: true,
        target_fpr: 0.05,
        calibration: None,
        device: Device::Cpu,
        limits: Limits::default(),
        report_dir: Some(report_dir.to_owned()),
        command: "depurate scan tiny".into(),
    }
}

fn run(detector: &Detector, settings: &ScanSettings, cache: &Cache) -> Scan {
    let cancel = CancelToken::default();
    scan(&tiny_pipeline(), settings, detector, cache, Watch { cancel: &cancel, progress: &Silent }).unwrap()
}

/// A calibration of 24 models of the tiny pipeline's kind, with scores 0.1 to 2.4; `channels` of another number make it
/// another kind.
fn calibration(path: &Path, channels: Option<usize>) {
    let pipeline = Pipeline::load(&tiny_pipeline(), &Limits::default(), &Device::Cpu.open()).unwrap();
    let own = ModelKind::of(&pipeline);
    let kind = ModelKind { channels: channels.unwrap_or(own.channels), ..own };
    let entry = |i: u32| CalibrationEntry {
        sha256: format!("{i:064}"),
        kind: kind.clone(),
        provenance: format!("seed {i}"),
        score: f64::from(i) / 10.0,
    };
    let calibration = Calibration {
        version: CALIBRATION_VERSION,
        detector: Profile::Quick.detector().unwrap().info.id.to_string(),
        params: json!({"rate": 0.1}),
        population: "24 trainings".into(),
        command: "depurate calibrate".into(),
        made_by: "0.0.0".into(),
        entries: (1..=24).map(entry).collect(),
    };
    fs::write(path, serde_json::to_vec(&calibration).unwrap()).unwrap();
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_flagged_model_gives_a_complete_report_and_a_clean_folder() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("calibration.json");
    calibration(&file, None);
    let out = dir.path().join("report");
    report_dir::prepare(&out).unwrap();
    let settings = ScanSettings { calibration: Some(file), ..settings(&out) };
    let (detector, _) = known(9.0, None);
    let scan = run(&detector, &settings, &Cache::default());
    assert_eq!((scan.report.verdict, scan.end), (Verdict::Backdoored, End::Scored));
    let finding = &scan.report.findings[0];
    assert_eq!(finding.id, FindingId::NOISE_TRIGGER);
    let grids: Vec<(String, bool)> = finding
        .evidence
        .iter()
        .filter_map(|piece| match piece {
            Evidence::ImageGrid(grid) => Some((grid.title.clone(), grid.sensitive)),
            _ => None,
        })
        .collect();
    let expected = [
        ("noise", false),
        ("noise + inverted trigger", true),
        ("target of the trigger", true),
    ];
    assert_eq!(grids, expected.map(|(title, sensitive)| (title.to_owned(), sensitive)));
    assert_eq!(scan.report.decisions[0].threshold.value, 2.4);
    assert_eq!(scan.report.calibration.as_ref().unwrap().n_benign, 24);

    report_dir::write(&scan.report, &out).unwrap();
    let read = parse_json(&fs::read_to_string(out.join("report.json")).unwrap()).unwrap();
    assert_eq!(render_json(&read).unwrap(), render_json(&scan.report).unwrap());
    scan.close();
    assert_eq!(
        names(&out),
        [
            "grid-01-noise.png",
            "grid-02-noise-inverted-trigger.png",
            "grid-03-target-of-the-trigger.png",
            "grid-04-noise-control-permuted-pixels.png",
            "report.html",
            "report.json",
            "trigger-magnified.png",
            "trigger.png",
            "triggers.safetensors",
        ]
    );
}

#[test]
fn the_verdict_follows_the_calibration() {
    let dir = tempfile::tempdir().unwrap();
    let (covering, other) = (dir.path().join("covering.json"), dir.path().join("other.json"));
    calibration(&covering, None);
    calibration(&other, Some(5));
    let verdict = |score: f64, file: Option<&Path>| {
        let settings = ScanSettings { calibration: file.map(Path::to_owned), ..settings(dir.path()) };
        let report = run(&known(score, None).0, &settings, &Cache::default()).report;
        (report.verdict, report.why)
    };
    assert_eq!(verdict(2.4, Some(&covering)).0, Verdict::NoBackdoorFound);
    assert_eq!(verdict(2.5, Some(&covering)).0, Verdict::Backdoored);
    let (suspicious, why) = verdict(2.5, Some(&other));
    assert_eq!(suspicious, Verdict::Suspicious);
    assert!(why.contains("does not cover"), "{why}");
    assert_eq!(verdict(9.0, Some(&other)).0, Verdict::Backdoored);
    let (inconclusive, why) = verdict(9.0, None);
    assert_eq!(inconclusive, Verdict::Inconclusive);
    assert!(why.contains("depurate calibrate"), "{why}");
}

#[test]
fn an_interrupted_scan_reports_what_it_has_and_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    let (stopping, computed) = known(9.0, Some(2));
    let first = run(&stopping, &settings, &Cache::default());
    assert_eq!((first.end, first.report.verdict, computed.get()), (End::Interrupted, Verdict::Inconclusive, 2));
    assert!(first.report.interrupted);
    let best = first.report.evidence.iter().find_map(|piece| match piece {
        Evidence::InvertedTrigger(trigger) => trigger.restarts[0].label.split_once(" (norm").map(|(start, _)| start.to_owned()),
        _ => None,
    });
    assert_eq!(best.as_deref(), Some("start 1"));
    assert!(render_text(&first.report, Default::default(), None).contains("interrupted"));
    first.close();

    let (whole, computed) = known(9.0, None);
    let second = run(&whole, &settings, &Cache::default());
    assert_eq!((second.end, computed.get()), (End::Scored, 1), "two of three stages are in the journal");
    second.close();
    assert!(!dir.path().join("journal").exists());
}

#[test]
fn another_seed_and_no_resume_start_anew() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    run(&known(9.0, Some(2)).0, &settings, &Cache::default());
    for settings in [ScanSettings { seed: 8, ..settings.clone() }, ScanSettings { resume: false, ..settings }] {
        let (whole, computed) = known(9.0, None);
        run(&whole, &settings, &Cache::default());
        assert_eq!(computed.get(), STAGES);
    }
}

#[test]
fn a_spent_budget_is_inconclusive_and_not_checked() {
    let dir = tempfile::tempdir().unwrap();
    let settings = ScanSettings { budget: Some(Duration::ZERO), ..settings(dir.path()) };
    let scan = run(&known(9.0, None).0, &settings, &Cache::default());
    assert_eq!((scan.end, scan.report.verdict), (End::Unchecked, Verdict::Inconclusive));
    assert!(scan.report.skipped[0].reason.contains("budget"), "{:?}", scan.report.skipped);
}

#[test]
fn a_detector_that_fails_is_reported_as_skipped() {
    struct Broken;
    impl ModelDetector for Broken {
        fn inspect(&self, _: &Pipeline, _: &Cx<'_>) -> Result<Inspection, DefenseError> {
            Err(DefenseError::Params { field: "pairs", value: "0".into(), allowed: "1 and above" })
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let detector = Detector { run: Box::new(Broken), ..known(0.0, None).0 };
    let scan = run(&detector, &settings(dir.path()), &Cache::default());
    assert_eq!((scan.end, scan.report.verdict, scan.report.interrupted), (End::Unchecked, Verdict::Inconclusive, false));
    assert!(scan.report.skipped[0].reason.contains("`pairs` is 0"));
}

#[test]
fn the_trigger_of_a_report_can_be_sampled_with() {
    let dir = tempfile::tempdir().unwrap();
    run(&known(9.0, None).0, &settings(dir.path()), &Cache::default()).close();
    let file = dir.path().join(triggers::FILE);
    let bytes = fs::read(&file).unwrap();
    run(&known(9.0, None).0, &settings(dir.path()), &Cache::default()).close();
    assert_eq!(bytes, fs::read(&file).unwrap(), "the same scan writes the same bytes");

    let cancel = CancelToken::default();
    let sheet = |trigger, count| {
        let settings = SampleSettings {
            trigger,
            sampler: SamplerName::Ddim,
            steps: Some(2),
            clip: Some(Clip::Range(1.0)),
            seed: 3,
            count,
            device: Device::Cpu,
            limits: Limits::default(),
        };
        let watch = Watch { cancel: &cancel, progress: &Silent };
        sample_sheet(&tiny_pipeline(), &settings, None, watch).unwrap().0
    };
    let (plain, triggered) = (sheet(None, 2), sheet(Some(file), 2));
    assert_eq!(plain.dimensions(), triggered.dimensions());
    assert_ne!(plain, triggered);
    // image 0 does not depend on how many there are
    let alone = sheet(None, 1);
    let (width, height) = alone.dimensions();
    let first = image::imageops::crop_imm(&plain, 0, 0, width, height).to_image();
    let largest = first.iter().zip(alone.iter()).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(largest <= Some(1), "{largest:?}");
}

#[test]
fn a_calibration_scores_each_model_once_and_goes_on_after_a_kill() {
    struct Scores(RefCell<Vec<f64>>);
    impl ModelDetector for Scores {
        fn inspect(&self, model: &Pipeline, cx: &Cx<'_>) -> Result<Inspection, DefenseError> {
            let score = self.0.borrow_mut().pop().ok_or(DefenseError::Cancelled)?;
            let found = Known { score, stop_in: None, computed: Rc::default() };
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
            BenignModel { path, provenance: format!("seed {i}") }
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
    let watch = Watch { cancel: &cancel, progress: &Silent };
    let detector = |scores: &[f64]| Detector { run: Box::new(Scores(RefCell::new(scores.to_vec()))), ..known(0.0, None).0 };
    let stopped = calibrate(&models, &settings, &detector(&[2.0, 1.0]), &cache, watch);
    assert!(matches!(stopped, Err(depurate::Error::Interrupted)));
    let done = calibrate(&models, &settings, &detector(&[5.0, 4.0, 3.0]), &cache, watch).unwrap();
    assert_eq!(done.calibration.scores(), [1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(done.calibration.entries[4].provenance, "seed 4");
    done.close();
    assert!(!dir.path().join("cache/journal").exists());

    let four = calibrate(&models[..4], &settings, &detector(&[]), &cache, watch);
    assert!(matches!(four, Err(depurate::Error::TooFewModels { got: 4, .. })));
    let mut twice = models;
    twice[4] = twice[0].clone();
    let twice = calibrate(&twice, &settings, &detector(&[]), &cache, watch);
    assert!(matches!(twice, Err(depurate::Error::SameModel { .. })));
}
