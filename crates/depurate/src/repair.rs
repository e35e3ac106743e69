//! The workflow of a repair: the suspect and what a scan found in it go in, a diffusers directory and its proof come out.
//!
//! The trigger is the scan's reconstruction; nothing here is told the truth. A method is tried, the result is held against the
//! checks of [`proof`]; what a new scan finds in it is removed in a second round, and the next method is tried if a check fails. A model is written only when all checks pass.

mod confirm;
mod control;
mod footprint;
mod known;
mod led_to;
mod localisation;
mod owner;
mod pictures;
mod prompts;
mod proof;
mod screened;
mod text;
mod text_methods;

pub use screened::trigger as screened_trigger;
pub use text::TextRepairSettings;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use clap::ValueEnum;
use depurate_checkpoint::{Limits, SaveDtype, inspect};
use depurate_defense::{
    Budget, Cx, NoJournal,
    repair::{FineTuning, Method, Patient, Repaired, generated, repair as treat, repair_again},
};
use depurate_diffusion::{Denoiser, Pipeline, noise::SeedTree};
use depurate_report::{Attempt, Evidence, RepairReport, SCHEMA_VERSION};
use depurate_training::{Dataset, StateFile};

use crate::{Error, cache::Cache, device::Device, report_builder, scan::Watch, subject};
use owner::OwnerImages;
use proof::{Baseline, Proof};

/// The repair that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum MethodName {
    /// Each in turn, the cheapest first, until one passes.
    #[default]
    Auto,
    /// Elijah's: the answer to the trigger is undone at the last timestep.
    ElijahRemoval,
    /// The trigger is taught to be noise like any other, in the noisier half of the timesteps.
    ShiftedDenoising,
    /// Channels that matter most for the trigger are taken out; saved with zeros in their place, as diffusers has no irregular widths.
    DiffCleansePruning,
    /// Prompts: a LoRA, a delta or a UNet that is laid over the model is left out.
    LayerRemoval,
    /// Prompts: the trigger's own tokens get the rows of the base, or mean nothing in particular.
    RowReset,
    /// Prompts: the denoiser unlearns the trigger, with the suspect as teacher.
    Skd,
    /// Prompts: the same with the suspect's attention to the clean prompt as guide.
    SkdCag,
    /// Prompts: the same at the places of a picture that the trigger changes.
    SauWeights,
    /// Prompts: the text encoder gives triggered prompts the states of clean ones.
    EncoderDistillation,
    /// Prompts: the projections of the prompt are edited in closed form.
    ConceptEditing,
}

impl MethodName {
    /// As the command line spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::ElijahRemoval => Method::ElijahRemoval.id(),
            Self::ShiftedDenoising => Method::ShiftedDenoising.id(),
            Self::DiffCleansePruning => Method::DiffCleansePruning.id(),
            Self::LayerRemoval => text_methods::TextMethod::LayerRemoval.id(),
            Self::RowReset => text_methods::TextMethod::RowReset.id(),
            Self::Skd => text_methods::TextMethod::Skd.id(),
            Self::SkdCag => text_methods::TextMethod::SkdCag.id(),
            Self::SauWeights => text_methods::TextMethod::SauWeights.id(),
            Self::EncoderDistillation => text_methods::TextMethod::EncoderDistillation.id(),
            Self::ConceptEditing => text_methods::TextMethod::ConceptEditing.id(),
        }
    }

    fn methods(self) -> Vec<Method> {
        match self {
            Self::Auto => vec![
                Method::ShiftedDenoising,
                Method::ElijahRemoval,
                Method::DiffCleansePruning,
            ],
            Self::DiffCleansePruning => vec![Method::DiffCleansePruning],
            Self::ElijahRemoval => vec![Method::ElijahRemoval],
            Self::ShiftedDenoising => vec![Method::ShiftedDenoising],
            Self::LayerRemoval
            | Self::RowReset
            | Self::Skd
            | Self::SkdCag
            | Self::SauWeights
            | Self::EncoderDistillation
            | Self::ConceptEditing => Vec::new(),
        }
    }
}

/// How to repair.
#[derive(Debug, Clone)]
pub struct RepairSettings {
    /// The JSON of a scan of the suspect, beside its triggers; for noise triggers.
    pub scan: Option<PathBuf>,
    /// A trigger in prompts, and what its repair needs.
    pub text: Option<TextRepairSettings>,
    /// Where the repaired model goes; must not exist.
    pub out: PathBuf,
    /// What is tried.
    pub method: MethodName,
    /// Clean images of the owner: half of them teach, quality is held against the others. Without them the model's own are taken.
    pub clean_data: Option<PathBuf>,
    /// A benign model of the same shape that is treated the same way, to show what the procedure costs by itself.
    pub control: Option<PathBuf>,
    /// How many images the model draws for its own repair, also beside the owner's; 0 for none.
    pub own_images: usize,
    /// Most steps of a method; `None` is each method's own number.
    pub steps: Option<usize>,
    /// Images of each replayed trigger.
    pub replay_images: usize,
    /// Images of each set that a Fréchet distance compares.
    pub quality_images: usize,
    /// Largest rise of the Fréchet distance that passes, as a part of it.
    pub max_quality_drop: f64,
    /// Save a pruned network as small as it is, which only this library reads, not with zeros in diffusers' layout.
    pub compact: bool,
    /// Root of all randomness.
    pub seed: u64,
    /// Wall-clock time that the repair may take.
    pub budget: Option<Duration>,
    /// Go on where an earlier run of the same repair was stopped.
    pub resume: bool,
    /// Where the models run.
    pub device: Device,
    /// Bounds on what files may ask for.
    pub limits: Limits,
    /// The command that repeats the repair.
    pub command: String,
}

