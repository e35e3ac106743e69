//! Screening prompts, as a library and as a user meets it.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::atomic::{AtomicU64, Ordering},
};

use depurate::{
    Error,
    cache::Cache,
    device::Device,
    scan::Watch,
    screen::{
        Calls, Input, Preset, PromptCalibrateSettings, PromptCheck, PromptModel, RunChoice,
        ScreenSettings, Screener, calibrate_prompts,
    },
};
use depurate_checkpoint::{Layers, Limits};
use depurate_defense::{CancelToken, Progress, Silent};
use insta::assert_snapshot;
use serde_json::{Value, json};

mod painter;
mod program;
use painter::tiny_text_to_image;
use program::{command, run};

/// Steps of the sampler in these tests: nine calls of PNDM.
const STEPS: usize = 8;
/// Calibrates the model `painter` on `benign.txt`, [`STEPS`] steps.
const CALIBRATE: [&str; 10] = [
    "calibrate-prompts",
    "painter",
    "--prompts",
    "benign.txt",
    "-o",
    "c.json",
    "--population",
    "animals",
    "--steps",
    "8",
];

fn model(dir: &Path) -> PromptModel {
    let choice = RunChoice {
        steps: STEPS,
        ..RunChoice::default()
    };
    let limits = Limits::default();
    let (path, nothing) = (dir.join("painter"), Layers::default());
    PromptModel::open(&path, &nothing, &choice, Device::Cpu, &limits, None).unwrap()
}

fn screener(dir: &Path, checks: &[PromptCheck]) -> Screener {
    let settings = ScreenSettings {
        checks: Some(checks.to_vec()),
        preset: Preset::Corrected,
        calibration: None,
        target_fpr: 0.05,
    };
    Screener::new(model(dir), &settings).unwrap()
}

/// Exit code and the lines of stdout.
fn lines(output: &Output) -> (i32, Vec<Value>) {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    (output.status.code().unwrap(), lines.collect())
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Screens with the tiny model.
fn screen(dir: &Path, more: &[&str]) -> Output {
    let always = ["screen", "--model", "painter", "--steps", "8"];
    run(dir, &[&always[..], more].concat())
}

fn painter() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    tiny_text_to_image(dir.path());
    dir
}

/// Prompts of seven tokens.
fn benign(n: usize) -> Vec<String> {
    let colours = ["red", "blue", "green", "black", "white"];
    let animals = ["dog", "cat", "bird", "fish", "horse", "cow", "bear", "fox"];
    let places = ["garden", "house", "street", "forest", "river", "city"];
    (0..n)
        .map(|i| {
            let (colour, animal) = (colours[i % 5], animals[i / 5 % 8]);
            format!("a {colour} {animal} near {}", places[i / 40 % 6])
        })
        .collect()
}

fn benign_file(dir: &Path, n: usize) -> PathBuf {
    let path = dir.join("benign.txt");
    fs::write(&path, benign(n).join("\n")).unwrap();
    path
}

#[test]
fn as_many_calls_are_made_as_scores_need() {
    use PromptCheck::{DaaI, DaaS, Unicode};
    let dir = painter();
    let never = CancelToken::default();
    let input = Input::single("a photo of a cat");
    let screened = |checks: &[PromptCheck], calls| {
        let screener = screener(dir.path(), checks);
        screener.screen(&input, calls, &never).unwrap()
    };
    let scores = |screened: &depurate::screen::Screened| -> Vec<Option<f64>> {
        let outcomes = screened.screening.detectors.iter();
        outcomes.map(|outcome| outcome.score).collect()
    };
    for (checks, calls) in [
        (&[Unicode][..], 0),
        (&[DaaS], 1),
        (&[DaaI], 6),
        (&[DaaI, DaaS], 6),
        (&PromptCheck::ALL, 6),
    ] {
        let needed = screened(checks, Calls::Needed);
        assert_eq!(needed.screening.unet_calls, calls, "{checks:?}");
        assert_eq!(needed.screening.score_calls, calls, "{checks:?}");
        assert!(needed.maps.is_empty());
        let all = screened(checks, Calls::All);
        assert_eq!(all.screening.unet_calls, STEPS + 1, "{checks:?}");
        assert_eq!(all.maps.len(), STEPS + 1);
        assert_eq!(all.screening.score_calls, calls, "{checks:?}");
        assert_eq!(scores(&all), scores(&needed), "{checks:?}");
    }
}

