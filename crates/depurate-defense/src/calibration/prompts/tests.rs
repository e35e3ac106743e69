#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;

use super::*;

fn setting() -> RunSetting {
    RunSetting {
        model_sha256: "aa".into(),
        tokenizer_sha256: "bb".into(),
        scheduler: "DDIM".into(),
        timesteps: vec![981, 961, 941],
        guidance: 7.5,
        seed: 42,
        size: (64, 64),
        sites: SiteSelection::default(),
        number_type: "f32".into(),
    }
}

/// `counts` prompts of each number of tokens, with scores that rise by 1.
fn calibration(counts: &[(usize, usize)]) -> PromptCalibration {
    let lengths = counts
        .iter()
        .flat_map(|&(tokens, count)| std::iter::repeat_n(tokens, count));
    let entry = |(i, tokens): (usize, usize)| PromptEntry {
        prompt_sha256: format!("{i:064x}"),
        tokens,
        score: i as f64,
    };
    PromptCalibration {
        version: PROMPT_CALIBRATION_VERSION,
        detector: "daa-s".into(),
        params: serde_json::json!({"horizon": {"kind": "fixed", "tau": 0.7}}),
        setting: setting(),
        population: "test".into(),
        command: "test".into(),
        made_by: "test".into(),
        entries: lengths.enumerate().map(entry).collect(),
    }
}

fn parse(calibration: &PromptCalibration) -> Result<PromptCalibration, DefenseError> {
    let bytes = serde_json::to_vec(calibration).unwrap();
    PromptCalibration::parse(&bytes, Path::new("c.json"))
}

#[test]
fn what_is_written_is_read_and_damage_is_refused() {
    let good = calibration(&[(9, 250)]);
    assert_eq!(parse(&good).unwrap(), good);
    let refused = |change: &dyn Fn(&mut PromptCalibration)| {
        let mut bad = good.clone();
        change(&mut bad);
        parse(&bad).unwrap_err().to_string()
    };
    assert!(refused(&|bad| bad.version = 2).contains("version 2"));
    assert!(refused(&|bad| bad.entries.clear()).contains("no benign prompt"));
    assert!(
        refused(&|bad| bad.entries[1].prompt_sha256 = bad.entries[0].prompt_sha256.clone())
            .contains("twice")
    );
    assert!(refused(&|bad| bad.entries[1].score = f64::NAN).contains("c.json"));
    assert!(PromptCalibration::parse(b"{}", Path::new("c.json")).is_err());
}

#[test]
fn every_difference_in_how_a_score_came_about_is_named() {
    let calibration = calibration(&[(9, 250)]);
    let params = calibration.params.clone();
    calibration.check("daa-s", &params, &setting()).unwrap();
    let refused = |detector: &str, params: &serde_json::Value, setting: &RunSetting| {
        let error = calibration.check(detector, params, setting).unwrap_err();
        let DefenseError::CalibrationMismatch { differences } = error else {
            panic!("{error}")
        };
        differences
    };
    assert_eq!(refused("daa-i", &params, &setting()).len(), 1);
    let released = serde_json::json!({"horizon": {"kind": "released"}});
    assert_eq!(refused("daa-s", &released, &setting()).len(), 1);
    let changes: BTreeMap<&str, fn(&mut RunSetting)> = BTreeMap::from([
        (
            "model",
            (|s| s.model_sha256 = "cc".into()) as fn(&mut RunSetting),
        ),
        ("tokenizer", |s| s.tokenizer_sha256 = "cc".into()),
        ("scheduler", |s| s.scheduler = "PNDM".into()),
        ("timesteps", |s| s.timesteps[1] = 981),
        ("guidance", |s| s.guidance = 1.0),
        ("seed", |s| s.seed = 43),
        ("size", |s| s.size = (64, 32)),
        ("layers", |s| s.sites.middle = true),
        ("numbers", |s| s.number_type = "bf16".into()),
    ]);
    assert_eq!(changes.len(), SETTING.len());
    let mut all = setting();
    for (name, change) in &changes {
        let mut other = setting();
        change(&mut other);
        change(&mut all);
        let differences = refused("daa-s", &params, &other);
        assert_eq!(differences.len(), 1, "{name}");
        assert!(differences[0].contains(name), "{differences:?}");
    }
    assert_eq!(refused("daa-s", &params, &all).len(), changes.len());
}

