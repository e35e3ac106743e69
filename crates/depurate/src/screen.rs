//! Screening prompts: is this prompt, on this model, one that pulls a trigger?
//!
//! ```text
//! prompt -> characters                       unicode, no call of the UNet
//!        -> tokens, states, maps of calls    daa-s 1 call, daa-i 6, both together 6
//!        -> scores -> calibration            what benign prompts of about its length score on this model, run in this way
//!        -> verdict                          the gravest of the checks'
//! ```
//!
//! The sampler is advanced only as far as a detector asks, and detectors share its calls, which are the first calls of a
//! generation with the same seed. A prompt that cannot be screened is `inconclusive` and says why; it ends nothing.
//!
//! A false-positive rate belongs to a detector. That of several together is at most the sum of theirs, and that sum is what
//! [`Screening::stated_fpr`] states; the characters' check has no rate.

mod calibrate;
mod calibration_file;
mod canvas;
mod detectors;
mod input;
mod map_pictures;
mod model;
mod outcome;
mod pages;
mod token_text;

use std::{path::Path, time::Instant};

use depurate_defense::{
    CancelToken, DefenseError,
    calibration::prompts::PromptCalibration,
    detect::input_level::{
        CallMaps, PromptDetector,
        evolution::BenignBand,
        unicode::{self, UnicodeFinding},
    },
};
use depurate_diffusion::clip_tokenizer::Tokens;
use depurate_report::{AlgorithmId, Verdict};

pub use calibrate::{
    CalibratedPrompts, LEAST_PROMPTS, PromptCalibrateSettings, Refusal, calibrate_prompts,
};
pub use calibration_file::{CALIBRATION_FILE_VERSION, CalibrationFile};
pub use detectors::{Preset, PromptCheck};
pub use input::{Input, InputForm, Inputs};
pub use model::{PromptModel, RunChoice};
pub use outcome::{Outcome, Screening};
pub use pages::write_page;

use crate::{Error, prompt_verdict::judge_prompt};

/// How to screen.
#[derive(Debug, Clone)]
pub struct ScreenSettings<'a> {
    /// With what; `None` is with everything, or, if there is a calibration, with all that it covers and that needs none.
    pub checks: Option<Vec<PromptCheck>>,
    /// With which parameters.
    pub preset: Preset,
    /// What benign prompts score.
    pub calibration: Option<&'a Path>,
    /// The false-positive rate asked for, of each detector.
    pub target_fpr: f64,
}

/// How far the sampler is advanced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calls {
    /// As far as scores need.
    Needed,
    /// To its end, so that the whole run can be looked at. Scores stay the same.
    All,
}

/// What a score is held against.
enum Against {
    Calibration(Box<PromptCalibration>),
    /// The constant of the released code, in the orientation of our scores.
    Released(f64),
    Nothing,
}

struct Scorer {
    id: AlgorithmId,
    run: Box<dyn PromptDetector>,
    against: Against,
}

/// Screens prompts of one model.
pub struct Screener {
    model: PromptModel,
    scorers: Vec<Scorer>,
    checks_characters: bool,
    target_fpr: f64,
    band: Option<BenignBand>,
}

/// A screened prompt, with what there is to look at.
#[derive(Debug, Clone)]
pub struct Screened {
    /// The result.
    pub screening: Screening,
    /// The maps of the calls that were made.
    pub maps: Vec<CallMaps>,
    /// Its tokens, as the text encoder takes them.
    pub tokens: Option<Tokens>,
}

impl Screener {
    /// Makes ready to screen prompts of `model`.
    ///
    /// # Errors
    /// When the calibration cannot be read or does not apply: made on another model, run in another way, or with other
    /// parameters. Every difference is named.
    pub fn new(model: PromptModel, settings: &ScreenSettings<'_>) -> Result<Self, Error> {
        let file = settings
            .calibration
            .map(CalibrationFile::read)
            .transpose()?;
        let chosen = settings.checks.as_deref();
        let mut scorers = Vec::new();
        for check in PromptCheck::ALL {
            if chosen.is_some_and(|chosen| !chosen.contains(&check)) {
                continue;
            }
            let Some(run) = check.build(settings.preset)? else {
                continue;
            };
            let calibration = match &file {
                Some(file) => file.of(run.as_ref(), model.setting())?.cloned(),
                None => None,
            };
            let against = match calibration {
                Some(calibration) => Against::Calibration(Box::new(calibration)),
                None if file.is_some() && chosen.is_none() => continue,
                None => run
                    .released_threshold()
                    .map_or(Against::Nothing, |threshold| Against::Released(-threshold)),
            };
            scorers.push(Scorer {
                id: run.info().id,
                run,
                against,
            });
        }
        Ok(Self {
            model,
            scorers,
            checks_characters: chosen.is_none_or(|chosen| chosen.contains(&PromptCheck::Unicode)),
            target_fpr: settings.target_fpr,
            band: file.and_then(|file| file.band),
        })
    }

    /// The model.
    pub fn model(&self) -> &PromptModel {
        &self.model
    }

    /// Where benign prompts run, if the calibration says.
    pub fn band(&self) -> Option<&BenignBand> {
        self.band.as_ref()
    }

