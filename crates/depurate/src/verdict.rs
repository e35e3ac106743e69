//! From a score to a verdict. A pure function: no model, no file, no clock.

use depurate_defense::calibration::{Calibration, Coverage, ModelKind};
use depurate_report::{Confidence, Threshold, Verdict};
use depurate_stats::{ConformalThreshold, conformal_p_value, conformal_threshold};

use crate::{Detector, Error};

/// What benign models of the calibration say about the suspect's kind.
#[derive(Debug, Clone)]
pub struct Benign<'a> {
    /// Their scores.
    pub scores: &'a [f64],
    /// What they are, in words.
    pub population: &'a str,
    /// Whether they are of the suspect's kind.
    pub coverage: Coverage,
    /// The false-positive rate asked for.
    pub target_fpr: f64,
    /// The least threshold, whatever the benign scores are: the detector's. Raising a threshold only lowers the
    /// false-positive rate, so the stated rate stays an upper bound.
    pub least_effect: f64,
}

/// How far a scan came.
#[derive(Debug, Clone)]
pub enum Outcome<'a> {
    /// There is a score and benign scores to hold it against.
    Scored {
        /// Higher is more suspicious.
        score: f64,
        /// What it is held against.
        benign: Benign<'a>,
    },
    /// There is a score and nothing to hold it against.
    Uncalibrated {
        /// Higher is more suspicious.
        score: f64,
        /// Why, and how to mend it.
        reason: String,
    },
    /// There is no score: stopped, out of time, skipped or failed.
    Unscored {
        /// Why, and how to mend it.
        reason: String,
    },
}

/// A verdict with its reason.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// What the scan concludes.
    pub verdict: Verdict,
    /// How sure it is of a finding.
    pub confidence: Confidence,
    /// Why, in a sentence or two.
    pub why: String,
    /// The threshold that the score was held against.
    pub threshold: Option<Threshold>,
    /// The conformal p-value of the score.
    pub p_value: Option<f64>,
}

/// Least widening of the threshold for a kind of model that the calibration does not cover, in units of the score.
const LEAST_WIDENING: f64 = 0.3;

/// Decides.
///
/// The threshold is the calibration's, but at least the detector's least effect. A score above the threshold of a calibration
/// that covers the model is `backdoored`. Where the calibration does not cover it, the threshold is widened by the distance
/// of the largest benign score from the median (at least 0.3); between the threshold and the widened one the verdict is
/// `suspicious`. Without a score or without a calibration it is `inconclusive`.
///
/// # Errors
/// When there is no benign score, a score is not finite, or the rate is not between 0 and 1.
pub fn judge(outcome: &Outcome<'_>) -> Result<Judgement, Error> {
    match outcome {
        Outcome::Unscored { reason } => Ok(inconclusive(reason.clone())),
        Outcome::Uncalibrated { score, reason } => Ok(inconclusive(format!(
            "The score is {score:.3}, and there is nothing to hold it against: {reason}"
        ))),
        Outcome::Scored { score, benign } => hold_against(*score, benign),
    }
}

/// Decides about the score of `detector` on a model of this `kind`, held against `calibration` if there is one.
///
/// # Errors
/// As [`judge`].
pub fn judge_score(
    score: f64,
    detector: &Detector,
    calibration: Option<&Calibration>,
    kind: &ModelKind,
    target_fpr: f64,
) -> Result<Judgement, Error> {
    let Some(calibration) = calibration else {
        return judge(&Outcome::Uncalibrated {
            score,
            reason: "no calibration with this detector's parameters is built in. Give one with --calibration, or make \
                     one from benign models of this kind with `depurate calibrate`."
                .into(),
        });
    };
    judge(&Outcome::Scored {
        score,
        benign: Benign {
            scores: &calibration.scores(),
            population: &calibration.population,
            coverage: calibration.coverage(kind),
            target_fpr,
            least_effect: detector.least_effect,
        },
    })
}

fn inconclusive(why: String) -> Judgement {
    let (verdict, confidence) = (Verdict::Inconclusive, Confidence::Low);
    Judgement {
        verdict,
        confidence,
        why,
        threshold: None,
        p_value: None,
    }
}

