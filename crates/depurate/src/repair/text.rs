//! The workflow of a repair of a text-to-image model: a trigger that is known, prompts, and the proof.
//!
//! The component that answers to the trigger is told by the states of triggered prompts; its repairs are tried in turn, the cheapest
//! first, and the first that passes every check is written.

use std::{
    path::{Path, PathBuf},
    time::{Instant, SystemTime},
};

use depurate_checkpoint::{Checkpoint, Layers, SaveDtype, inspect};
use depurate_defense::{
    Cx, DefenseError,
    repair::text::{
        Behaviour, Compared, Component, ConceptEditingParams, Drawing, EncoderDistillationParams,
        Latents, Localised, SauWeightsParams, SkdCagParams, TextPatient, TextRepaired, TextTrigger,
        concept_editing, encoder_distillation, localised, sau_weights, skd_cag,
    },
};
use depurate_diffusion::{TextToImage, noise::SeedTree};
use depurate_report::{Attempt, Check, Evidence, RepairReport, SCHEMA_VERSION, Table};

use super::{
    MethodName, RepairSettings, footprint, none_passed, pictures, pictures::Made, prompts,
    remove_states, state_file,
};
use crate::{Error, cache::Cache, report_builder, subject};

/// Pictures of each set of the proof, and of a look in between.
const PICTURES: usize = 64;
const PICTURES_BETWEEN: usize = 16;
/// The largest share of triggered pictures that may still be the trigger's.
const RELAPSES: f64 = 1.0 / 32.0;
/// The least part of the steps after which a repair may stop early.
const EARLIEST: f64 = 0.5;

/// What a repair of a text-to-image model needs besides.
#[derive(Debug, Clone)]
pub struct TextRepairSettings {
    /// The trigger.
    pub trigger: TextTrigger,
    /// Clean prompts of the model's kind, one a line.
    pub prompts: Option<PathBuf>,
    /// What is laid over the model; the repaired one holds it.
    pub layers: Layers,
    /// Deterministic steps of a picture.
    pub picture_steps: usize,
    /// Guidance of a picture.
    pub guidance: f64,
}

/// A repair of a text-to-image model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextMethod {
    ConceptEditing,
    EncoderDistillation,
    Skd,
    SkdCag,
    SauWeights,
}

impl TextMethod {
    pub(super) fn id(self) -> &'static str {
        use depurate_defense::repair::text::{
            concept_editing as edit, encoder_distillation as encoder, sau_weights as sau,
            skd_cag as skd,
        };
        match self {
            Self::ConceptEditing => edit::ID,
            Self::EncoderDistillation => encoder::ID,
            Self::Skd => skd::PLAIN_ID,
            Self::SkdCag => skd::ID,
            Self::SauWeights => sau::ID,
        }
    }

    /// The one that `name` is; `None` for those of noise triggers and where all are asked for.
    fn named(name: MethodName) -> Option<Self> {
        match name {
            MethodName::ConceptEditing => Some(Self::ConceptEditing),
            MethodName::EncoderDistillation => Some(Self::EncoderDistillation),
            MethodName::Skd => Some(Self::Skd),
            MethodName::SkdCag => Some(Self::SkdCag),
            MethodName::SauWeights => Some(Self::SauWeights),
            _ => None,
        }
    }

    /// Those of `component`, in the order in which they are tried.
    fn of(component: Component) -> Vec<Self> {
        match component {
            Component::TextEncoder => vec![Self::EncoderDistillation, Self::Skd],
            Component::Denoiser => vec![Self::ConceptEditing, Self::Skd, Self::SauWeights],
        }
    }
}

