//! The workflow of a scan around a detector whose answer is known.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path, sync::atomic::Ordering::Relaxed, time::Duration};

use depurate::{
    Detector, DetectorName, Profile,
    cache::Cache,
    device::Device,
    report_dir,
    scan::{End, ScanSettings, Watch, scan},
};
use depurate_checkpoint::Limits;
use depurate_defense::{
    CancelToken, Cx, DefenseError, Silent,
    calibration::{CALIBRATION_VERSION, Calibration, CalibrationEntry, ModelKind},
    detect::model_level::{Inspection, ModelDetector},
};
use depurate_diffusion::Pipeline;
use depurate_report::{Evidence, FindingId, Verdict, parse_json, render_json, render_text};
use serde_json::json;

mod known;
mod support;
use known::{STAGES, known, run, settings};
use support::tiny_pipeline;

/// A calibration of 24 models of the tiny pipeline's kind, with scores 0.1 to 2.4; `channels` of another number make it
/// another kind.
fn calibration(path: &Path, channels: Option<usize>) {
    let pipeline =
        Pipeline::load(&tiny_pipeline(), &Limits::default(), &Device::Cpu.open()).unwrap();
    let own = ModelKind::of(&pipeline);
    let kind = ModelKind {
        channels: channels.unwrap_or(own.channels),
        ..own
    };
    let entry = |i: u32| CalibrationEntry {
        sha256: format!("{i:064}"),
        kind: kind.clone(),
        provenance: format!("seed {i}"),
        score: f64::from(i) / 10.0,
    };
    let calibration = Calibration {
        version: CALIBRATION_VERSION,
        detector: DetectorName::default()
            .build(Profile::Quick)
            .unwrap()
            .info
            .id
            .to_string(),
        params: json!({"rate": 0.1}),
        population: "24 trainings".into(),
        command: "depurate calibrate".into(),
        made_by: "0.0.0".into(),
        entries: (1..=24).map(entry).collect(),
    };
    fs::write(path, serde_json::to_vec(&calibration).unwrap()).unwrap();
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
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
    let settings = ScanSettings {
        calibration: Some(file),
        ..settings(&out)
    };
    let (detector, _) = known(9.0, None);
    let scan = run(&detector, &settings, &Cache::default());
    assert_eq!(
        (scan.report.verdict, scan.end),
        (Verdict::Backdoored, End::Scored)
    );
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
    assert_eq!(
        grids,
        expected.map(|(title, sensitive)| (title.to_owned(), sensitive))
    );
    assert_eq!(scan.report.decisions[0].threshold.value, 2.4);
    assert_eq!(scan.report.calibration.as_ref().unwrap().n_benign, 24);

    report_dir::write(&scan.report, &out).unwrap();
    let read = parse_json(&fs::read_to_string(out.join("report.json")).unwrap()).unwrap();
    assert_eq!(
        render_json(&read).unwrap(),
        render_json(&scan.report).unwrap()
    );
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
    let (covering, other) = (
        dir.path().join("covering.json"),
        dir.path().join("other.json"),
    );
    calibration(&covering, None);
    calibration(&other, Some(5));
    let verdict = |score: f64, file: Option<&Path>| {
        let settings = ScanSettings {
            calibration: file.map(Path::to_owned),
            ..settings(dir.path())
        };
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
    assert_eq!(
        (first.end, first.report.verdict, computed.load(Relaxed)),
        (End::Interrupted, Verdict::Inconclusive, 2)
    );
    assert!(first.report.interrupted);
    let best = first.report.evidence.iter().find_map(|piece| match piece {
        Evidence::InvertedTrigger(trigger) => trigger.restarts[0]
            .label
            .split_once(" (norm")
            .map(|(start, _)| start.to_owned()),
        _ => None,
    });
    assert_eq!(best.as_deref(), Some("candidate-1"));
    assert!(render_text(&first.report, Default::default(), None).contains("interrupted"));
    first.close();

    let (whole, computed) = known(9.0, None);
    let second = run(&whole, &settings, &Cache::default());
    assert_eq!(
        (second.end, computed.load(Relaxed)),
        (End::Scored, 1),
        "two of three stages are in the journal"
    );
    second.close();
    assert!(!dir.path().join("journal").exists());
}

#[test]
fn another_seed_and_no_resume_start_anew() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path());
    run(&known(9.0, Some(2)).0, &settings, &Cache::default());
    for settings in [
        ScanSettings {
            seed: 8,
            ..settings.clone()
        },
        ScanSettings {
            resume: false,
            ..settings
        },
    ] {
        let (whole, computed) = known(9.0, None);
        run(&whole, &settings, &Cache::default());
        assert_eq!(computed.load(Relaxed), STAGES);
    }
}