/// Repairs the model at `path`. The report says whether it was written.
///
/// # Errors
/// When the output exists, the scan is of another model or holds no trigger, a file cannot be read or written, the training
/// diverges, or the caller asked to stop; what is done by then is kept beside the output, and the same call goes on.
pub fn repair(
    path: &Path,
    settings: &RepairSettings,
    cache: &Cache,
    watch: Watch<'_>,
) -> Result<RepairReport, Error> {
    let (started, clock) = (SystemTime::now(), Instant::now());
    if settings.out.exists() {
        return Err(Error::Usage {
            problem: format!("{} exists", settings.out.display()),
            mend: "choose a new directory with -o: nothing is ever overwritten",
        });
    }
    known::writable(&settings.out)?;
    let cx = Cx {
        rng: SeedTree::new(settings.seed),
        budget: settings.budget.map_or(Budget::UNLIMITED, Budget::lasting),
        cancel: watch.cancel,
        progress: watch.progress,
        journal: &NoJournal,
    };
    if let Some(text) = &settings.text {
        return text::repair(path, (settings, text), cache, &cx);
    }
    let Some(scan) = &settings.scan else {
        return Err(Error::Usage {
            problem: "nobody says what the trigger is".into(),
            mend: "give a scan's report with --from, or a trigger in prompts with --trigger",
        });
    };
    if settings.method.methods().is_empty() {
        return Err(Error::Usage {
            problem: format!(
                "{} repairs prompts, not noise triggers",
                settings.method.as_str()
            ),
            mend: "give the trigger with --trigger, or choose another --method",
        });
    }
    let opened = subject::open_trainable(path, &settings.limits, settings.device, cache.hashes())?;
    let contents = inspect(path, &settings.limits, cache.hashes())?;
    let claimed = known::triggers(scan, &settings.limits, &opened)?;
    let suspect = opened.pipeline;
    let (triggers, confirmation) = confirm::confirmed(&suspect, claimed, &cx)?;
    let owner = settings
        .clean_data
        .as_deref()
        .map(|path| OwnerImages::read(path, suspect.sample_shape(), &triggers, settings.seed));
    let owner = owner.transpose()?;
    let mut evidence = vec![confirmation];
    let mut attempts = Vec::new();
    let mut repaired = None;
    if !triggers.is_empty() {
        let clean = clean_images(settings, &suspect, owner.as_ref().map(|o| &o.taught), &cx)?;
        let proof = Proof {
            suspect: &suspect,
            triggers: &triggers,
            held: owner.as_ref().map(|o| &o.held),
            settings,
            rescans: &proof::rescans(&triggers)?,
        };
        let baseline = proof.baseline(&cx)?;
        let mut shown = Vec::new();
        for method in settings.method.methods() {
            let model;
            let attempt;
            (attempt, shown, model) = self::attempt(method, &clean, &proof, &baseline, &cx)?;
            let passed = attempt.passed;
            attempts.push(attempt);
            if passed {
                shown.extend(control::treated(method, settings, &triggers, cache, &cx)?);
                let model = if settings.compact {
                    model.pipeline
                } else {
                    model.pipeline.expanded()?
                };
                model.save(&settings.out, SaveDtype::F32)?;
                repaired = Some(settings.out.display().to_string());
                break;
            }
        }
        evidence.extend(shown);
    }
    remove_states(settings, attempts.iter().map(|a| a.method.as_str()));
    let why = why(&attempts, repaired.is_some());
    Ok(RepairReport {
        schema_version: SCHEMA_VERSION.into(),
        suspect: subject::describe(path, &contents, "unconditional pixel diffusion"),
        passed: repaired.is_some(),
        repaired,
        why,
        attempts,
        evidence,
        limits: proof::limits(owner.is_some()),
        seed: settings.seed,
        command: settings.command.clone(),
        environment: report_builder::environment(started, clock.elapsed(), settings.device),
    })
}

/// Times that a method is used: what a new scan finds in a repaired model is removed, too.
const ROUNDS: usize = 2;