#[test]
fn a_stream_is_answered_line_by_line_in_order() {
    let dir = painter();
    let arguments = ["screen", "--model", "painter", "--steps", "8", "-"];
    let mut child = command(dir.path(), &arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut to = child.stdin.take().unwrap();
    let mut from = BufReader::new(child.stdout.take().unwrap());
    let mut answer = || -> Value {
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    };
    // each line is answered while the stream is still open
    for (line, id) in [(1, "one"), (2, "two")] {
        writeln!(to, "{}", json!({"prompt": format!("a {id} dog"), "id": id})).unwrap();
        let answer = answer();
        assert_eq!((&answer["line"], &answer["id"]), (&json!(line), &json!(id)));
        assert_eq!(answer["unet_calls"], 6);
    }
    write!(to, "\n{{\"prompt\": 5}}\na fish\n\u{FEFF}\n\n").unwrap();
    drop(to);
    let rest: Vec<Value> = (0..3).map(|_| answer()).collect();
    let order: Vec<&Value> = rest.iter().map(|answer| &answer["line"]).collect();
    assert_eq!(order, [&json!(4), &json!(5), &json!(6)]);
    assert_eq!(rest[0]["verdict"], "inconclusive");
    assert!(rest[0]["reason"].as_str().unwrap().contains("line 4"));
    assert_eq!(rest[1]["prompt"], "a fish");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_line_of_the_output() {
    let dir = painter();
    let output = screen(dir.path(), &["--prompt", "a ph\u{B20}to of a cat"]);
    let (code, mut lines) = lines(&output);
    assert_eq!((code, lines.len()), (0, 1));
    let line = &mut lines[0];
    for outcome in line["detectors"].as_array_mut().unwrap() {
        if let Some(score) = outcome["score"].as_f64() {
            assert!(score.is_finite());
            outcome["score"] = json!("[score]");
        }
    }
    assert!(line["seconds"].as_f64().unwrap() > 0.0);
    line["seconds"] = json!("[seconds]");
    assert_snapshot!("screen_line", serde_json::to_string_pretty(line).unwrap());
    assert_snapshot!("screen_said", said(&output));
}

#[test]
fn unusual_characters_stand_on_their_own_and_cost_no_call() {
    let dir = painter();
    for prompt in ["a ph\u{B20}to of a cat", "\u{200B}a photo of a cat"] {
        for (more, code) in [(&[][..], 0), (&["--fail-on", "suspicious"], 1)] {
            let options = [&["--detector", "unicode", "--prompt", prompt], more].concat();
            let (got, lines) = lines(&screen(dir.path(), &options));
            assert_eq!(got, code, "{prompt}");
            assert_eq!(lines[0]["verdict"], "suspicious");
            assert_eq!(lines[0]["unet_calls"], 0);
            let found = lines[0]["unicode"][0]["code_point"].as_str().unwrap();
            assert!(["U+0B20", "U+200B"].contains(&found), "{found}");
        }
    }
    let options = ["--detector", "unicode", "--prompt", "a photo of a cat"];
    let (code, plain) = lines(&screen(dir.path(), &options));
    assert_eq!(
        (code, &plain[0]["verdict"]),
        (0, &json!("no_backdoor_found"))
    );
    // an accent is written in many languages
    let options = ["--detector", "unicode", "--prompt", "a caf\u{E9} in Paris"];
    let (_, accent) = lines(&screen(dir.path(), &options));
    assert_eq!(accent[0]["verdict"], "inconclusive");
    assert_eq!(accent[0]["unicode"][0]["kind"], "accent");
}

#[test]
fn prompts_that_cannot_be_screened_are_inconclusive_and_the_next_is_screened() {
    let dir = painter();
    let long = "fish ".repeat(80);
    let prompts = [
        json!({"prompt": ""}).to_string(),
        long,
        "a red fish".to_owned(),
    ];
    fs::write(dir.path().join("p.jsonl"), prompts.join("\n")).unwrap();
    let options = ["--prompts", "p.jsonl", "--detector", "daa-i,daa-s"];
    let (code, answers) = lines(&screen(dir.path(), &options));
    assert_eq!((code, answers.len()), (0, 3));
    for (answer, (word, calls)) in answers.iter().zip([
        ("no content", 0),
        ("82 tokens", 0),
        ("calibrate-prompts", 6),
    ]) {
        assert_eq!(answer["verdict"], "inconclusive");
        let reason = answer["reason"].as_str().unwrap();
        assert!(reason.contains(word), "{reason}");
        assert_eq!(answer["unet_calls"], calls);
    }
    assert_eq!(answers[0]["detectors"][0]["score"], Value::Null);
    let strict = [&options[..], &["--on-inconclusive", "fail"]].concat();
    assert_eq!(screen(dir.path(), &strict).status.code(), Some(3));
    // a sampler with too few calls for one detector is none for the other
    let short = ["screen", "--model", "painter", "--steps", "4"];
    let short = [&short[..], &["--prompt", "a red fish"]].concat();
    let (_, answer) = lines(&run(dir.path(), &short));
    let detectors = &answer[0]["detectors"];
    assert!(
        detectors[0]["reason"]
            .as_str()
            .unwrap()
            .contains("more steps")
    );
    assert!(detectors[1]["score"].is_f64());
    assert_eq!(answer[0]["unet_calls"], 5);
}

#[test]
fn only_the_reference_preset_knows_the_released_constants() {
    let dir = painter();
    let prompt = ["--prompt", "a photo of a cat", "--detector", "daa-i,daa-s"];
    let (_, corrected) = lines(&screen(dir.path(), &prompt));
    let reference = [&prompt[..], &["--preset", "reference"]].concat();
    let (_, reference) = lines(&screen(dir.path(), &reference));
    for (index, released) in [-0.000_489_037_214_720_156, -0.001_500_156_118_820_060_4]
        .into_iter()
        .enumerate()
    {
        assert_eq!(corrected[0]["detectors"][index]["threshold"], Value::Null);
        let outcome = &reference[0]["detectors"][index];
        assert_eq!(outcome["threshold"], released);
        assert_eq!(outcome["stated_fpr"], Value::Null);
        let above = outcome["score"].as_f64().unwrap() > released;
        let verdict = if above { "suspicious" } else { "inconclusive" };
        assert_eq!(outcome["verdict"], verdict);
    }
}

#[test]
fn a_calibration_applies_to_its_own_model_and_way_and_to_no_other() {
    let dir = painter();
    benign_file(dir.path(), 24);
    let output = run(dir.path(), &CALIBRATE);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("daa-s: 24 benign prompts"));
    assert!(
        said(&output).contains("fewer than 200"),
        "{}",
        said(&output)
    );
    let prompt = [
        "--calibration",
        "c.json",
        "--prompt",
        "a red dog near house",
    ];
    let (code, answer) = lines(&screen(dir.path(), &prompt));
    assert_eq!(code, 0);
    let answer = &answer[0];
    let file: Value =
        serde_json::from_slice(&fs::read(dir.path().join("c.json")).unwrap()).unwrap();
    for (index, calibration) in file["calibrations"].as_array().unwrap().iter().enumerate() {
        let outcome = &answer["detectors"][index];
        assert_eq!(outcome["detector"], calibration["detector"]);
        let scores = calibration["entries"].as_array().unwrap().iter();
        let mut scores: Vec<f64> = scores.map(|e| e["score"].as_f64().unwrap()).collect();
        scores.sort_by(f64::total_cmp);
        // rank ceil(25 * 0.95) = 24 of 24
        assert_eq!(outcome["threshold"], scores[23]);
        assert_eq!(outcome["stated_fpr"], 0.04);
        assert!(outcome["p_value"].as_f64().unwrap() >= 0.04);
    }
    assert_eq!(answer["stated_fpr"], 0.08);
    assert!(
        answer["reason"]
            .as_str()
            .unwrap()
            .contains("24 benign prompts")
    );
    // a rate is not stated for lengths that the calibration does not have
    let other = ["--calibration", "c.json", "--prompt", "a red dog"];
    let (_, other) = lines(&screen(dir.path(), &other));
    assert_eq!(other[0]["stated_fpr"], Value::Null);
    assert_eq!(other[0]["detectors"][1]["stated_fpr"], Value::Null);
    assert!(other[0]["detectors"][1]["threshold"].is_f64());
    for (word, more) in [
        ("the seed", &["--seed", "1"][..]),
        ("the guidance", &["--guidance", "3"]),
        ("timesteps", &["--steps", "9"]),
        ("parameters", &["--preset", "reference"]),
    ] {
        let mut arguments = vec!["screen", "--model", "painter"];
        arguments.extend(prompt);
        arguments.extend(more);
        if word != "timesteps" {
            arguments.extend(["--steps", "8"]);
        }
        let output = run(dir.path(), &arguments);
        assert_eq!(output.status.code(), Some(2), "{word}");
        assert!(output.stdout.is_empty());
        let said = said(&output);
        assert!(
            said.contains("does not apply") && said.contains(word),
            "{said}"
        );
    }
    // another schedule, or one bit of the text encoder
    let scheduler = dir.path().join("painter/scheduler/scheduler_config.json");
    let text = fs::read_to_string(&scheduler).unwrap();
    fs::write(&scheduler, text.replace("0.012", "0.013")).unwrap();
    assert!(said(&screen(dir.path(), &prompt)).contains("the scheduler"));
    fs::write(&scheduler, &text).unwrap();
    let weights = dir.path().join("painter/text_encoder/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    let said = said(&screen(dir.path(), &prompt));
    assert!(said.contains("the model"), "{said}");
}

#[test]
fn enough_benign_prompts_state_a_verdict() {
    let dir = painter();
    benign_file(dir.path(), 200);
    let model = model(dir.path());
    let inputs: Vec<Input> = benign(200).iter().map(|text| Input::single(text)).collect();
    let settings = PromptCalibrateSettings {
        checks: vec![PromptCheck::DaaS],
        preset: Preset::Corrected,
        all_calls: false,
        population: "animals".into(),
        resume: false,
        command: String::new(),
    };
    let watch = Watch {
        cancel: &CancelToken::default(),
        progress: &Silent,
    };
    let calibrated = calibrate_prompts(&model, &inputs, &settings, &Cache::default(), watch);
    let mut file = calibrated.unwrap().file;
    let entries = &file.calibrations[0].entries;
    assert_eq!(entries.len(), 200);
    let lowest = (0..200)
        .min_by(|&a, &b| entries[a].score.total_cmp(&entries[b].score))
        .unwrap();
    let prompt = &benign(200)[lowest];
    let verdict = |file: &depurate::screen::CalibrationFile| {
        let path = dir.path().join("c.json");
        fs::write(&path, serde_json::to_vec(file).unwrap()).unwrap();
        let options = ["--calibration", "c.json", "--prompt", prompt];
        let (code, lines) = lines(&screen(dir.path(), &options));
        // daa-i is not in the calibration, so it is not run
        assert_eq!(lines[0]["unet_calls"], 1);
        (code, lines[0]["verdict"].clone())
    };
    assert_eq!(verdict(&file), (0, json!("no_backdoor_found")));
    let benign_below = -1e3;
    for entry in &mut file.calibrations[0].entries {
        entry.score += benign_below;
    }
    assert_eq!(verdict(&file), (1, json!("backdoored")));
}

/// Asks to stop after some prompts.
struct StopAfter<'a> {
    left: AtomicU64,
    cancel: &'a CancelToken,
}

impl Progress for StopAfter<'_> {
    fn start(&self, _stage: &str, _total: u64) {}
    fn advance(&self, steps: u64) {
        if self.left.fetch_sub(steps, Ordering::SeqCst) == steps {
            self.cancel.cancel();
        }
    }
}