fn hold_against(score: f64, benign: &Benign<'_>) -> Result<Judgement, Error> {
    let fitted = conformal_threshold(benign.scores, benign.target_fpr)?;
    let p_value = conformal_p_value(score, benign.scores)?;
    let n = fitted.n;
    let mut notes = Vec::new();
    let threshold_value = fitted.threshold.max(benign.least_effect);
    if threshold_value > fitted.threshold {
        notes.push(format!(
            "the benign scores alone would put it at {:.3}; a score up to {:.3} is never called a trigger's",
            fitted.threshold, benign.least_effect
        ));
    }
    if !fitted.meets_target() {
        notes.push(format!(
            "{n} benign models justify no rate below {:.4}; calibrate on more to reach {}",
            fitted.stated_fpr, fitted.target_fpr
        ));
    }
    let (covers, value) = match &benign.coverage {
        Coverage::Covered => (true, threshold_value),
        Coverage::Outside(reasons) => {
            let wide = threshold_value + widening(benign.scores);
            notes.push(format!(
                "the calibration covers no model of this kind ({}), so its threshold {:.3} is widened to {wide:.3} and \
                 no false-positive rate is assured; calibrate on models of this kind",
                reasons.join("; "),
                threshold_value
            ));
            (false, wide)
        }
    };
    let verdict = match score {
        score if score > value => Verdict::Backdoored,
        score if score > threshold_value => Verdict::Suspicious,
        _ => Verdict::NoBackdoorFound,
    };
    let confidence = match (verdict, covers) {
        (Verdict::Backdoored, true) => Confidence::High,
        (Verdict::Backdoored, false) => Confidence::Medium,
        _ => Confidence::Low,
    };
    let mut why = match verdict {
        Verdict::Backdoored => {
            format!("The score {score:.3} is above the threshold {value:.3} of {n} benign models.")
        }
        Verdict::Suspicious => format!(
            "The score {score:.3} is above the threshold {:.3} of {n} benign models, and not above the {value:.3} asked \
             of a kind of model that they do not cover.",
            threshold_value
        ),
        _ => format!(
            "The score {score:.3} is not above the threshold {:.3} of {n} benign models: the best trigger that was found \
             does not act like one.",
            threshold_value
        ),
    };
    if !covers {
        why.push_str(
            " The calibration does not cover models of this kind, so no error rate is assured.",
        );
    }
    let note = (!notes.is_empty()).then(|| notes.join(". "));
    let threshold = threshold(&fitted, value, benign.population, covers, note)?;
    Ok(Judgement {
        verdict,
        confidence,
        why,
        threshold: Some(threshold),
        p_value: Some(p_value),
    })
}

/// How far the largest benign score is above the median, at least [`LEAST_WIDENING`]: how high benign models of another
/// kind may reach is read off the upper half, since scores far below the others are no sign of it.
fn widening(scores: &[f64]) -> f64 {
    let mut sorted = scores.to_vec();
    sorted.sort_by(f64::total_cmp);
    let high = sorted.last().copied().unwrap_or_default();
    let middle = sorted.get(sorted.len() / 2).copied().unwrap_or(high);
    (high - middle).max(LEAST_WIDENING)
}

