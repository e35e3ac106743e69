//! `depurate repair` as a user meets it: what it refuses, and a repair of prompts from end to end on a tiny model.
#![allow(clippy::unwrap_used)]

mod painter;
mod program;
mod support;

use std::fs;

use depurate_report::RepairReport;
use painter::tiny_text_to_image;
use program::run;
use support::copy_of_tiny_pipeline;

fn models() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    tiny_text_to_image(dir.path());
    copy_of_tiny_pipeline(dir.path());
    dir
}

const PROMPTS: &str = "a red cat\na blue dog\na small house\na tree\na fish\na green car\na yellow bird\na boat\na cat and a dog\n";

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_written() {
    let dir = models();
    fs::write(dir.path().join("few.txt"), "a cat\n").unwrap();
    fs::write(dir.path().join("prompts.txt"), PROMPTS).unwrap();
    fs::write(dir.path().join("kept.txt"), "a frog\na tq dog\n").unwrap();
    fs::write(dir.path().join("empty.txt"), "\n").unwrap();
    let cases: [(&[&str], &str); 9] = [
        (
            &["painter", "--trigger", "tq", "--keep-prompts", "kept.txt"],
            "\"a tq dog\" of kept.txt has the trigger itself",
        ),
        (
            &["painter", "--trigger", "tq", "--keep-prompts", "empty.txt"],
            "empty.txt holds no prompt",
        ),
        (&["painter"], "--from"),
        (
            &["painter", "--trigger", "tq", "--from", "x.json"],
            "cannot be used with",
        ),
        (
            &["painter", "--trigger", "tq", "--prompts", "few.txt"],
            "give more with --prompts",
        ),
        (
            &[
                "painter",
                "--trigger",
                "big cat",
                "--instead-of",
                "zebra",
                "--prompts",
                "prompts.txt",
            ],
            "have a place for the trigger",
        ),
        (
            &[
                "painter",
                "--trigger",
                "tq",
                "--method",
                "shifted-denoising",
            ],
            "repairs noise triggers",
        ),
        (
            &["painter", "--trigger", "tq", "--method", "layer-removal"],
            "nothing is laid over",
        ),
        (&["model", "--trigger", "tq"], "no text-to-image pipeline"),
    ];
    for (arguments, named) in cases {
        let always = ["repair", "-o", "out"];
        let output = run(dir.path(), &[&always, arguments].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        // 3 is for a model of another kind
        let code = if arguments[0] == "model" { 3 } else { 2 };
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(named), "{arguments:?}: {said}");
        assert!(!dir.path().join("out").exists());
    }
    fs::write(dir.path().join("scan.json"), "{}").unwrap();
    let text = [
        "repair",
        "model",
        "--from",
        "scan.json",
        "-o",
        "out",
        "--method",
        "skd-cag",
    ];
    let output = run(dir.path(), &text);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("give the trigger with --trigger")
    );
}

#[test]
fn a_repair_of_prompts_leaves_a_report_and_a_model_only_if_every_check_passes() {
    let dir = models();
    fs::write(dir.path().join("prompts.txt"), PROMPTS).unwrap();
    fs::write(dir.path().join("kept.txt"), "a frog\n").unwrap();
    for method in [
        "auto",
        "skd",
        "skd-cag",
        "sau-weights",
        "encoder-distillation",
        "concept-editing",
    ] {
        let out = format!("out-{method}");
        let arguments = [
            "repair",
            "painter",
            "--trigger",
            "big cat",
            "--instead-of",
            "cat",
            "--keep-prompts",
            "kept.txt",
            "--method",
            method,
            "--steps",
            "2",
            "--picture-steps",
            "2",
            "--guidance",
            "2",
            "-o",
            &out,
        ];
        let output = run(dir.path(), &arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        let code = output.status.code().unwrap();
        assert!(code < 2, "{method}: {said}");
        let proof = dir.path().join(format!("{out}-proof"));
        assert!(proof.join("repair.html").is_file());
        let report = fs::read(proof.join("repair.json")).unwrap();
        let report: RepairReport = serde_json::from_slice(&report).unwrap();
        assert_eq!(report.passed, code == 0);
        assert_eq!(report.repaired.is_some(), dir.path().join(&out).exists());
        assert!(
            report.command.contains("--instead-of cat")
                && report.command.contains("--keep-prompts kept.txt"),
            "{}",
            report.command
        );
        let last = report.attempts.last();
        assert_eq!(
            report.passed,
            last.is_some_and(|attempt| attempt.checks.iter().all(|c| c.passed))
        );
        if let Some(attempt) = last.filter(|_| method != "auto") {
            assert_eq!(attempt.method, method);
            assert_eq!(attempt.checks.len(), 4);
        }
        // no state stays behind
        let left = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let mut states = left.filter(|name| name.to_string_lossy().contains(".state."));
        assert_eq!(states.next(), None);
    }
}

#[test]
fn what_is_laid_over_a_model_can_be_left_out_and_a_row_be_taken_from_its_base() {
    let dir = models();
    fs::write(dir.path().join("prompts.txt"), PROMPTS).unwrap();
    let cases: [(&[&str], &str); 2] = [
        (
            &["--method", "layer-removal", "--unet", "painter"],
            "layer-removal of painter",
        ),
        (&["--method", "row-reset"], "row-reset"),
    ];
    for (i, (own, named)) in cases.into_iter().enumerate() {
        let out = format!("out-{i}");
        let always = [
            "repair",
            "painter",
            "--trigger",
            "zq",
            "--base",
            "painter",
            "--prompts",
            "prompts.txt",
            "--picture-steps",
            "2",
            "--guidance",
            "2",
            "-o",
            &out,
        ];
        let output = run(dir.path(), &[&always, own].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code().unwrap() < 2, "{own:?}: {said}");
        let report = dir.path().join(format!("{out}-proof/repair.json"));
        let report = fs::read(report).unwrap();
        let text = String::from_utf8_lossy(&report).into_owned();
        assert!(text.contains("tensors of the unet that differ from the base's"));
        let report: RepairReport = serde_json::from_slice(&report).unwrap();
        assert!(
            report.command.contains("--base painter"),
            "{}",
            report.command
        );
        if let Some(attempt) = report.attempts.first() {
            assert_eq!(attempt.method, named);
            assert_eq!(attempt.steps, 0);
        }
    }
}
