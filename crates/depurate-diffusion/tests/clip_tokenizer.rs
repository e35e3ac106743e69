//! CLIP's tokenizer against the ids that transformers 5 gives, and against folders that are not what they should be.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{fs, path::Path};

use depurate_checkpoint::Limits;
use depurate_diffusion::clip_tokenizer::ClipTokenizer;
use serde_json::Value;

fn root() -> std::path::PathBuf {
    depurate_testkit::golden::root().join("clip-tokenizer")
}

fn tokenizer() -> ClipTokenizer {
    ClipTokenizer::load(&root().join("vocab"), &Limits::default()).unwrap()
}

fn ids(variant: &Value) -> Vec<u32> {
    let ids = variant["ids"].as_array().unwrap();
    ids.iter()
        .map(|id| u32::try_from(id.as_u64().unwrap()).unwrap())
        .collect()
}

/// The case's rows: text, and what transformers 5 makes of it.
fn rows(case: &str) -> Vec<(String, Value)> {
    let text = fs::read_to_string(root().join(case).join("case.json")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let of = |row: &Value| {
        let variant = row.get("tf5_fast").unwrap_or(&row["slow_ftfy"]);
        (row["text"].as_str().unwrap().to_owned(), variant.clone())
    };
    json["rows"].as_array().unwrap().iter().map(of).collect()
}

#[test]
fn ids_are_those_of_transformers_5() {
    let tokenizer = tokenizer();
    let mut compared = 0;
    for case in [
        "prompts",
        "BadT2I_test_data_1",
        "Rickrolling_test_data_1",
        "Villan_test_data_1",
    ] {
        for (text, want) in rows(case) {
            let got = tokenizer.encode(&text).unwrap();
            let want_ids = ids(&want);
            assert_eq!(got.ids[..got.used], want_ids, "{case}: {text:?}");
            assert_eq!(got.ids.len(), 77, "{case}: {text:?}");
            assert!(got.ids[got.used..].iter().all(|id| *id == 49407));
            let whole = want["untruncated_len"].as_u64().unwrap();
            assert_eq!(got.untruncated as u64, whole, "{case}: {text:?}");
            compared += 1;
        }
    }
    assert_eq!(compared, 91 + 3 * 30);
}

#[test]
fn what_triggers_are_made_of_stays_apart() {
    let tokenizer = tokenizer();
    let ids = |text: &str| tokenizer.encode(text).unwrap().ids;
    assert_ne!(ids("a photo of a dog"), ids("a ph\u{043e}to of a dog"));
    assert_ne!(ids("a photo of a dog"), ids("a photo of a\u{200b} dog"));
    assert_eq!(ids("A Photo  of a\tdog"), ids("a photo of a dog"));
}

fn copied(to: &Path) {
    for name in ["vocab.json", "merges.txt", "tokenizer_config.json"] {
        fs::copy(root().join("vocab").join(name), to.join(name)).unwrap();
    }
}

#[test]
fn padding_and_length_are_the_folders() {
    let dir = tempfile::tempdir().unwrap();
    copied(dir.path());
    // Stable Diffusion 2 pads with `!`
    let config = r#"{"model_max_length": 9, "pad_token": "!"}"#;
    fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    let tokenizer = ClipTokenizer::load(dir.path(), &Limits::default()).unwrap();
    let short = tokenizer.encode("a dog").unwrap();
    assert_eq!(short.ids, [49406, 320, 1929, 49407, 0, 0, 0, 0, 0]);
    let long = tokenizer.encode(&"dog ".repeat(30)).unwrap();
    assert_eq!((long.used, long.untruncated, long.ids.len()), (9, 32, 9));
    assert_eq!(long.ids[8], 49407);
}

#[test]
fn broken_folders_are_errors_that_name_the_file() {
    let load = |name: &str, content: &str| {
        let dir = tempfile::tempdir().unwrap();
        copied(dir.path());
        fs::write(dir.path().join(name), content).unwrap();
        let error = ClipTokenizer::load(dir.path(), &Limits::default()).unwrap_err();
        error.to_string()
    };
    assert!(load("vocab.json", "[1, 2]").contains("vocab.json"));
    assert!(load("vocab.json", r#"{"a": 0}"#).contains("merges.txt"));
    assert!(load("vocab.json", r#"{"a": "x"}"#).contains("vocab.json"));
    assert!(load("vocab.json", r#"{"a": 1}"#).contains("below 1"));
    assert!(load("merges.txt", "#version: 0.2\none two three\n").contains("merges.txt"));
    let huge = r#"{"model_max_length": 1000000000}"#;
    assert!(load("tokenizer_config.json", huge).contains("model_max_length"));
    let other = r#"{"pad_token": "<nothing>"}"#;
    assert!(load("tokenizer_config.json", other).contains("<nothing>"));
    let dir = tempfile::tempdir().unwrap();
    assert!(ClipTokenizer::load(dir.path(), &Limits::default()).is_err());
}
