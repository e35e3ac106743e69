//! The workflow of a repair of a text-to-image model: a trigger that is known, prompts, and the proof.
//!
//! The component that answers to the trigger is told by the states of triggered prompts; its repairs are tried in turn, the cheapest
//! first, and the first that passes every check is written.

use std::{
    cell::OnceCell,
    path::{Path, PathBuf},
    time::{Instant, SystemTime},
};

use depurate_checkpoint::{Checkpoint, Layers, SaveDtype, inspect};
use depurate_defense::{
    Cx,
    repair::text::{Behaviour, Compared, Component, Drawing, TextPatient, TextTrigger},
};
use depurate_diffusion::{TextToImage, noise::SeedTree};
use depurate_report::{Attempt, Check, Evidence, RepairReport, SCHEMA_VERSION};

use super::{
    MethodName, RepairSettings, footprint,
    led_to::LedTo,
    localisation::Located,
    none_passed, pictures,
    pictures::Made,
    prompts, remove_states,
    text_methods::{Bench, TextMethod, treat, tries},
};
use crate::{Error, cache::Cache, report_builder, subject};

/// Pictures of each set of the proof, and of a look in between.
const PICTURES: usize = 64;
pub(super) const PICTURES_BETWEEN: usize = 16;
/// The largest share of triggered pictures that may still be the trigger's. What a model draws that was never attacked counts as well:
/// 1 of 213 of the zoo's over four sets, to which the trigger is a rare token, and 2 of 173 for a style.
const RELAPSES: f64 = 1.0 / 32.0;

/// What a repair of a text-to-image model needs besides.
#[derive(Debug, Clone)]
pub struct TextRepairSettings {
    /// The trigger.
    pub trigger: TextTrigger,
    /// Clean prompts of the model's kind, one a line.
    pub prompts: Option<PathBuf>,
    /// Prompts that must draw as before above all, one a line.
    pub keep_prompts: Option<PathBuf>,
    /// What is laid over the model; the repaired one holds it.
    pub layers: Layers,
    /// What the model was made from, to see what differs.
    pub base: Option<PathBuf>,
    /// Deterministic steps of a picture.
    pub picture_steps: usize,
    /// Guidance of a picture.
    pub guidance: f64,
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
            mend: "choose auto, or a method for prompts, with --trigger",
        });
    }
    if named == Some(TextMethod::LayerRemoval) && text.layers.is_empty() {
        return Err(Error::Usage {
            problem: "nothing is laid over the model that could be left out".into(),
            mend: "give the files with --lora, --delta or --unet, or choose another --method",
        });
    }
    let checkpoint = Checkpoint::open(path, &settings.limits)?;
    let contents = inspect(path, &settings.limits, cache.hashes())?;
    let device = settings.device.open().autodiff();
    let layered = |layers: &Layers| -> Result<TextToImage, Error> {
        Ok(TextToImage::layered(&checkpoint, layers, &settings.limits, &device)?.0)
    };
    let suspect = layered(&text.layers)?;
    let (prompts, legitimate) = (prompts::of(text)?, prompts::legitimate(text)?);
    let patient = TextPatient {
        suspect: &suspect,
        trigger: &text.trigger,
        prompts: &prompts,
        legitimate: &legitimate,
        seed: settings.seed,
    };
    let located = Located::of(path, (settings, text), &patient, cx)?;
    let led_to = LedTo::of(&patient, (text.picture_steps, text.guidance), cx)?;
    let patient = TextPatient {
        legitimate: &led_to.legitimate,
        ..patient
    };
    let drawing = Drawing {
        steps: text.picture_steps,
        guidance: text.guidance,
        count: PICTURES,
    };
    let bench = Bench {
        patient,
        settings,
        text,
        located: &located,
        drawing,
        layered: &layered,
        material: OnceCell::new(),
    };
    let seed = SeedTree::new(settings.seed);
    let behaviour = Behaviour::of(&patient, drawing, &seed.child("proof", 0), cx)?;
    let mut attempts = Vec::new();
    let mut evidence = vec![located.evidence(&behaviour)];
    evidence.extend(led_to.evidence());
    let mut repaired = None;
    let fires = behaviour.fires();
    if fires && located.first() == Component::Denoiser {
        let seed = seed.child("footprint", 0);
        evidence.push(footprint::maps(&patient, drawing, &seed, cx)?);
    }
    let mut shown = Vec::new();
    let mut kept_out = false;
    let tries = tries(named, &located, &text.layers);
    for wanted in tries.into_iter().filter(|_| fires) {
        let clock = Instant::now();
        let done = treat(&wanted, &bench, cx)?;
        let compared = behaviour.compare(&done.model, cx)?;
        let checks = checks(&behaviour, &compared);
        shown = sheets(&behaviour, &compared, &suspect, drawing)?;
        let passed = checks.iter().all(|check| check.passed);
        attempts.push(Attempt {
            method: wanted.name,
            passed,
            steps: done.steps,
            evaluations: done.evaluations,
            left_out: 0,
            seconds: clock.elapsed().as_secs_f64(),
            checks,
            removed_again: Vec::new(),
        });
        if passed {
            done.model.save(&settings.out, SaveDtype::F32)?;
            repaired = Some(settings.out.display().to_string());
            kept_out = located.first() == Component::Denoiser
                && wanted.method == TextMethod::EncoderDistillation;
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
        limits: limits(kept_out),
        seed: settings.seed,
        command: settings.command.clone(),
        environment: report_builder::environment(started, clock.elapsed(), settings.device),
    })
}

pub(super) fn checks(behaviour: &Behaviour, compared: &Compared) -> Vec<Check> {
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
            meaning: "triggered pictures that the suspect takes for its own with the trigger rather than for those without, of the prompts \
                      whose two pictures are apart and that it tells apart"
                .into(),
            before: Some(format!("{of} of {of}")),
            after: format!("{relapsed} of {of}"),
            allowed: "at most one in 32".into(),
            passed: of > 0 && relapsed as f64 <= RELAPSES * of as f64,
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
            "the same for other rare tokens, single words of the trigger, plain words in its place, the empty prompt and prompts that were said to matter",
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
        ("suspect, neighbours", &behaviour.neighbours.pictures, false),
        ("repaired, neighbours", &compared.neighbouring, false),
    ];
    let sheet = |(title, images, sensitive)| pictures::sheet(title, &made, images, sensitive);
    sheets.into_iter().map(sheet).collect()
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

/// What the proof does not say, where the denoiser's backdoor is only `kept_out` by the encoder or not.
fn limits(kept_out: bool) -> Vec<String> {
    let mut limits = [
        "Other triggers than the one that was given: a model can have several.",
        "Distances of pictures are of pixels. They say that a picture has changed, not what it shows: look at them.",
        "The suspect is the measure of what is clean: what is wrong with its pictures of clean prompts stays wrong.",
        "The trigger was shown where it is said to stand; elsewhere in a prompt it was not tried.",
        "Relapses are counted on 64 pictures at most: a trigger that still works on a few prompts in a hundred can pass, one that changes all \
         of a picture, a style, on more.",
    ]
    .map(str::to_owned)
    .to_vec();
    if kept_out {
        limits.push(
            "The trigger was found in the denoiser, which is as it was: the text encoder keeps it from being asked. With another encoder \
             the trigger works again."
                .to_owned(),
        );
    }
    limits
}
