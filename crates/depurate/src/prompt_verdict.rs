//! From a prompt's score to a verdict. A pure function: no model, no file, no clock.

use depurate_defense::calibration::prompts::{
    ENOUGH_PROMPTS, PromptCalibration, PromptThreshold, Standing,
};
use depurate_report::{Confidence, Threshold, Verdict};

use crate::{Error, verdict::Judgement};

/// Decides about a prompt of `tokens` tokens, BOS and EOS included, from its `score`, held against benign prompts of about its
/// length on the same model.
///
/// | score | enough benign prompts, of this length | otherwise |
/// |---|---|---|
/// | above the threshold and not near it | `backdoored` | `suspicious` |
/// | above, near | `suspicious` | `suspicious` |
/// | not above, near | `inconclusive` | `inconclusive` |
/// | not above, not near | `no_backdoor_found` | `inconclusive` |
///
/// *Near* is [`Standing`]'s; *enough* is [`ENOUGH_PROMPTS`]. The stated false-positive rate is that of the first two rows
/// together. Whether the calibration applies at all ([`PromptCalibration::check`]) is the caller's to check first.
///
/// # Errors
/// When the score is not finite, the rate is not between 0 and 1, or there is no benign prompt.
pub fn judge_prompt(
    score: f64,
    tokens: usize,
    calibration: &PromptCalibration,
    target_fpr: f64,
) -> Result<Judgement, Error> {
    let threshold = calibration.threshold(tokens, target_fpr)?;
    let standing = threshold.standing(score)?;
    let limits = limits(tokens, calibration, &threshold);
    let stated = limits.is_empty();
    let (verdict, confidence) = match standing {
        // a benign explanation is always at hand: the stated rate of benign prompts lies above
        Standing::Above if stated => (Verdict::Backdoored, Confidence::Medium),
        Standing::Above | Standing::NearAbove => (Verdict::Suspicious, Confidence::Low),
        Standing::NearBelow => (Verdict::Inconclusive, Confidence::Low),
        Standing::Below if stated => (Verdict::NoBackdoorFound, Confidence::Low),
        Standing::Below => (Verdict::Inconclusive, Confidence::Low),
    };
    let (side, near) = match standing {
        Standing::Above => ("above", ""),
        Standing::NearAbove => ("above", ", and so near it that the calibration cannot tell"),
        Standing::NearBelow => (
            "not above",
            ", and so near it that the calibration cannot tell",
        ),
        Standing::Below => ("not above", ""),
    };
    let fitted = &threshold.fitted;
    let mut why = format!(
        "The score {score:.5} is {side} the threshold {:.5} of {} benign prompts of {} to {} tokens{near}.",
        fitted.threshold, fitted.n, threshold.stratum.tokens.0, threshold.stratum.tokens.1
    );
    for limit in &limits {
        why = format!("{why} No verdict is stated: {limit}.");
    }
    let mut notes = limits;
    if !fitted.meets_target() {
        notes.push(format!(
            "{} benign prompts justify no rate below {:.4}; calibrate on more to reach {target_fpr}",
            fitted.n, fitted.stated_fpr
        ));
    }
    Ok(Judgement {
        verdict,
        confidence,
        why,
        threshold: Some(Threshold {
            value: fitted.threshold,
            target_fpr,
            stated_fpr: fitted.stated_fpr,
            fpr_ci95: fitted.fpr_interval(0.95)?.into(),
            n_benign: fitted.n,
            how: format!(
                "split conformal, rank {} of {}, prompts of {} to {} tokens",
                fitted.rank, fitted.n, threshold.stratum.tokens.0, threshold.stratum.tokens.1
            ),
            population: calibration.population.clone(),
            covers: threshold.covers,
            note: (!notes.is_empty()).then(|| notes.join(". ")),
        }),
        p_value: Some(threshold.p_value(score)?),
    })
}

/// Why no verdict can be stated.
fn limits(
    tokens: usize,
    calibration: &PromptCalibration,
    threshold: &PromptThreshold,
) -> Vec<String> {
    let mut limits = Vec::new();
    if !calibration.is_enough() {
        limits.push(format!(
            "the calibration has {} benign prompts and needs {ENOUGH_PROMPTS}",
            calibration.entries.len()
        ));
    }
    if !threshold.covers {
        limits.push(format!(
            "the calibration has no benign prompts as short or as long as {tokens} tokens"
        ));
    }
    limits
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use depurate_defense::{
        calibration::prompts::{PROMPT_CALIBRATION_VERSION, PromptEntry, RunSetting},
        detect::input_level::SiteSelection,
    };

    use super::*;

    /// `n` prompts of 9 tokens with scores 0, 1, 2, …
    fn calibration(n: usize) -> PromptCalibration {
        let entry = |i: usize| PromptEntry {
            prompt_sha256: i.to_string(),
            tokens: 9,
            score: i as f64,
        };
        PromptCalibration {
            version: PROMPT_CALIBRATION_VERSION,
            detector: "daa-i".into(),
            params: serde_json::json!({}),
            setting: RunSetting {
                model_sha256: "aa".into(),
                tokenizer_sha256: "bb".into(),
                scheduler: "DDIM".into(),
                timesteps: vec![0],
                guidance: 1.0,
                seed: 0,
                size: (8, 8),
                sites: SiteSelection::default(),
                number_type: "f32".into(),
            },
            population: "test prompts".into(),
            command: String::new(),
            made_by: String::new(),
            entries: (0..n).map(entry).collect(),
        }
    }

    fn judged(score: f64, tokens: usize, n: usize) -> Judgement {
        judge_prompt(score, tokens, &calibration(n), 0.05).unwrap()
    }

    #[test]
    fn verdicts_follow_where_the_score_stands() {
        for (score, verdict) in [
            (10.0, Verdict::NoBackdoorFound),
            (380.0, Verdict::Inconclusive),
            (381.5, Verdict::Suspicious),
            (400.5, Verdict::Backdoored),
        ] {
            let judgement = judged(score, 9, 400);
            assert_eq!(judgement.verdict, verdict, "{score}");
            let threshold = judgement.threshold.unwrap();
            assert_eq!((threshold.value, threshold.n_benign), (380.0, 400));
            assert!(threshold.stated_fpr <= 0.05 && threshold.covers);
            assert!(threshold.fpr_ci95.0 < 0.05 && 0.05 < threshold.fpr_ci95.1);
            assert_eq!(threshold.note, None);
        }
    }

    #[test]
    fn few_benign_prompts_and_other_lengths_state_no_verdict_and_say_so() {
        for (tokens, n, word) in [
            (9, 199, "199"),
            (10, 400, "10 tokens"),
            (8, 400, "8 tokens"),
        ] {
            for (score, verdict) in [(1.0, Verdict::Inconclusive), (999.0, Verdict::Suspicious)] {
                let judgement = judged(score, tokens, n);
                assert_eq!(judgement.verdict, verdict);
                assert!(judgement.why.contains(word), "{}", judgement.why);
                let threshold = judgement.threshold.unwrap();
                assert!(threshold.note.unwrap().contains(word));
            }
        }
    }

    #[test]
    fn a_score_that_is_no_number_is_an_error() {
        assert!(judge_prompt(f64::NAN, 9, &calibration(300), 0.05).is_err());
    }
}
