//! The program as a user meets it: what it prints, where, and how it ends.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use insta::assert_snapshot;

mod painter;
mod program;
mod support;
use painter::tiny_text_to_image;
use program::{command, run};
use support::{copy_of_tiny_pipeline, tiny_pipeline};

/// The index of a text-to-image pipeline, of which only the files are looked at.
const TEXT_TO_IMAGE: &str = r#"{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"], "scheduler": ["diffusers", "DDPMScheduler"]}"#;

/// Exit code, stdout and stderr, with the test's own directory and other numbers of this run replaced.
fn shown(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let code = output.status.code().unwrap();
    let stdout = text(&output.stdout);
    // a report's last line but one says how long it took
    let stdout: String = stdout
        .split_inclusive('\n')
        .filter(|line| !line.starts_with("depurate 0."))
        .collect();
    format!(
        "exit {code}\n--- stdout\n{stdout}--- stderr\n{}",
        text(&output.stderr)
    )
}

/// A directory with the tiny pipeline under `model`.
fn with_model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy_of_tiny_pipeline(dir.path());
    dir
}

#[test]
fn help() {
    let dir = tempfile::tempdir().unwrap();
    assert_snapshot!("help", shown(&run(dir.path(), &["--help"])));
    assert_snapshot!("help_scan", shown(&run(dir.path(), &["scan", "--help"])));
    for verb in ["sample", "screen", "calibrate-prompts"] {
        let shown = shown(&run(dir.path(), &[verb, "--help"]));
        assert_snapshot!(format!("help_{}", verb.replace('-', "_")), shown);
    }
}

#[test]
fn usage_errors() {
    let dir = tempfile::tempdir().unwrap();
    assert_snapshot!(
        "usage_fpr",
        shown(&run(dir.path(), &["scan", "model", "--fpr", "5"]))
    );
    assert_snapshot!(
        "usage_budget",
        shown(&run(dir.path(), &["scan", "model", "--budget", "soon"]))
    );
    assert_snapshot!(
        "usage_html",
        shown(&run(dir.path(), &["scan", "a", "b", "--format", "html"]))
    );
}

#[test]
fn inspect() {
    let dir = with_model();
    assert_snapshot!(
        "inspect_text",
        shown(&run(dir.path(), &["inspect", "model"]))
    );
    assert_snapshot!(
        "inspect_json",
        shown(&run(dir.path(), &["inspect", "model", "--format", "json"]))
    );
}

#[test]
fn inspect_shows_pickles_code_and_unreadable_weights() {
    let dir = with_model();
    let unet = dir.path().join("model/unet");
    fs::rename(
        unet.join("diffusion_pytorch_model.safetensors"),
        unet.join("diffusion_pytorch_model.bin"),
    )
    .unwrap();
    fs::write(dir.path().join("model/pipeline.py"), "print('hello')\n").unwrap();
    assert_snapshot!(
        "inspect_stray",
        shown(&run(dir.path(), &["inspect", "model"]))
    );
}

#[test]
fn explain() {
    let dir = tempfile::tempdir().unwrap();
    assert_snapshot!("explain_list", shown(&run(dir.path(), &["explain"])));
    assert_snapshot!(
        "explain_finding",
        shown(&run(dir.path(), &["explain", "DPR101"]))
    );
    assert_snapshot!(
        "explain_unknown",
        shown(&run(dir.path(), &["explain", "no-such-thing"]))
    );
    let algorithm = run(dir.path(), &["explain", "shift-response"]);
    let text = String::from_utf8(algorithm.stdout).unwrap();
    for part in [
        "## Paper",
        "## Deviations",
        "## Fails when",
        "id: shift-response",
    ] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
}

#[test]
fn completions() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let output = run(dir.path(), &["completions", shell]);
        assert!(output.status.success());
        assert!(
            String::from_utf8(output.stdout)
                .unwrap()
                .contains("report-dir"),
            "{shell}"
        );
    }
}