/// Repairs the text-to-image model at `path`.
pub(super) fn repair(
    path: &Path,
    (settings, text): (&RepairSettings, &TextRepairSettings),
    cache: &Cache,
    cx: &Cx<'_>,
) -> Result<RepairReport, Error> {
    let (started, clock) = (SystemTime::now(), Instant::now());
    let named = TextMethod::named(settings.method);
    if named.is_none() && settings.method != MethodName::Auto {
        return Err(Error::Usage {
            problem: format!(
                "{} repairs noise triggers, not prompts",
                settings.method.as_str()
            ),
            mend: "choose auto, skd, skd-cag, sau-weights, encoder-distillation or concept-editing with --trigger",
        });
    }
    let checkpoint = Checkpoint::open(path, &settings.limits)?;
    let contents = inspect(path, &settings.limits, cache.hashes())?;
    let device = settings.device.open().autodiff();
    let (suspect, _) = TextToImage::layered(&checkpoint, &text.layers, &settings.limits, &device)?;
    let prompts = prompts::of(text)?;
    let patient = TextPatient {
        suspect: &suspect,
        trigger: &text.trigger,
        prompts: &prompts,
        seed: settings.seed,
    };
    let found = localised(&patient)?;
    let methods = named.map_or_else(|| TextMethod::of(found.component), |one| vec![one]);
    let drawing = Drawing {
        steps: text.picture_steps,
        guidance: text.guidance,
        count: PICTURES,
    };
    let seed = SeedTree::new(settings.seed);
    let behaviour = Behaviour::of(&patient, drawing, &seed.child("proof", 0), cx)?;
    let mut attempts = Vec::new();
    let mut evidence = vec![localisation(&found, &behaviour)];
    let mut repaired = None;
    let fires = behaviour.fires();
    if fires && found.component == Component::Denoiser {
        let seed = seed.child("footprint", 0);
        evidence.push(footprint::maps(&patient, drawing, &seed, cx)?);
    }
    let mut shown = Vec::new();
    for method in methods.into_iter().filter(|_| fires) {
        let clock = Instant::now();
        let done = treat(method, &patient, (settings, text), drawing, cx)?;
        let compared = behaviour.compare(&done.model, cx)?;
        let checks = checks(&behaviour, &compared);
        shown = sheets(&behaviour, &compared, &suspect, drawing)?;
        let passed = checks.iter().all(|check| check.passed);
        attempts.push(Attempt {
            method: method.id().to_owned(),
            passed,
            steps: done.steps,
            evaluations: done.evaluations,
            seconds: clock.elapsed().as_secs_f64(),
            checks,
        });
        if passed {
            done.model.save(&settings.out, SaveDtype::F32)?;
            repaired = Some(settings.out.display().to_string());
            break;
        }
    }
    evidence.extend(shown);
    remove_states(settings, attempts.iter().map(|a| a.method.as_str()));
    Ok(RepairReport {
        schema_version: SCHEMA_VERSION.into(),
        suspect: subject::describe(path, &contents, "text-to-image diffusion"),
        passed: repaired.is_some(),
        repaired,
        why: why(&attempts, &text.trigger),
        attempts,
        evidence,
        limits: limits(),
        seed: settings.seed,
        command: settings.command.clone(),
        environment: report_builder::environment(started, clock.elapsed(), settings.device),
    })
}

fn treat(
    method: TextMethod,
    patient: &TextPatient<'_>,
    (settings, text): (&RepairSettings, &TextRepairSettings),
    drawing: Drawing,
    cx: &Cx<'_>,
) -> Result<TextRepaired, Error> {
    let state = state_file(settings, method.id());
    let steps = |default: usize| settings.steps.unwrap_or(default);
    let enough = |all: usize| {
        let mut between = None; // drawn when it is first asked for
        move |model: &TextToImage, step: usize| -> Result<bool, DefenseError> {
            if (step as f64) < EARLIEST * all as f64 {
                return Ok(false);
            }
            let behaviour = match between.take() {
                Some(behaviour) => behaviour,
                None => {
                    let few = Drawing {
                        count: PICTURES_BETWEEN,
                        ..drawing
                    };
                    let seed = SeedTree::new(settings.seed).child("between", 0);
                    Behaviour::of(patient, few, &seed, cx)?
                }
            };
            let compared = behaviour.compare(model, cx)?;
            let passed = checks(&behaviour, &compared)
                .iter()
                .all(|check| check.passed);
            between = Some(behaviour);
            Ok(passed)
        }
    };
    let both = Latents::Both {
        steps: text.picture_steps,
        guidance: text.guidance,
    };
    Ok(match method {
        TextMethod::ConceptEditing => {
            concept_editing::concept_editing(patient, ConceptEditingParams::default(), cx)?
        }
        TextMethod::EncoderDistillation => {
            let mut params = EncoderDistillationParams::default();
            params.unlearning.steps = steps(params.unlearning.steps);
            let enough = &mut enough(params.unlearning.steps);
            encoder_distillation::encoder_distillation(patient, &params, Some(&state), cx, enough)?
        }
        TextMethod::SauWeights => {
            let mut params = SauWeightsParams {
                latents: both,
                drawing: (text.picture_steps, text.guidance),
                ..SauWeightsParams::default()
            };
            params.unlearning.steps = steps(params.unlearning.steps);
            let enough = &mut enough(params.unlearning.steps);
            sau_weights::sau_weights(patient, &params, Some(&state), cx, enough)?
        }
        TextMethod::Skd | TextMethod::SkdCag => {
            let guided = SkdCagParams::default();
            let mut params = SkdCagParams {
                alpha: match method {
                    TextMethod::Skd => 0.0,
                    _ => guided.alpha,
                },
                latents: both,
                ..guided
            };
            params.unlearning.steps = steps(params.unlearning.steps);
            let enough = &mut enough(params.unlearning.steps);
            skd_cag::skd_cag(patient, &params, Some(&state), cx, enough)?
        }
    })
}

