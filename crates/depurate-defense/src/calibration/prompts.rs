//! Calibrations of prompt detectors: what benign prompts score on *one* model under *one* way to run it.
//!
//! Scores of prompts depend on the model, the sampler, the seed and the number of tokens; so a calibration records all of
//! these, refuses to be used where one differs, and fits a threshold for prompts of about the same length. With `n` benign
//! prompts exchangeable with the prompt in question, the `ceil((n+1)(1-fpr))`-th smallest score is exceeded with
//! probability at most `fpr`; strata are made from lengths alone, never from scores, so this holds within each.

use std::{collections::BTreeSet, path::Path};

use depurate_stats::{ConformalThreshold, clopper_pearson, conformal_p_value, conformal_threshold};
use serde::{Deserialize, Serialize};

use crate::{DefenseError, detect::input_level::SiteSelection};

/// Version of the file format. A file of another version is refused.
pub const PROMPT_CALIBRATION_VERSION: u32 = 1;
/// Benign prompts from which on a verdict is stated.
pub const ENOUGH_PROMPTS: usize = 200;
/// Confidence of the intervals of false-positive rates.
const CONFIDENCE: f64 = 0.95;

/// All that a prompt's score depends on besides the prompt, the detector and its parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSetting {
    /// sha256 over the weights of UNet and text encoder.
    pub model_sha256: String,
    /// sha256 over the tokenizer's files.
    pub tokenizer_sha256: String,
    /// The sampler with its options, as text.
    pub scheduler: String,
    /// The training timestep of each call of the UNet, in order, so that there are as many as calls.
    pub timesteps: Vec<usize>,
    /// Scale of classifier-free guidance; 1 is without.
    pub guidance: f64,
    /// Seed of the initial noise, the same for every prompt.
    pub seed: u64,
    /// Rows and columns of the UNet's input.
    pub size: (usize, usize),
    /// Which layers' maps are averaged.
    pub sites: SiteSelection,
    /// Type of the numbers that the UNet computes with: `f32`.
    pub number_type: String,
}

/// One benign prompt's entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptEntry {
    /// sha256 of the prompt's text: a prompt counts once.
    pub prompt_sha256: String,
    /// Its tokens, BOS and EOS included.
    pub tokens: usize,
    /// Its score.
    pub score: f64,
}

/// The scores of benign prompts on one model under one detector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptCalibration {
    /// Format version.
    pub version: u32,
    /// Id of the detector.
    pub detector: String,
    /// The detector's parameters that change the score, as JSON.
    pub params: serde_json::Value,
    /// How the model was run.
    pub setting: RunSetting,
    /// What the benign prompts are, in words.
    pub population: String,
    /// The command that made this file.
    pub command: String,
    /// Version of the program that made this file.
    pub made_by: String,
    /// One entry a benign prompt.
    pub entries: Vec<PromptEntry>,
}

/// Benign prompts of neighbouring lengths.
#[derive(Debug, Clone, PartialEq)]
pub struct Stratum {
    /// Fewest and most tokens of its prompts.
    pub tokens: (usize, usize),
    /// Their scores, in no particular order.
    pub scores: Vec<f64>,
}

/// Where a score stands among benign ones. The calibration is a sample: a score is *near* the threshold where the exact 95 %
/// interval of the share of benign prompts that score at least as high includes the rate asked for, so that more benign
/// prompts could have put the threshold on its other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Not above the threshold, and not near it.
    Below,
    /// Not above the threshold, but near it.
    NearBelow,
    /// Above the threshold, but near it.
    NearAbove,
    /// Above the threshold, and not near it.
    Above,
}

/// The threshold for prompts of one length.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptThreshold {
    /// The fitted threshold.
    pub fitted: ConformalThreshold,
    /// The stratum that it was fitted on.
    pub stratum: Stratum,
    /// Whether the prompt's length is within the lengths of the calibration's prompts.
    pub covers: bool,
}