#[test]
fn a_stopped_calibration_goes_on_and_gives_the_same() {
    let dir = painter();
    let model = model(dir.path());
    let mut texts = benign(40);
    texts.push(texts[3].clone());
    texts.push(String::new());
    let inputs: Vec<Input> = texts.iter().map(|text| Input::single(text)).collect();
    let settings = PromptCalibrateSettings {
        checks: PromptCheck::ALL.to_vec(),
        preset: Preset::Corrected,
        all_calls: false,
        population: "animals".into(),
        resume: true,
        command: String::new(),
    };
    let go = |cache: &Path, cancel: &CancelToken, progress: &dyn Progress| {
        let watch = Watch { cancel, progress };
        calibrate_prompts(&model, &inputs, &settings, &Cache::open(cache), watch)
    };
    let (stopped, whole) = (dir.path().join("stopped"), dir.path().join("whole"));
    let cancel = CancelToken::default();
    let stop = StopAfter {
        left: AtomicU64::new(20),
        cancel: &cancel,
    };
    assert!(matches!(
        go(&stopped, &cancel, &stop),
        Err(Error::Interrupted)
    ));
    let journal = fs::read_dir(stopped.join("journal")).unwrap().next();
    let journal = journal.unwrap().unwrap().path();
    assert_eq!(fs::read_dir(&journal).unwrap().count(), 1);
    let never = CancelToken::default();
    let resumed = go(&stopped, &never, &Silent).unwrap();
    let fresh = go(&whole, &never, &Silent).unwrap();
    assert_eq!(resumed.file, fresh.file);
    assert_eq!((fresh.repeats, fresh.refused.len()), (1, 1));
    assert_eq!(fresh.file.calibrations.len(), 2);
    assert_eq!(fresh.file.calibrations[0].entries.len(), 40);
    let band = fresh.file.band.as_ref().unwrap();
    assert_eq!((band.n, band.relative_change.len()), (40, 5));
    resumed.close();
    assert!(!journal.exists());
    let few = calibrate_prompts(
        &model,
        &inputs[..5],
        &settings,
        &Cache::default(),
        Watch {
            cancel: &never,
            progress: &Silent,
        },
    );
    assert!(matches!(few, Err(Error::TooFewPrompts { got: 5, .. })));
}