#[test]
fn models_that_cannot_be_opened() {
    let dir = with_model();
    let weights = dir
        .path()
        .join("model/unet/diffusion_pytorch_model.safetensors");
    let config = dir.path().join("model/unet/config.json");
    assert_snapshot!("missing", shown(&run(dir.path(), &["scan", "nowhere"])));
    fs::create_dir(dir.path().join("empty")).unwrap();
    assert_snapshot!("empty", shown(&run(dir.path(), &["scan", "empty"])));
    assert_snapshot!(
        "a_file",
        shown(&run(dir.path(), &["scan", "model/model_index.json"]))
    );

    let good_config = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        good_config.replacen("\"DownBlock2D\"", "\"SkipDownBlock2D\"", 1),
    )
    .unwrap();
    assert_snapshot!("unknown_block", shown(&run(dir.path(), &["scan", "model"])));
    fs::write(&config, good_config).unwrap();

    let good_weights = fs::read(&weights).unwrap();
    fs::write(&weights, &good_weights[..good_weights.len() / 2]).unwrap();
    assert_snapshot!("truncated", shown(&run(dir.path(), &["scan", "model"])));
    fs::write(&weights, [&[0xff; 8][..], &good_weights[8..]].concat()).unwrap();
    assert_snapshot!("huge_header", shown(&run(dir.path(), &["scan", "model"])));
    fs::remove_file(&weights).unwrap();
    fs::write(weights.with_extension("bin"), good_weights).unwrap();
    assert_snapshot!("pickle_only", shown(&run(dir.path(), &["scan", "model"])));
}

#[test]
fn of_a_text_to_image_pipeline_without_a_text_encoder_what_is_there_is_looked_at() {
    let dir = with_model();
    fs::write(dir.path().join("model/model_index.json"), TEXT_TO_IMAGE).unwrap();
    let scan = run(dir.path(), &["scan", "model"]);
    assert_eq!(scan.status.code(), Some(0));
    assert_snapshot!("text_to_image", shown(&scan));
    let inspect = run(dir.path(), &["inspect", "model"]);
    assert_eq!(inspect.status.code(), Some(0));
    assert!(
        String::from_utf8(inspect.stdout)
            .unwrap()
            .contains("StableDiffusionPipeline, conditioned on text")
    );
}

#[test]
fn a_model_that_cannot_be_opened_does_not_keep_others_from_being_scanned() {
    let dir = with_model();
    fs::write(dir.path().join("model/model_index.json"), TEXT_TO_IMAGE).unwrap();
    // the second is reported, too, and an error is worse than a model of which nothing is concluded
    assert_snapshot!(
        "several",
        shown(&run(
            dir.path(),
            &["scan", "nowhere", "model", "--report-dir", "report"]
        ))
    );
}