/// Images to teach with: the owner's, the model's own, or both.
fn clean_images(
    settings: &RepairSettings,
    suspect: &Pipeline,
    owner: Option<&Dataset>,
    cx: &Cx<'_>,
) -> Result<Dataset, Error> {
    let own = (settings.own_images > 0)
        .then(|| {
            let seed = SeedTree::new(settings.seed).child("own images", 0);
            generated(suspect, settings.own_images, &seed, cx)
        })
        .transpose()?;
    match (owner, own) {
        (Some(owner), Some(own)) => Ok(owner
            .clone()
            .joined(own)
            .map_err(depurate_defense::DefenseError::from)?),
        (Some(owner), None) => Ok(owner.clone()),
        (None, Some(own)) => Ok(own),
        (None, None) => Err(Error::Usage {
            problem: "there are no clean images to repair with".into(),
            mend: "give --clean-data, or let the model draw some with --own-images",
        }),
    }
}

/// One method, and what its result passes.
fn attempt(
    method: Method,
    clean: &Dataset,
    proof: &Proof<'_>,
    baseline: &Baseline,
    cx: &Cx<'_>,
) -> Result<(Attempt, Vec<Evidence>, Repaired), Error> {
    let settings = proof.settings;
    let clock = Instant::now();
    let state = state_file(settings, method.id());
    let patient = Patient {
        suspect: proof.suspect,
        triggers: proof.triggers,
        clean,
        seed: settings.seed,
        state: Some(&state),
    };
    let params = FineTuning {
        steps: settings.steps.unwrap_or(FineTuning::default().steps),
        ..FineTuning::default()
    };
    let mut repaired = treat(method, &patient, &params, cx, &mut |model, step| {
        proof.enough(baseline, model, step, cx)
    })?;
    let mut scanned = proof.scanned((&repaired.pipeline, 0), cx)?;
    let mut removed_again = Vec::new();
    let later = state_file(settings, &later(method.id()));
    let patient = Patient {
        state: Some(&later),
        ..patient
    };
    for round in 1..ROUNDS {
        if scanned.found.is_empty() {
            break;
        }
        removed_again.extend(scanned.seen());
        let so_far = (repaired, scanned.found.as_slice());
        repaired = repair_again(method, so_far, &patient, &params, cx)?;
        scanned = proof.scanned((&repaired.pipeline, round), cx)?;
    }
    let (checks, evidence) = proof.checks(baseline, (&repaired.pipeline, scanned), cx)?;
    let attempt = Attempt {
        method: method.id().to_owned(),
        passed: checks.iter().all(|check| check.passed),
        steps: repaired.steps,
        evaluations: repaired.evaluations,
        left_out: repaired.left_out,
        seconds: clock.elapsed().as_secs_f64(),
        checks,
        removed_again,
    };
    Ok((attempt, evidence, repaired))
}

/// Beside the output, so that an interrupted repair goes on.
fn state_path(settings: &RepairSettings, id: &str) -> PathBuf {
    let mut name = settings
        .out
        .file_name()
        .map(std::ffi::OsStr::to_os_string)
        .unwrap_or_default();
    name.push(format!(".{id}.state.safetensors"));
    settings.out.with_file_name(name)
}

/// The resumable state of the method `id`; without one of an earlier run where the owner wants to start anew.
fn state_file(settings: &RepairSettings, id: &str) -> StateFile {
    let path = state_path(settings, id);
    if !settings.resume {
        let _ = std::fs::remove_file(&path);
    }
    StateFile::new(path)
}

/// What a state is named by that is of the second round of the method `id`.
fn later(id: &str) -> String {
    format!("{id}.again")
}

/// The attempts of methods `ids` are over; a state that stays behind only costs space.
fn remove_states<'a>(settings: &RepairSettings, ids: impl Iterator<Item = &'a str>) {
    for id in ids {
        let _ = std::fs::remove_file(state_path(settings, id));
        let _ = std::fs::remove_file(state_path(settings, &later(id)));
    }
}

fn why(attempts: &[Attempt], passed: bool) -> String {
    let Some(last) = attempts.last() else {
        return "No reconstructed trigger makes images alike, or is answered, as no other shift of its size: there is nothing to repair. \
                Nothing was written."
            .into();
    };
    if passed {
        return format!(
            "After {} the reconstructed trigger and perturbations of it lead to their image no more often than noise without a \
             trigger, clean samples are as good as before, and a new scan with other seeds finds nothing.",
            last.method
        );
    }
    none_passed(attempts, last)
}

/// Why no attempt, of which `last` is the last one, was written.
fn none_passed(attempts: &[Attempt], last: &Attempt) -> String {
    let names: Vec<&str> = attempts.iter().map(|a| a.method.as_str()).collect();
    let failed = last.checks.iter().filter(|check| !check.passed);
    let failed: Vec<&str> = failed.map(|check| check.name.as_str()).collect();
    format!(
        "No attempt passed every check ({}); the last one failed: {}. Nothing was written.",
        names.join(", "),
        failed.join(", ")
    )
}