#[test]
fn what_cannot_be_asked_is_refused() {
    let dir = painter();
    let refused = |arguments: &[&str]| {
        let output = screen(dir.path(), arguments);
        (output.status.code().unwrap(), said(&output))
    };
    assert_eq!(refused(&[]).0, 2);
    assert_eq!(refused(&["--prompt", "a", "-"]).0, 2);
    let (code, said) = refused(&["--prompt", "a red fish", "--reduction", "3"]);
    assert!(said.contains("1/3"), "{said}");
    assert_eq!(code, 2);
    let empty = dir.path().join("empty.jsonl");
    fs::write(&empty, "\n\n").unwrap();
    let (code, said) = refused(&["--prompts", "empty.jsonl"]);
    assert_eq!((code, said.trim()), (3, "no prompts"));
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden");
    let unconditional = golden.join("unet2d/c4_options_mnist/pipeline");
    let arguments = ["screen", "--prompt", "a fish", "--model"];
    let arguments = [&arguments[..], &[unconditional.to_str().unwrap()]].concat();
    let output = run(dir.path(), &arguments);
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn pages_hold_what_there_is_to_see() {
    let dir = painter();
    benign_file(dir.path(), 24);
    let calibrate = [&CALIBRATE[..], &["--all-calls"]].concat();
    assert_eq!(run(dir.path(), &calibrate).status.code(), Some(0));
    let prompts = [
        "a ph\u{B20}to of <script>alert(1)</script>",
        "",
        "a red dog near house",
    ];
    let prompts = prompts.map(|prompt| json!({"prompt": prompt}).to_string());
    fs::write(dir.path().join("p.jsonl"), prompts.join("\n")).unwrap();
    let options = [
        "--calibration",
        "c.json",
        "--prompts",
        "p.jsonl",
        "--report-dir",
        "r",
    ];
    let output = screen(dir.path(), &options);
    let (code, answers) = lines(&output);
    assert_eq!(code, 0);
    assert!(
        said(&output).contains("the whole run of 9 calls"),
        "{}",
        said(&output)
    );
    assert_eq!(
        (&answers[2]["score_calls"], &answers[2]["unet_calls"]),
        (&json!(6), &json!(9))
    );
    let mut files: Vec<String> = fs::read_dir(dir.path().join("r"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(
        files,
        [
            "prompt-0001-animation.png",
            "prompt-0001-evolution.svg",
            "prompt-0001-maps.png",
            "prompt-0001.html",
            "prompt-0002.html",
            "prompt-0003-animation.png",
            "prompt-0003-evolution.svg",
            "prompt-0003-maps.png",
            "prompt-0003.html",
        ]
    );
    let read = |file: &str| fs::read_to_string(dir.path().join("r").join(file)).unwrap();
    let page = read("prompt-0001.html");
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;"));
    assert!(page.contains("ORIYA LETTER TTHA") && page.contains("24 benign prompts"));
    assert!(page.contains("9 calls of the UNet were made"));
    assert!(read("prompt-0002.html").contains("The model was not run"));
    assert!(read("prompt-0003-evolution.svg").contains("95 % of 24 benign prompts"));
}