impl PromptThreshold {
    /// Where `score` stands.
    ///
    /// # Errors
    /// When the score is not finite.
    pub fn standing(&self, score: f64) -> Result<Standing, DefenseError> {
        let above = self.fitted.flags(score);
        self.p_value(score)?; // refuses a score that cannot be compared
        let as_high = self
            .stratum
            .scores
            .iter()
            .filter(|&&benign| benign >= score);
        let (as_high, n) = (as_high.count() as u64, self.stratum.scores.len() as u64);
        let share = clopper_pearson(as_high, n, CONFIDENCE)
            .map_err(|error| out_of_range("score", &error))?;
        let near = (share.lower..=share.upper).contains(&self.fitted.target_fpr);
        Ok(match (above, near) {
            (false, false) => Standing::Below,
            (false, true) => Standing::NearBelow,
            (true, true) => Standing::NearAbove,
            (true, false) => Standing::Above,
        })
    }

    /// The conformal p-value of `score` in its stratum.
    ///
    /// # Errors
    /// When the score is not finite.
    pub fn p_value(&self, score: f64) -> Result<f64, DefenseError> {
        conformal_p_value(score, &self.stratum.scores)
            .map_err(|error| out_of_range("score", &error))
    }
}

impl PromptCalibration {
    /// Reads a calibration; `path` is named in errors.
    ///
    /// # Errors
    /// When the file is malformed, of another version, empty, counts a prompt twice, or holds a score that is not finite.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self, DefenseError> {
        let calibration: Self =
            serde_json::from_slice(bytes).map_err(|error| refuse(path, error.to_string()))?;
        calibration.validated(path)
    }

    /// Checks what was read as a part of another file; `path` is named in errors.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn validated(self, path: &Path) -> Result<Self, DefenseError> {
        let refuse = |reason: String| refuse(path, reason);
        let calibration = self;
        if calibration.version != PROMPT_CALIBRATION_VERSION {
            let found = calibration.version;
            return Err(refuse(format!(
                "version {found}, expected {PROMPT_CALIBRATION_VERSION}"
            )));
        }
        let entries = &calibration.entries;
        if entries.is_empty() {
            return Err(refuse("holds no benign prompt".into()));
        }
        if entries.iter().any(|entry| !entry.score.is_finite()) {
            return Err(refuse("holds a score that is not finite".into()));
        }
        let prompts = entries.iter().map(|entry| entry.prompt_sha256.as_str());
        if prompts.collect::<BTreeSet<_>>().len() < entries.len() {
            return Err(refuse("counts a prompt twice".into()));
        }
        Ok(calibration)
    }

    /// Checks that scores of this detector with these `params`, on a model run as `setting` says, can be compared.
    ///
    /// # Errors
    /// When anything differs; every difference is named.
    pub fn check(
        &self,
        detector: &str,
        params: &serde_json::Value,
        setting: &RunSetting,
    ) -> Result<(), DefenseError> {
        let mut differences = Vec::new();
        let mut compare = |name: &str, here: String, there: String| {
            if here != there {
                differences.push(format!("{name} is {here}, calibrated with {there}"));
            }
        };
        compare("the detector", detector.to_owned(), self.detector.clone());
        compare(
            "the detector's parameters",
            params.to_string(),
            self.params.to_string(),
        );
        for (name, of) in SETTING {
            compare(name, of(setting), of(&self.setting));
        }
        if differences.is_empty() {
            Ok(())
        } else {
            Err(DefenseError::CalibrationMismatch { differences })
        }
    }

    /// Whether there are enough benign prompts for a verdict: [`ENOUGH_PROMPTS`].
    pub fn is_enough(&self) -> bool {
        self.entries.len() >= ENOUGH_PROMPTS
    }

    /// The benign prompts by length, short ones first: neighbouring lengths are put together until a stratum is large enough
    /// ([`least_stratum`]) for `target_fpr`; a rest that is too small joins the stratum before it.
    ///
    /// # Errors
    /// When `target_fpr` is not a probability.
    pub fn strata(&self, target_fpr: f64) -> Result<Vec<Stratum>, DefenseError> {
        let least = least_stratum(target_fpr)?;
        let mut entries: Vec<&PromptEntry> = self.entries.iter().collect();
        entries.sort_by_key(|entry| entry.tokens);
        let mut strata: Vec<Stratum> = Vec::new();
        for same in entries.chunk_by(|a, b| a.tokens == b.tokens) {
            let scores = same.iter().map(|entry| entry.score);
            let tokens = same.first().map_or(0, |entry| entry.tokens);
            match strata.last_mut().filter(|last| last.scores.len() < least) {
                Some(open) => {
                    open.tokens.1 = tokens;
                    open.scores.extend(scores);
                }
                None => strata.push(Stratum {
                    tokens: (tokens, tokens),
                    scores: scores.collect(),
                }),
            }
        }
        if strata.len() > 1
            && let Some(rest) = strata.pop_if(|last| last.scores.len() < least)
            && let Some(last) = strata.last_mut()
        {
            last.tokens.1 = rest.tokens.1;
            last.scores.extend(rest.scores);
        }
        Ok(strata)
    }

    /// The threshold for prompts of `tokens` tokens at `target_fpr`. A length between two strata belongs to the nearer one, the
    /// shorter if both are as near; a length outside of all belongs to the nearest and is not covered.
    ///
    /// # Errors
    /// When `target_fpr` is not a probability, or there is no benign prompt.
    pub fn threshold(
        &self,
        tokens: usize,
        target_fpr: f64,
    ) -> Result<PromptThreshold, DefenseError> {
        let strata = self.strata(target_fpr)?;
        let covers = strata.first().is_some_and(|first| tokens >= first.tokens.0)
            && strata.last().is_some_and(|last| tokens <= last.tokens.1);
        let distance = |stratum: &Stratum| {
            let (fewest, most) = stratum.tokens;
            fewest
                .saturating_sub(tokens)
                .max(tokens.saturating_sub(most))
        };
        let stratum = strata.into_iter().min_by_key(distance);
        let stratum = stratum.unwrap_or(Stratum {
            tokens: (0, 0),
            scores: Vec::new(),
        });
        let fitted = conformal_threshold(&stratum.scores, target_fpr)
            .map_err(|error| out_of_range("calibration", &error))?;
        Ok(PromptThreshold {
            fitted,
            stratum,
            covers,
        })
    }
}

