//! Scans of text-to-image models as a user meets them: the files are looked at, the model is not run.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use depurate_checkpoint::{DeltaKind, Limits, ModelWeights, SaveTensor, save_delta, save_tensors};
use depurate_report::{Report, Severity, Verdict, parse_json};
use insta::assert_snapshot;

mod program;
use program::run;

const INDEX: &str = r#"{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
    "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
    "vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", "PNDMScheduler"]}"#;
const TABLE: &str = "text_encoder.text_model.embeddings.token_embedding.weight";

/// A small pipeline with random weights in Stable Diffusion's layout, put together under `name`.
fn pipeline(dir: &Path, name: &str) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden");
    let model = dir.join(name);
    for (from, to) in [
        ("unet2d-condition/sd1_style/unet", "unet"),
        ("unet2d-condition/sd1_style/scheduler", "scheduler"),
        ("clip-text/real_vocab_h16/model", "text_encoder"),
        ("vae/kl_f2/vae", "vae"),
        ("clip-tokenizer/vocab", "tokenizer"),
    ] {
        fs::create_dir_all(model.join(to)).unwrap();
        for entry in fs::read_dir(golden.join(from)).unwrap() {
            let file = entry.unwrap().path();
            fs::copy(&file, model.join(to).join(file.file_name().unwrap())).unwrap();
        }
    }
    fs::write(model.join("model_index.json"), INDEX).unwrap();
    model
}

fn with_model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    pipeline(dir.path(), "model");
    dir
}

/// Exit code, stdout without the line that holds times and threads, and stderr.
fn shown(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let lines = text(&output.stdout);
    let stdout: Vec<&str> = lines
        .lines()
        .filter(|line| !line.starts_with("depurate "))
        .collect();
    let code = output.status.code().unwrap();
    format!(
        "exit {code}\n--- stdout\n{}\n--- stderr\n{}",
        stdout.join("\n"),
        text(&output.stderr)
    )
}