#[test]
fn places_that_cannot_be_written_to() {
    let dir = with_model();
    fs::write(dir.path().join("a-file"), "x").unwrap();
    assert_snapshot!(
        "report_dir_below_a_file",
        shown(&run(
            dir.path(),
            &["scan", "model", "--report-dir", "a-file/r"]
        ))
    );
    assert_snapshot!(
        "output_in_no_directory",
        shown(&run(
            dir.path(),
            &["scan", "model", "-o", "no/such/report.json"]
        ))
    );
    assert_snapshot!(
        "output_is_a_directory",
        shown(&run(dir.path(), &["inspect", "model", "-o", "model"]))
    );
    assert_eq!(fs::read_to_string(dir.path().join("a-file")).unwrap(), "x");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error_and_leaves_the_device_alone() {
    let dir = with_model();
    assert_snapshot!(
        "full_output",
        shown(&run(dir.path(), &["inspect", "model", "-o", "/dev/full"]))
    );
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = command(dir.path(), &["inspect", "model"])
        .stdout(full)
        .output()
        .unwrap();
    assert_snapshot!("full_stdout", shown(&output));
    assert!(!fs::metadata("/dev/full").unwrap().is_file());
}

#[test]
fn output_replaces_a_file_and_follows_a_link() {
    let dir = with_model();
    let (real, link) = (dir.path().join("real.json"), dir.path().join("link.json"));
    fs::write(&real, "old").unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("real.json", &link).unwrap();
    #[cfg(not(unix))]
    fs::hard_link(&real, &link).unwrap();
    let output = run(
        dir.path(),
        &["inspect", "model", "--format", "json", "-o", "link.json"],
    );
    assert!(output.status.success() && output.stdout.is_empty());
    assert!(
        fs::read_to_string(&real)
            .unwrap()
            .contains("\"components\"")
    );
    assert_eq!(
        fs::read_link(&link)
            .ok()
            .map(|to| to.display().to_string())
            .as_deref(),
        Some("real.json")
    );
}

#[test]
fn a_report_that_is_none_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("old.json"), "{\"schema_version\": \"99\"}").unwrap();
    fs::write(dir.path().join("none.json"), "[]").unwrap();
    assert_snapshot!(
        "report_of_another_schema",
        shown(&run(dir.path(), &["report", "old.json"]))
    );
    assert_snapshot!(
        "report_that_is_none",
        shown(&run(dir.path(), &["report", "none.json"]))
    );
}

#[test]
fn a_calibration_of_few_models_is_refused() {
    let dir = with_model();
    let arguments = ["calibrate", "model", "-o", "c.json", "--population", "one"];
    assert_snapshot!("few_models", shown(&run(dir.path(), &arguments)));
    assert!(!dir.path().join("c.json").exists());
}

#[test]
fn sampling_writes_an_image() {
    let dir = with_model();
    let arguments = [
        "sample",
        "model",
        "-o",
        "s.png",
        "--sampler",
        "ddim",
        "--steps",
        "2",
        "--count",
        "2",
    ];
    let output = run(dir.path(), &arguments);
    assert_snapshot!("sample", shown(&output));
    assert!(
        fs::read(dir.path().join("s.png"))
            .unwrap()
            .starts_with(b"\x89PNG")
    );
    let trigger = tiny_pipeline().join("unet/diffusion_pytorch_model.safetensors");
    let arguments = [
        "sample",
        "model",
        "-o",
        "t.png",
        "--trigger",
        trigger.to_str().unwrap(),
    ];
    let refused = run(dir.path(), &arguments);
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        String::from_utf8(refused.stderr)
            .unwrap()
            .contains("has no tensor `trigger.shift`")
    );
}

#[test]
fn a_prompt_makes_images_with_every_sampler() {
    let dir = tempfile::tempdir().unwrap();
    tiny_text_to_image(dir.path());
    let sample = |more: &[&str]| {
        let always = [
            "sample",
            "painter",
            "-o",
            "s.png",
            "--prompt",
            "a red fish",
            "--steps",
            "4",
        ];
        run(dir.path(), &[&always[..], more].concat())
    };
    let picture = || image::open(dir.path().join("s.png")).unwrap().to_rgb8();
    assert_snapshot!("sample_prompt", shown(&sample(&[])));
    let one = picture();
    assert_eq!(one.dimensions(), (800, 800)); // 16 x 16 pixels, enlarged by whole factors
    assert!((0..50).all(|x| one.get_pixel(x, 7) == one.get_pixel(0, 7)));
    sample(&["--guidance", "1"]);
    assert_ne!(one, picture());
    sample(&["--negative", "a blue bird"]);
    assert_ne!(one, picture());
    for sampler in ["own", "ddpm", "ddim", "pndm", "euler", "dpmpp"] {
        let output = sample(&["--sampler", sampler, "-n", "2"]);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{sampler}: {}",
            shown(&output)
        );
    }
    assert_snapshot!(
        "sample_dpmpp",
        shown(&sample(&["--sampler", "dpmpp", "-n", "2"]))
    );
    assert_eq!(picture().width(), 33 * (800 / 33));
}

