//! The workflow of a calibration of prompt detectors: benign prompts on one model, resumable.

use std::cell::Cell;

use depurate_defense::{
    Budget, CancelToken, Cx, DefenseError, Journal, NoJournal,
    calibration::prompts::{PROMPT_CALIBRATION_VERSION, PromptCalibration, PromptEntry},
    detect::input_level::{
        PromptDetector,
        evolution::{BenignBand, Evolution},
    },
};
use depurate_diffusion::noise::SeedTree;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    CALIBRATION_FILE_VERSION, CalibrationFile, Input, Preset, PromptCheck, PromptModel, sentence,
};
use crate::{
    Error,
    cache::Cache,
    journal::{FileJournal, JournalKey, sha256_of},
    scan::Watch,
};

/// Fewer benign prompts than this give no calibration.
pub const LEAST_PROMPTS: usize = 20;
/// Prompts of one stage of the journal: what is lost at most when a calibration is killed.
const STAGE: usize = 16;

/// How to calibrate prompt detectors.
#[derive(Debug, Clone)]
pub struct PromptCalibrateSettings {
    /// Which detectors; those without a score are passed over.
    pub checks: Vec<PromptCheck>,
    /// With which parameters.
    pub preset: Preset,
    /// Whether the band in which benign prompts run covers every call of the sampler, which is all that takes longer.
    pub all_calls: bool,
    /// What the benign prompts are, in words.
    pub population: String,
    /// Go on where an earlier run was stopped.
    pub resume: bool,
    /// The command that makes this calibration.
    pub command: String,
}

/// A prompt that is not part of a calibration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Its line.
    pub line: usize,
    /// Why.
    pub reason: String,
}

/// Calibrations, and what was left out.
#[derive(Debug)]
pub struct CalibratedPrompts {
    /// The scores.
    pub file: CalibrationFile,
    /// Prompts that no detector could score. When screened they are inconclusive, so no rate is about them.
    pub refused: Vec<Refusal>,
    /// Prompts that stood in the input before.
    pub repeats: usize,
    journal: Option<FileJournal>,
}

impl CalibratedPrompts {
    /// To be called when the file is written: the journal is needed no more.
    pub fn close(self) {
        if let Some(journal) = self.journal {
            journal.remove();
        }
    }
}

/// What came of one prompt.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Scored {
    tokens: usize,
    /// One a detector.
    scores: Vec<Result<f64, String>>,
    evolution: Option<Evolution>,
}

struct Prompt<'a> {
    line: usize,
    text: &'a str,
    sha256: String,
}

/// Scores benign prompts.
///
/// # Errors
/// When no detector gives a score, fewer than [`LEAST_PROMPTS`] prompts can be scored by one, or the caller asked to stop. What
/// was scored until then is kept in the cache.
pub fn calibrate_prompts(
    model: &PromptModel,
    inputs: &[Input],
    settings: &PromptCalibrateSettings,
    cache: &Cache,
    watch: Watch<'_>,
) -> Result<CalibratedPrompts, Error> {
    let built = settings
        .checks
        .iter()
        .map(|check| check.build(settings.preset));
    let built = built.collect::<Result<Vec<_>, _>>()?;
    let detectors: Vec<Box<dyn PromptDetector>> = built.into_iter().flatten().collect();
    if detectors.is_empty() {
        return Err(Error::Usage {
            problem: "none of these detectors gives a score, so there is nothing to calibrate"
                .into(),
            mend: "choose daa-i, daa-s or both with --detector",
        });
    }
    let mut refused = Vec::new();
    let mut prompts: Vec<Prompt<'_>> = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for input in inputs {
        let line = input.line;
        match &input.prompt {
            Ok(text) => {
                let sha256 = sha256_of([text.as_bytes()]);
                if seen.insert(sha256.clone()) {
                    prompts.push(Prompt { line, text, sha256 });
                }
            }
            Err(reason) => refused.push(Refusal {
                line,
                reason: reason.clone(),
            }),
        }
    }
    let repeats = inputs.len() - refused.len() - prompts.len();
    let journal = open_journal(model, &prompts, &detectors, settings, cache);
    let cx = Cx {
        rng: SeedTree::new(model.setting().seed),
        budget: Budget::UNLIMITED,
        cancel: watch.cancel,
        progress: watch.progress,
        journal: journal
            .as_ref()
            .map_or(&NoJournal as &dyn Journal, |journal| journal),
    };
    let scored = score_all(model, &prompts, &detectors, settings.all_calls, &cx);
    let scored = scored.map_err(|error| match error {
        DefenseError::Cancelled => Error::Interrupted,
        error => error.into(),
    })?;
    for (prompt, scored) in prompts.iter().zip(&scored) {
        let failures = scored.scores.iter().map(|score| score.as_ref().err());
        if let Some(Some(reason)) = failures.reduce(|first, other| other.and(first)) {
            refused.push(Refusal {
                line: prompt.line,
                reason: reason.clone(),
            });
        }
    }
    refused.sort_by_key(|refusal| refusal.line);
    let calibrations = detectors.iter().enumerate();
    let calibrations = calibrations
        .map(|(index, detector)| {
            let entries = prompts.iter().zip(&scored).filter_map(|(prompt, scored)| {
                Some(PromptEntry {
                    prompt_sha256: prompt.sha256.clone(),
                    tokens: scored.tokens,
                    score: *scored.scores.get(index)?.as_ref().ok()?,
                })
            });
            calibration(model, detector.as_ref(), entries.collect(), settings)
        })
        .collect::<Result<_, _>>()?;
    let curves: Vec<Evolution> = scored.into_iter().filter_map(|one| one.evolution).collect();
    let band = BenignBand::of(&curves).ok();
    Ok(CalibratedPrompts {
        file: CalibrationFile {
            version: CALIBRATION_FILE_VERSION,
            calibrations,
            band: band.filter(|band| !band.relative_change.is_empty()),
        },
        refused,
        repeats,
        journal,
    })
}