fn report(dir: &Path, arguments: &[&str]) -> (Option<i32>, Report) {
    let output = run(
        dir,
        &[&["scan", "model", "--format", "json"], arguments].concat(),
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    let report = parse_json(&text).unwrap_or_else(|error| panic!("{error}: {text}{errors}"));
    (output.status.code(), report)
}

fn ids(report: &Report) -> Vec<String> {
    report
        .findings
        .iter()
        .map(|finding| finding.id.to_string())
        .collect()
}

/// Values that look random, from where they stand.
fn scattered(n: usize) -> Vec<f32> {
    let at = |i: usize| {
        let z = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((z ^ (z >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) as f32 / (1u64 << 23) as f32
            - 1.0
    };
    (0..n).map(at).collect()
}

/// A delta that adds `value(name, shape)` to the tensors that `chosen` names.
fn delta(
    dir: &Path,
    chosen: impl Fn(&str) -> bool,
    value: impl Fn(&[usize]) -> Vec<f32>,
) -> &'static str {
    let model = ModelWeights::open(&dir.join("model"), &Limits::default()).unwrap();
    let mut tensors = Vec::new();
    for (part, weights) in [
        ("unet", &model.unet),
        ("text_encoder", model.text_encoder.as_ref().unwrap()),
    ] {
        for info in weights.infos() {
            let name = format!("{part}.{}", info.name);
            if chosen(&name) {
                tensors.push(SaveTensor {
                    name,
                    shape: info.shape.clone(),
                    data: value(&info.shape),
                });
            }
        }
    }
    assert!(!tensors.is_empty());
    save_delta(&dir.join("delta.safetensors"), DeltaKind::Add, &tensors).unwrap();
    "delta.safetensors"
}

fn noise(shape: &[usize]) -> Vec<f32> {
    scattered(shape.iter().product())
        .iter()
        .map(|v| 0.1 * v)
        .collect()
}

/// The same direction of the text's space for every projection.
fn rank_one(shape: &[usize]) -> Vec<f32> {
    let (rows, columns) = (scattered(shape[0]), scattered(shape[1]));
    rows.iter()
        .flat_map(|row| columns.iter().map(move |column| row * column))
        .collect()
}

fn is_key_or_value(name: &str) -> bool {
    name.contains("attn2.to_k") || name.contains("attn2.to_v")
}

#[test]
fn without_a_base_the_files_are_looked_at_and_nothing_is_concluded() {
    let dir = with_model();
    assert_snapshot!("without_base", shown(&run(dir.path(), &["scan", "model"])));
    let (code, report) = report(dir.path(), &[]);
    assert_eq!(
        (code, report.verdict, ids(&report)),
        (Some(0), Verdict::Inconclusive, vec![])
    );
    assert!(report.decisions.is_empty() && report.calibration.is_none());
    assert_eq!(report.subject.components.len(), 3);
    assert!(
        report
            .subject
            .components
            .iter()
            .all(|file| file.sha256.len() == 64)
    );
    assert!(report.not_tested.iter().any(|line| line.contains("--base")));
    let (code, _) = self::report(dir.path(), &["--on-inconclusive", "fail"]);
    assert_eq!(code, Some(3));
}

#[test]
fn a_model_like_its_base_is_inconclusive_too() {
    let dir = with_model();
    pipeline(dir.path(), "base");
    let (code, report) = report(dir.path(), &["--base", "base"]);
    assert_eq!(
        (code, report.verdict, ids(&report)),
        (Some(0), Verdict::Inconclusive, vec![])
    );
    assert!(
        report
            .not_tested
            .iter()
            .any(|line| line.contains("the base itself"))
    );
    assert!(report.command.contains("--base base"));
}

#[test]
fn an_edit_of_keys_and_values_is_suspicious_and_never_more() {
    let dir = with_model();
    let file = delta(dir.path(), is_key_or_value, rank_one);
    let arguments = ["--base", "model", "--delta", file];
    let (code, report) = report(dir.path(), &arguments);
    assert_eq!((code, report.verdict), (Some(0), Verdict::Suspicious));
    assert_eq!(ids(&report), ["DPR402", "DPR401"]);
    assert!(
        report
            .findings
            .iter()
            .all(|finding| finding.severity < Severity::High)
    );
    let (code, _) = self::report(
        dir.path(),
        &[&arguments[..], &["--fail-on", "suspicious"]].concat(),
    );
    assert_eq!(code, Some(1));
    let out = run(
        dir.path(),
        &[&["scan", "model", "--report-dir", "report"], &arguments[..]].concat(),
    );
    assert_snapshot!("key_value_edit", shown(&out));
    let page = fs::read_to_string(dir.path().join("report/report.html")).unwrap();
    for part in [
        "DPR402",
        "effective rank",
        "attn2.to_k.weight",
        "was not run",
    ] {
        assert!(page.contains(part), "{part}");
    }
}

#[test]
fn what_is_changed_decides_what_is_found() {
    let dir = with_model();
    let is_text = |name: &str| name.starts_with("text_encoder.text_model.encoder");
    for (chosen, expected, verdict) in [
        (
            Box::new(is_text) as Box<dyn Fn(&str) -> bool>,
            vec!["DPR301", "DPR401"],
            Verdict::Suspicious,
        ),
        (
            Box::new(|name: &str| name == TABLE),
            vec!["DPR302", "DPR401"],
            Verdict::Suspicious,
        ),
        (
            Box::new(|name: &str| name.starts_with("unet.")),
            vec!["DPR401"],
            Verdict::Inconclusive,
        ),
        (
            Box::new(move |name: &str| is_text(name) || is_key_or_value(name)),
            vec!["DPR401"],
            Verdict::Inconclusive,
        ),
    ] {
        let file = delta(dir.path(), chosen, noise);
        let (code, report) = report(dir.path(), &["--base", "model", "--delta", file]);
        assert_eq!(
            (ids(&report), report.verdict, code),
            (
                expected.iter().map(ToString::to_string).collect(),
                verdict,
                Some(0)
            )
        );
    }
}

#[test]
fn adapters_and_learnt_tokens_are_for_information() {
    let dir = with_model();
    let module = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k";
    let tensor = |name: String, shape: &[usize]| SaveTensor {
        data: scattered(shape.iter().product()),
        shape: shape.to_vec(),
        name,
    };
    let lora = [
        tensor(format!("{module}.lora_B.weight"), &[32, 2]),
        tensor(format!("{module}.lora_A.weight"), &[2, 16]),
    ];
    save_tensors(&dir.path().join("lora.safetensors"), &lora, None).unwrap();
    let token = [tensor("<cat-toy>".into(), &[2, 16])];
    save_tensors(&dir.path().join("token.safetensors"), &token, None).unwrap();
    let arguments = [
        "--lora",
        "lora.safetensors:0.7",
        "--embedding",
        "token.safetensors",
    ];
    let out = run(dir.path(), &[&["scan", "model"], &arguments[..]].concat());
    assert_snapshot!("adapter_and_token", shown(&out));
    let (code, report) = report(dir.path(), &arguments);
    assert_eq!((code, report.verdict), (Some(0), Verdict::Inconclusive));
    assert_eq!(ids(&report), ["DPR303", "DPR403"]);
    assert_eq!(report.subject.components.len(), 5);
    assert!(
        report
            .command
            .contains("--lora lora.safetensors:0.7 --embedding token.safetensors")
    );

    let stray = [tensor("unet.nowhere.lora_B.weight".into(), &[2, 2])];
    save_tensors(&dir.path().join("lora.safetensors"), &stray, None).unwrap();
    let refused = run(dir.path(), &["scan", "model", "--lora", "lora.safetensors"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        String::from_utf8(refused.stderr)
            .unwrap()
            .contains("unet.nowhere.lora_B.weight")
    );
}

#[test]
fn a_spent_budget_and_a_broken_base_are_no_clean_bill() {
    let dir = with_model();
    let (code, report) = report(dir.path(), &["--base", "model", "--budget", "1ns"]);
    assert_eq!(
        (code, report.verdict, report.interrupted),
        (Some(3), Verdict::Inconclusive, true)
    );
    assert!(report.tested.is_empty());
    let missing = run(dir.path(), &["scan", "model", "--base", "nowhere"]);
    assert_eq!(missing.status.code(), Some(2));
    fs::write(
        dir.path()
            .join("model/vae/diffusion_pytorch_model.safetensors"),
        [0xff; 64],
    )
    .unwrap();
    assert_eq!(run(dir.path(), &["scan", "model"]).status.code(), Some(2));
}