#[test]
fn a_prompt_is_for_text_to_image_models() {
    let dir = with_model();
    tiny_text_to_image(dir.path());
    let refused = |arguments: &[&str]| {
        let output = run(
            dir.path(),
            &[&["sample", "-o", "s.png"], arguments].concat(),
        );
        assert!(!dir.path().join("s.png").exists());
        shown(&output)
    };
    assert_snapshot!("sample_no_prompt", refused(&["painter"]));
    assert_snapshot!(
        "sample_needless_prompt",
        refused(&["model", "--prompt", "a dog"])
    );
    let clip = [
        "painter",
        "--prompt",
        "a dog",
        "--clip",
        "1",
        "--sampler",
        "euler",
    ];
    assert!(refused(&clip).contains("--clip is for"));
    assert!(refused(&["painter", "--guidance", "3"]).contains("--prompt"));
    assert!(refused(&["painter", "--prompt", "a", "--guidance", "NaN"]).contains("give a number"));
}

/// Number of finished stages in the journal below `report`.
#[cfg(unix)]
fn stages(report: &Path) -> usize {
    let journals = fs::read_dir(report.join("journal")).into_iter().flatten();
    journals
        .flat_map(|journal| fs::read_dir(journal.unwrap().path()).unwrap())
        .count()
}

/// Waits until the journal below `report` holds `count` stages.
#[cfg(unix)]
fn wait_for_stages(report: &Path, count: usize, scan: &mut std::process::Child) {
    while stages(report) < count {
        assert_eq!(
            scan.try_wait().unwrap(),
            None,
            "the scan ended before stage {count}"
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
#[cfg(unix)]
fn a_scan_survives_an_interruption_a_termination_and_a_kill() {
    let dir = with_model();
    let report = dir.path().join("report");
    let arguments = [
        "scan",
        "model",
        "--profile",
        "quick",
        "--report-dir",
        "report",
        "--format",
        "json",
    ];
    let start = || {
        command(dir.path(), &arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let signal = |name: &str, scan: &std::process::Child| {
        let sent = Command::new("kill")
            .args([name, &scan.id().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
    };
    for (name, code) in [("-INT", Some(130)), ("-TERM", Some(143)), ("-KILL", None)] {
        let before = stages(&report);
        let mut scan = start();
        // a stage of its own: this scan listens to signals by now
        wait_for_stages(&report, before + 1, &mut scan);
        signal(name, &scan);
        let output = scan.wait_with_output().unwrap();
        assert_eq!(output.status.code(), code, "{name}");
        if code.is_some() {
            let partial =
                depurate_report::parse_json(&String::from_utf8(output.stdout).unwrap()).unwrap();
            assert!(partial.interrupted);
            assert_eq!(partial.verdict, depurate_report::Verdict::Inconclusive);
            assert!(report.join("report.html").is_file() && report.join("report.json").is_file());
        }
    }
    let kept = stages(&report);
    assert!(kept >= 3, "{kept}");
    let output = start().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let whole = depurate_report::parse_json(&String::from_utf8(output.stdout).unwrap()).unwrap();
    assert!(!whole.interrupted && !report.join("journal").exists());
    let left: Vec<_> = fs::read_dir(&report)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(
        left.iter()
            .all(|name| !name.to_string_lossy().starts_with('.')),
        "{left:?}"
    );

    for format in ["text", "html", "json"] {
        let again = run(
            dir.path(),
            &["report", "report/report.json", "--format", format],
        );
        assert!(
            again.status.success() && !again.stdout.is_empty(),
            "{format}"
        );
    }
    let again = run(
        dir.path(),
        &["report", "report/report.json", "--format", "html"],
    )
    .stdout;
    assert_eq!(
        again,
        fs::read(report.join("report.html")).unwrap(),
        "HTML is a function of the JSON"
    );
}