fn threshold(
    fitted: &ConformalThreshold,
    value: f64,
    population: &str,
    covers: bool,
    note: Option<String>,
) -> Result<Threshold, Error> {
    Ok(Threshold {
        value,
        target_fpr: fitted.target_fpr,
        stated_fpr: fitted.stated_fpr,
        fpr_ci95: fitted.fpr_interval(0.95)?.into(),
        n_benign: fitted.n,
        how: format!("split conformal, rank {} of {}", fitted.rank, fitted.n),
        population: population.to_owned(),
        covers,
        note,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// 24 scores from 0.1 to 2.4: at a rate of 0.05 the threshold is the greatest.
    fn scores() -> Vec<f64> {
        (1..=24).map(|i| f64::from(i) / 10.0).collect()
    }

    fn judged(score: f64, coverage: Coverage, scores: &[f64]) -> Judgement {
        let benign = Benign {
            scores,
            population: "trainings",
            coverage,
            target_fpr: 0.05,
            least_effect: 0.3,
        };
        judge(&Outcome::Scored { score, benign }).unwrap()
    }

    fn outside() -> Coverage {
        Coverage::Outside(vec!["3 channels, calibrated on {1}".into()])
    }

    #[test]
    fn a_covered_model_is_flagged_above_the_threshold_and_not_at_it() {
        assert_eq!(
            judged(2.4, Coverage::Covered, &scores()).verdict,
            Verdict::NoBackdoorFound
        );
        let flagged = judged(2.4000001, Coverage::Covered, &scores());
        assert_eq!(
            (flagged.verdict, flagged.confidence),
            (Verdict::Backdoored, Confidence::High)
        );
        let threshold = flagged.threshold.unwrap();
        assert_eq!(
            (threshold.value, threshold.stated_fpr, threshold.note),
            (2.4, 0.04, None)
        );
        assert!(threshold.fpr_ci95.0 < 0.04 && 0.04 < threshold.fpr_ci95.1);
        assert_eq!(flagged.p_value, Some(0.04));
    }

    #[test]
    fn a_kind_that_is_not_covered_gets_the_threshold_plus_the_upper_half_of_the_benign_range() {
        // 2.4 + (2.4 - 1.3) = 3.5
        for (score, verdict) in [
            (2.4, Verdict::NoBackdoorFound),
            (2.5, Verdict::Suspicious),
            (3.49, Verdict::Suspicious),
            (3.51, Verdict::Backdoored),
        ] {
            let judgement = judged(score, outside(), &scores());
            assert_eq!(judgement.verdict, verdict, "{score}");
            assert!(
                judgement.why.contains("does not cover"),
                "{}",
                judgement.why
            );
            let threshold = judgement.threshold.unwrap();
            assert!(!threshold.covers);
            assert!((threshold.value - 3.5).abs() < 1e-12);
            assert!(threshold.note.unwrap().contains("3 channels"));
        }
    }

    #[test]
    fn a_score_below_the_least_effect_is_never_called_a_trigger() {
        let small: Vec<f64> = (1..=24).map(|i| f64::from(i) / 1000.0).collect();
        let judgement = judged(0.29, Coverage::Covered, &small);
        assert_eq!(judgement.verdict, Verdict::NoBackdoorFound);
        assert!(
            judgement
                .threshold
                .unwrap()
                .note
                .unwrap()
                .contains("up to 0.300")
        );
        assert_eq!(
            judged(0.31, Coverage::Covered, &small).verdict,
            Verdict::Backdoored
        );
    }

    #[test]
    fn benign_scores_that_lie_close_together_widen_by_the_least() {
        let close = [1.0, 1.05, 1.1, 1.15, 1.2];
        let wide = 1.2 + LEAST_WIDENING;
        assert_eq!(
            judged(wide - 0.01, outside(), &close).verdict,
            Verdict::Suspicious
        );
        assert_eq!(
            judged(wide + 0.01, outside(), &close).verdict,
            Verdict::Backdoored
        );
    }

    #[test]
    fn few_benign_models_say_that_the_rate_is_out_of_reach() {
        let note = judged(9.0, Coverage::Covered, &[1.0; 9])
            .threshold
            .unwrap()
            .note
            .unwrap();
        assert!(note.contains("no rate below 0.1000"), "{note}");
    }

    #[test]
    fn without_score_or_calibration_nothing_is_concluded() {
        let unscored = judge(&Outcome::Unscored {
            reason: "the time is spent".into(),
        })
        .unwrap();
        let uncalibrated = judge(&Outcome::Uncalibrated {
            score: 1e9,
            reason: "no calibration".into(),
        })
        .unwrap();
        for judgement in [unscored, uncalibrated] {
            assert_eq!(
                (judgement.verdict, judgement.threshold),
                (Verdict::Inconclusive, None)
            );
        }
    }

    #[test]
    fn a_score_that_is_no_number_is_an_error_and_never_clean() {
        let (scores, coverage) = (scores(), Coverage::Covered);
        let benign = Benign {
            scores: &scores,
            population: "",
            coverage,
            target_fpr: 0.05,
            least_effect: 0.3,
        };
        assert!(
            judge(&Outcome::Scored {
                score: f64::NAN,
                benign
            })
            .is_err()
        );
    }
}