    /// Screens one prompt.
    ///
    /// # Errors
    /// When the caller asked to stop. Whatever else goes wrong with a prompt is its result.
    pub fn screen(
        &self,
        input: &Input,
        calls: Calls,
        cancel: &CancelToken,
    ) -> Result<Screened, Error> {
        let clock = Instant::now();
        let mut screening = Screening {
            line: input.line,
            id: input.id.clone(),
            prompt: input.prompt.as_ref().ok().cloned(),
            verdict: Verdict::Inconclusive,
            reason: input.prompt.as_ref().err().cloned().unwrap_or_default(),
            stated_fpr: None,
            tokens: None,
            detectors: Vec::new(),
            unicode: Vec::new(),
            score_calls: 0,
            unet_calls: 0,
            seconds: 0.0,
        };
        let mut maps = Vec::new();
        let mut tokens = None;
        if let Ok(prompt) = &input.prompt {
            if !self.scorers.is_empty() || calls == Calls::All {
                match self.model.run().tokens(prompt) {
                    Ok(found) => {
                        screening.tokens = Some(found.used);
                        maps = self.score(&found, calls, cancel, &mut screening)?;
                        tokens = Some(found);
                    }
                    Err(error) => screening.detectors = self.undecided(&error),
                }
            }
            if self.checks_characters {
                screening.unicode = unicode::check(prompt);
                let found: &[UnicodeFinding] = &screening.unicode;
                let outcome = Outcome::of_unicode(unicode::info().id, found);
                screening.detectors.push(outcome);
            }
        }
        let mut screening = screening.sum_up();
        screening.seconds = (clock.elapsed().as_secs_f64() * 1e6).round() / 1e6;
        Ok(Screened {
            screening,
            maps,
            tokens,
        })
    }

    /// Runs the detectors on a prompt of these tokens; returns the maps to be looked at.
    fn score(
        &self,
        tokens: &Tokens,
        calls: Calls,
        cancel: &CancelToken,
        screening: &mut Screening,
    ) -> Result<Vec<CallMaps>, Error> {
        let run = self.model.run();
        let looked = run.with_maps(tokens, cancel, |maps| {
            let scorers = self.scorers.iter();
            let scores: Vec<_> = scorers.map(|scorer| scorer.run.score(maps)).collect();
            let seen = match calls {
                Calls::All => maps.first(run.calls()).map(<[CallMaps]>::to_vec),
                Calls::Needed => Ok(Vec::new()),
            };
            (scores, seen)
        });
        let looked = match looked {
            Ok(looked) => looked,
            Err(error) => {
                screening.detectors = self.undecided(&error);
                return Ok(Vec::new());
            }
        };
        screening.unet_calls = looked.calls;
        let (scores, seen) = looked.value;
        for (scorer, score) in self.scorers.iter().zip(scores) {
            let outcome = match score {
                Ok(score) => {
                    screening.score_calls = screening.score_calls.max(score.calls);
                    scorer.judge(score.score, tokens.used, self.target_fpr)?
                }
                Err(DefenseError::Cancelled) => return Err(Error::Interrupted),
                Err(error) => Outcome::undecided(scorer.id.clone(), None, sentence(&error)),
            };
            screening.detectors.push(outcome);
        }
        match seen {
            Err(DefenseError::Cancelled) => Err(Error::Interrupted),
            seen => Ok(seen.unwrap_or_default()),
        }
    }

    /// No detector can score the prompt, for the same reason.
    fn undecided(&self, error: &DefenseError) -> Vec<Outcome> {
        let outcome =
            |scorer: &Scorer| Outcome::undecided(scorer.id.clone(), None, sentence(error));
        self.scorers.iter().map(outcome).collect()
    }
}

impl Scorer {
    fn judge(&self, score: f64, tokens: usize, target_fpr: f64) -> Result<Outcome, Error> {
        match &self.against {
            Against::Calibration(calibration) => {
                let judged = judge_prompt(score, tokens, calibration, target_fpr)?;
                let threshold = judged.threshold.as_ref();
                // the rate is about prompts of lengths that the calibration has
                let covered = threshold.filter(|threshold| threshold.covers);
                Ok(Outcome {
                    detector: self.id.clone(),
                    verdict: judged.verdict,
                    score: Some(score),
                    threshold: threshold.map(|threshold| threshold.value),
                    p_value: judged.p_value,
                    stated_fpr: covered.map(|threshold| threshold.stated_fpr),
                    reason: judged.why,
                })
            }
            Against::Released(threshold) => {
                let above = score > *threshold;
                let side = if above { "above" } else { "not above" };
                let reason = format!(
                    "The score {score:.6} is {side} the released constant {threshold:.6}, which states no error rate."
                );
                Ok(Outcome {
                    verdict: if above {
                        Verdict::Suspicious
                    } else {
                        Verdict::Inconclusive
                    },
                    threshold: Some(*threshold),
                    ..Outcome::undecided(self.id.clone(), Some(score), reason)
                })
            }
            Against::Nothing => Ok(Outcome::undecided(
                self.id.clone(),
                Some(score),
                "There is no calibration to hold the score against; make one with `depurate calibrate-prompts`."
                    .into(),
            )),
        }
    }
}

/// An error as a sentence.
fn sentence(error: &DefenseError) -> String {
    let text = error.to_string();
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_uppercase().to_string());
    format!("{}{}.", first.unwrap_or_default(), letters.as_str())
}