/// The smallest stratum for a rate: one in which a score above all benign ones is [`Standing::Above`] and not merely near. With
/// `n` benign prompts below it, the interval of their share above it ends at `1 - 0.025^(1/n)`.
///
/// # Errors
/// When `target_fpr` is not between 0 and 1.
pub fn least_stratum(target_fpr: f64) -> Result<usize, DefenseError> {
    if !(target_fpr > 0.0 && target_fpr < 1.0) {
        return Err(DefenseError::Params {
            field: "target_fpr",
            value: target_fpr.to_string(),
            allowed: "above 0 and below 1",
        });
    }
    let tail = (1.0 - CONFIDENCE) / 2.0;
    Ok((tail.ln() / (-target_fpr).ln_1p()).ceil() as usize)
}

fn refuse(path: &Path, reason: String) -> DefenseError {
    DefenseError::Calibration {
        path: path.to_owned(),
        reason: format!("{reason}; calibrate again"),
    }
}

/// A part of a setting: its name, and its value as text.
type Part = (&'static str, fn(&RunSetting) -> String);

/// Each part of a setting.
const SETTING: [Part; 9] = [
    ("the model", |setting| setting.model_sha256.clone()),
    ("the tokenizer", |setting| setting.tokenizer_sha256.clone()),
    ("the scheduler", |setting| setting.scheduler.clone()),
    ("the list of timesteps", |setting| {
        format!("{:?}", setting.timesteps)
    }),
    ("the guidance scale", |setting| setting.guidance.to_string()),
    ("the seed", |setting| setting.seed.to_string()),
    ("the size", |setting| {
        format!("{} x {}", setting.size.0, setting.size.1)
    }),
    ("the selection of layers", |setting| {
        format!("{:?}", setting.sites)
    }),
    ("the type of numbers", |setting| setting.number_type.clone()),
];

fn out_of_range(field: &'static str, error: &depurate_stats::StatsError) -> DefenseError {
    DefenseError::Params {
        field,
        value: error.to_string(),
        allowed: "finite values, at least one benign score, a rate above 0 and below 1",
    }
}

#[cfg(test)]
mod tests;