#[test]
fn a_spent_budget_is_inconclusive_and_not_checked() {
    let dir = tempfile::tempdir().unwrap();
    let settings = ScanSettings {
        budget: Some(Duration::ZERO),
        ..settings(dir.path())
    };
    let scan = run(&known(9.0, None).0, &settings, &Cache::default());
    assert_eq!(
        (scan.end, scan.report.verdict),
        (End::Unchecked, Verdict::Inconclusive)
    );
    assert!(
        scan.report.skipped[0].reason.contains("budget"),
        "{:?}",
        scan.report.skipped
    );
}

#[test]
fn a_detector_that_fails_is_reported_as_skipped() {
    struct Broken;
    impl ModelDetector for Broken {
        fn inspect(&self, _: &Pipeline, _: &Cx<'_>) -> Result<Inspection, DefenseError> {
            Err(DefenseError::Params {
                field: "pairs",
                value: "0".into(),
                allowed: "1 and above",
            })
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let detector = Detector {
        run: Box::new(Broken),
        ..known(0.0, None).0
    };
    let scan = run(&detector, &settings(dir.path()), &Cache::default());
    assert_eq!(
        (scan.end, scan.report.verdict, scan.report.interrupted),
        (End::Unchecked, Verdict::Inconclusive, false)
    );
    assert!(scan.report.skipped[0].reason.contains("`pairs` is 0"));
}

#[test]
fn what_the_files_alone_give_away_is_a_finding_and_no_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let model = support::copy_of_tiny_pipeline(dir.path());
    fs::write(
        model.join("unet/diffusion_pytorch_model.bin"),
        b"\x80\x02K\x01.",
    )
    .unwrap();
    let weights = model.join("unet/diffusion_pytorch_model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&1e4_f32.to_le_bytes());
    fs::write(&weights, bytes).unwrap();
    let file = dir.path().join("calibration.json");
    calibration(&file, None);
    let settings = ScanSettings {
        calibration: Some(file),
        report_dir: None,
        ..settings(dir.path())
    };
    let cancel = CancelToken::default();
    let watch = Watch {
        cancel: &cancel,
        progress: &Silent,
    };
    let found = scan(
        &model,
        &settings,
        &known(0.5, None).0,
        &Cache::default(),
        watch,
    )
    .unwrap()
    .report;
    let ids: Vec<FindingId> = found.findings.iter().map(|finding| finding.id).collect();
    assert_eq!(
        ids,
        [FindingId::EXECUTABLE_FILE, FindingId::ABNORMAL_TENSOR]
    );
    assert_eq!(found.verdict, Verdict::NoBackdoorFound);
    let Evidence::Table(table) = &found.findings[0].evidence[0] else {
        panic!("no table")
    };
    assert_eq!(
        table.rows,
        [["unet/diffusion_pytorch_model.bin", "pickle", "5"]]
    );
    let trigger = found.evidence.iter().find_map(|piece| match piece {
        Evidence::InvertedTrigger(trigger) => Some(trigger),
        _ => None,
    });
    assert!(
        trigger.unwrap().file.contains("--report-dir"),
        "without a folder no file is named as if it were there"
    );
}