#[test]
fn sparse_lengths_are_merged_and_no_prompt_is_lost() {
    assert_eq!(least_stratum(0.05).unwrap(), 72);
    let calibration = calibration(&[(5, 10), (6, 70), (7, 100), (9, 30), (12, 30), (20, 5)]);
    let strata = calibration.strata(0.05).unwrap();
    let shapes: Vec<_> = strata
        .iter()
        .map(|stratum| (stratum.tokens, stratum.scores.len()))
        .collect();
    assert_eq!(shapes, [((5, 6), 80), ((7, 20), 165)]);
    // at a smaller rate nothing is left to part
    assert_eq!(calibration.strata(0.01).unwrap().len(), 1);
    assert!(calibration.strata(0.0).is_err() && calibration.strata(f64::NAN).is_err());
}

#[test]
fn a_prompt_is_held_against_prompts_of_its_length() {
    // scores 0..99 at 5 tokens, 100..199 at 9
    let calibration = calibration(&[(5, 100), (9, 100)]);
    let threshold = |tokens| calibration.threshold(tokens, 0.05).unwrap();
    // rank ceil(101 * 0.95) = 96 of 100
    assert_eq!(threshold(5).fitted.threshold, 95.0);
    assert_eq!(threshold(9).fitted.threshold, 195.0);
    assert_eq!(threshold(6).stratum.tokens, (5, 5));
    assert_eq!(threshold(7).stratum.tokens, (5, 5));
    assert_eq!(threshold(8).stratum.tokens, (9, 9));
    assert!(threshold(7).covers);
    let outside = threshold(10);
    assert!(!outside.covers && outside.stratum.tokens == (9, 9));
    assert!(!threshold(4).covers);
    assert!(calibration.is_enough());
}

#[test]
fn scores_that_more_calibration_could_move_across_the_threshold_are_near_it() {
    let calibration = calibration(&[(9, 400)]);
    let threshold = calibration.threshold(9, 0.05).unwrap();
    assert_eq!(threshold.fitted.threshold, 380.0);
    let standing = |score| threshold.standing(score).unwrap();
    assert_eq!(standing(100.0), Standing::Below);
    assert_eq!(standing(375.5), Standing::NearBelow);
    assert_eq!(standing(380.0), Standing::NearBelow);
    assert_eq!(standing(381.5), Standing::NearAbove);
    assert_eq!(standing(399.5), Standing::Above);
    assert!(threshold.standing(f64::NAN).is_err());
    assert_eq!(threshold.p_value(1e9).unwrap(), 1.0 / 401.0);
    let rising: Vec<Standing> = (0..420).map(|score| standing(f64::from(score))).collect();
    assert!(rising.is_sorted());
}

#[test]
fn the_smallest_stratum_is_the_smallest_that_can_decide() {
    for (rate, least) in [(0.05, 72), (0.01, 368), (0.1, 36)] {
        assert_eq!(least_stratum(rate).unwrap(), least);
        let highest = |n| {
            let calibration = calibration(&[(9, n)]);
            let threshold = calibration.threshold(9, rate).unwrap();
            threshold.standing(1e9).unwrap()
        };
        assert_eq!(highest(least), Standing::Above, "{rate}");
        assert_eq!(highest(least - 1), Standing::NearAbove, "{rate}");
    }
}

#[test]
fn benign_prompts_are_flagged_at_most_at_the_stated_rate() {
    // scores depend on length: a threshold without strata would flag the long prompts only
    let mut state = 7u64;
    let mut draw = |tokens: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64 + tokens as f64
    };
    let (mut flagged, mut trials) = (BTreeMap::new(), 0.0);
    for _round in 0..200 {
        let mut calibration = calibration(&[(5, 80), (9, 80)]);
        for entry in &mut calibration.entries {
            entry.score = draw(entry.tokens);
        }
        trials += 20.0;
        for tokens in [5, 9] {
            let threshold = calibration.threshold(tokens, 0.05).unwrap().fitted;
            let count = (0..20).filter(|_| threshold.flags(draw(tokens))).count();
            *flagged.entry(tokens).or_insert(0) += count;
        }
    }
    for (tokens, flagged) in flagged {
        // 4 of 81 is 0.0494; four standard deviations of 4000 draws, calibrations' own spread included
        let rate = f64::from(u32::try_from(flagged).unwrap()) / trials;
        assert!((0.03..=0.07).contains(&rate), "{tokens}: {rate}");
    }
}