fn calibration(
    model: &PromptModel,
    detector: &dyn PromptDetector,
    entries: Vec<PromptEntry>,
    settings: &PromptCalibrateSettings,
) -> Result<PromptCalibration, Error> {
    if entries.len() < LEAST_PROMPTS {
        return Err(Error::TooFewPrompts {
            got: entries.len(),
            least: LEAST_PROMPTS,
        });
    }
    Ok(PromptCalibration {
        version: PROMPT_CALIBRATION_VERSION,
        detector: detector.info().id.to_string(),
        params: detector.scoring(),
        setting: model.setting().clone(),
        population: settings.population.clone(),
        command: settings.command.clone(),
        made_by: crate::VERSION.into(),
        entries,
    })
}

/// The journal of this model, run in this way, with these prompts and detectors.
fn open_journal(
    model: &PromptModel,
    prompts: &[Prompt<'_>],
    detectors: &[Box<dyn PromptDetector>],
    settings: &PromptCalibrateSettings,
    cache: &Cache,
) -> Option<FileJournal> {
    let detectors = detectors.iter();
    let detectors: Vec<_> = detectors
        .map(|detector| json!([detector.info().id, detector.scoring()]))
        .collect();
    let params = json!({
        "setting": model.setting(),
        "detectors": detectors,
        "all_calls": settings.all_calls,
        "prompts": sha256_of(prompts.iter().map(|prompt| prompt.sha256.as_bytes())),
    });
    let key = JournalKey {
        model_sha256: &model.setting().model_sha256,
        detector: "prompts",
        params: &params,
        seed: model.setting().seed,
    };
    match FileJournal::open(cache.dir()?, &key, settings.resume) {
        Ok(journal) => Some(journal),
        Err(error) => {
            tracing::warn!(%error, "no journal: a killed calibration starts anew");
            None
        }
    }
}

/// Scores every prompt, in stages.
fn score_all(
    model: &PromptModel,
    prompts: &[Prompt<'_>],
    detectors: &[Box<dyn PromptDetector>],
    all_calls: bool,
    cx: &Cx<'_>,
) -> Result<Vec<Scored>, DefenseError> {
    cx.progress.start("prompts", prompts.len() as u64);
    let mut all = Vec::with_capacity(prompts.len());
    for (index, some) in prompts.chunks(STAGE).enumerate() {
        let advanced = Cell::new(0);
        let scored: Vec<Scored> = cx.stage(&format!("prompts {index}"), || {
            let score = |prompt: &Prompt<'_>| {
                let scored = score(model, prompt.text, detectors, all_calls, cx.cancel)?;
                cx.step()?;
                advanced.set(advanced.get() + 1);
                Ok(scored)
            };
            some.iter().map(score).collect()
        })?;
        // a stage from the journal made no step
        cx.progress.advance(some.len() as u64 - advanced.get());
        all.extend(scored);
    }
    Ok(all)
}

fn score(
    model: &PromptModel,
    prompt: &str,
    detectors: &[Box<dyn PromptDetector>],
    all_calls: bool,
    cancel: &CancelToken,
) -> Result<Scored, DefenseError> {
    let refused = |error: &DefenseError, tokens| Scored {
        tokens,
        scores: vec![Err(sentence(error)); detectors.len()],
        evolution: None,
    };
    let run = model.run();
    let tokens = match run.tokens(prompt) {
        Ok(tokens) => tokens,
        Err(error) => return Ok(refused(&error, 0)),
    };
    let looked = run.with_maps(&tokens, cancel, |maps| {
        let mut calls = if all_calls { run.calls() } else { 0 };
        let mut scores = Vec::new();
        for detector in detectors {
            scores.push(match detector.score(maps) {
                Ok(score) => {
                    calls = calls.max(score.calls);
                    Ok(score.score)
                }
                Err(DefenseError::Cancelled) => return Err(DefenseError::Cancelled),
                Err(error) => Err(sentence(&error)),
            });
        }
        let evolution = match maps.first(calls) {
            Ok(made) => Some(Evolution::of(made)),
            Err(DefenseError::Cancelled) => return Err(DefenseError::Cancelled),
            Err(_) => None,
        };
        Ok((scores, evolution))
    });
    let (scores, evolution) = match looked {
        Ok(looked) => looked.value?,
        Err(error) => return Ok(refused(&error, tokens.used)),
    };
    let scorable = scores.iter().any(Result::is_ok);
    Ok(Scored {
        tokens: tokens.used,
        evolution: evolution.filter(|_| scorable),
        scores,
    })
}