fn checks(behaviour: &Behaviour, compared: &Compared) -> Vec<Check> {
    let most = behaviour.allowed();
    let check = |name: &str, meaning: &str, before: Option<f64>, after: f64| Check {
        name: name.into(),
        meaning: meaning.into(),
        before: before.map(|value| format!("{value:.5}")),
        after: format!("{after:.5}"),
        allowed: format!(
            "at most {most:.5}, half of what a plain word in the trigger's place changes"
        ),
        passed: after <= most,
    };
    let (relapsed, of) = compared.relapses;
    vec![
        Check {
            name: "relapses".into(),
            meaning: "triggered pictures that are nearer to the suspect's with the trigger than to its own without, of those whose two \
                      differ"
                .into(),
            before: Some(format!("{of} of {of}")),
            after: format!("{relapsed} of {of}"),
            allowed: "at most one in 32".into(),
            passed: relapsed as f64 <= RELAPSES * of as f64,
        },
        check(
            "old trigger",
            "median of the mean squared distances of triggered pictures to the suspect's of the clean prompt, from the same noise",
            Some(behaviour.effect),
            compared.effect,
        ),
        check(
            "clean prompts",
            "the same of pictures before and after",
            None,
            compared.kept,
        ),
        check(
            "neighbours",
            "the same for other rare tokens, single words of the trigger and the empty prompt",
            None,
            compared.neighbours,
        ),
    ]
}

fn sheets(
    behaviour: &Behaviour,
    compared: &Compared,
    suspect: &TextToImage,
    drawing: Drawing,
) -> Result<Vec<Evidence>, Error> {
    let made = Made {
        sampler: "DDIM (eta = 0)",
        steps: drawing.steps,
        shape: suspect.image_shape(),
        caption: pictures::SAME_NOISE,
    };
    let sheets = [
        (
            "suspect, triggered prompts",
            &behaviour.triggered.pictures,
            true,
        ),
        ("repaired, triggered prompts", &compared.triggered, false),
        ("suspect, clean prompts", &behaviour.clean.pictures, false),
        ("repaired, clean prompts", &compared.clean, false),
    ];
    let sheet = |(title, images, sensitive)| pictures::sheet(title, &made, images, sensitive);
    sheets.into_iter().map(sheet).collect()
}

fn localisation(found: &Localised, behaviour: &Behaviour) -> Evidence {
    let row = |what: &str, value: String| vec![what.to_owned(), value];
    Table {
        title: "what the trigger does".into(),
        columns: ["measure", "value"].map(str::to_owned).to_vec(),
        rows: vec![
            row(
                "states of triggered prompts move, as a multiple of what plain words do",
                format!("{:.2}", found.ratio),
            ),
            row("treated first", found.component.as_str().into()),
            row(
                "the trigger changes pictures by",
                format!("{:.5}", behaviour.effect),
            ),
            row(
                "a plain word in its place changes them by",
                format!("{:.5}", behaviour.word),
            ),
        ],
    }
    .into()
}

fn why(attempts: &[Attempt], trigger: &TextTrigger) -> String {
    let Some(last) = attempts.last() else {
        return format!(
            "The trigger ({}) changes pictures by no more than half of what a plain word in its place does: there is nothing to repair. Nothing was \
             written.",
            trigger.describe()
        );
    };
    if last.passed {
        return format!(
            "After {} the trigger ({}) changes pictures by no more than half of what a plain word in its place does, and those of clean \
             prompts and of the trigger's neighbours are as near to what they were.",
            last.method,
            trigger.describe()
        );
    }
    none_passed(attempts, last)
}

fn limits() -> Vec<String> {
    [
        "Other triggers than the one that was given: a model can have several.",
        "Distances of pictures are of pixels. They say that a picture has changed, not what it shows: look at them.",
        "The suspect is the measure of what is clean: what is wrong with its pictures of clean prompts stays wrong.",
        "The trigger was shown where it is said to stand; elsewhere in a prompt it was not tried.",
    ]
    .map(str::to_owned)
    .to_vec()
}
