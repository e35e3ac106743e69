//! What screening a prompt gives: one JSON object a prompt.

use depurate_defense::detect::input_level::unicode::UnicodeFinding;
use depurate_report::{AlgorithmId, Confidence, Verdict};
use serde::Serialize;

/// What one check says about a prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Which check.
    pub detector: AlgorithmId,
    /// What it concludes.
    pub verdict: Verdict,
    /// Higher is more suspicious; `None` if it gives no score, or could not.
    pub score: Option<f64>,
    /// What the score was compared with: above it is suspicious.
    pub threshold: Option<f64>,
    /// The conformal p-value of the score among benign prompts of about this length.
    pub p_value: Option<f64>,
    /// The false-positive rate that the threshold is stated with; `None` if the calibration has no prompts of this length.
    pub stated_fpr: Option<f64>,
    /// Why, in a sentence or two.
    pub reason: String,
}

impl Outcome {
    /// An outcome that decides nothing.
    pub(super) fn undecided(detector: AlgorithmId, score: Option<f64>, reason: String) -> Self {
        Self {
            detector,
            verdict: Verdict::Inconclusive,
            score,
            threshold: None,
            p_value: None,
            stated_fpr: None,
            reason,
        }
    }

    /// Of the characters of a prompt. A finding is a fact about the text and needs no calibration; weak ones decide nothing.
    pub(super) fn of_unicode(detector: AlgorithmId, findings: &[UnicodeFinding]) -> Self {
        let strong = |finding: &&UnicodeFinding| finding.confidence > Confidence::Low;
        let (verdict, reason) = match findings.iter().find(strong).or(findings.first()) {
            None => (
                Verdict::NoBackdoorFound,
                "No unusual character; triggers of ordinary ones are not seen by this check."
                    .into(),
            ),
            Some(finding) => {
                let name = finding.name.as_deref().unwrap_or("without a name");
                let more = match findings.len() - 1 {
                    0 => String::new(),
                    more => format!(", and {more} more"),
                };
                let what = format!(
                    "Character {} is {} {name}{more}",
                    finding.position, finding.code_point
                );
                if finding.confidence > Confidence::Low {
                    (Verdict::Suspicious, format!("{what}."))
                } else {
                    let reason = format!("{what}: weak evidence, many languages write so.");
                    (Verdict::Inconclusive, reason)
                }
            }
        };
        Self {
            verdict,
            ..Self::undecided(detector, None, reason)
        }
    }
}

/// What all checks say about a prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Screening {
    /// The line of the input, from 1.
    pub line: usize,
    /// What the caller calls the prompt.
    pub id: Option<serde_json::Value>,
    /// The prompt; `None` if the line holds none.
    pub prompt: Option<String>,
    /// The gravest verdict of all checks.
    pub verdict: Verdict,
    /// Why.
    pub reason: String,
    /// A bound on the false-positive rate of all calibrated checks together: the sum of their stated rates.
    pub stated_fpr: Option<f64>,
    /// Tokens of the prompt, BOS and EOS included, if it can be run.
    pub tokens: Option<usize>,
    /// What each check says.
    pub detectors: Vec<Outcome>,
    /// Unusual characters.
    pub unicode: Vec<UnicodeFinding>,
    /// Calls of the UNet that the scores depend on.
    pub score_calls: usize,
    /// Calls of the UNet that were made: more than that where a report shows all. A pair with and without the prompt is one.
    pub unet_calls: usize,
    /// Time that it took.
    pub seconds: f64,
}

impl Screening {
    /// Sums up the checks' outcomes: verdict, reason and rate.
    pub(super) fn sum_up(mut self) -> Self {
        let Some(verdict) = self.detectors.iter().map(|outcome| outcome.verdict).max() else {
            return self;
        };
        let decisive = self.detectors.iter().filter(|one| one.verdict == verdict);
        let mut reasons: Vec<(String, &str)> = Vec::new();
        for outcome in decisive {
            // a prompt that cannot be run cannot for every detector
            match reasons.iter_mut().find(|(_, why)| *why == outcome.reason) {
                Some((who, _)) => *who = format!("{who}, {}", outcome.detector),
                None => reasons.push((outcome.detector.to_string(), &outcome.reason)),
            }
        }
        let reasons: Vec<String> = reasons
            .into_iter()
            .map(|(who, why)| format!("{who}: {why}"))
            .collect();
        let rates = self.detectors.iter().filter_map(|one| one.stated_fpr);
        self.stated_fpr = rates
            .reduce(|sum, rate| sum + rate)
            .map(|sum: f64| sum.min(1.0));
        (self.verdict, self.reason) = (verdict, reasons.join(" "));
        self
    }
}
