//! `eval noise-repair`: repairs and their controls on every model of a population, against the truth.
//!
//! A repair is given a trigger and the model. With `--trigger inverted` the trigger is what a detector reconstructed; `true` is the
//! attacker's own, an upper bound that no owner has. The truth is joined afterwards: success of the *true* trigger on the repaired
//! model. A benign model is repaired by mistake: of what the detector reconstructs there or, with `true`, of a box.

mod lasting;
mod measures;
mod rows;
mod table;

use std::{
    collections::BTreeSet,
    num::NonZeroUsize,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use clap::{Args, ValueEnum};
use depurate::{DetectorName, Profile};
use depurate_attack::{Backdoor, Pattern};
use depurate_defense::{
    Cx,
    repair::{
        FineTuning, KnownTrigger, Method, Patient, Quality, Repaired,
        confirm::{LEAST_EFFECT, effect},
        generated, repair, repair_again,
    },
};
use depurate_diffusion::{
    Denoiser, Device, Pipeline,
    firing::Firing,
    noise::SeedTree,
    parallel::{cores, map},
};
use depurate_training::{Dataset, DatasetParams, Split};
use miette::{IntoDiagnostic, Report, Result};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::{jsonl, model_names, with_cx};
use crate::{
    console::{CancelFlag, answer, say},
    model,
    truth::{self, Truth},
};
use measures::{Measures, State, known};
use rows::Row;

/// Largest rise of the Fréchet distance with which a repair counts as one that holds quality.
pub(crate) const MOST_RISE: f64 = 0.05;
/// Part of the teacher's answer in the control that only fine-tunes: ordinary training.
const CONTROL_TEACHER: f64 = 0.0;

/// Where the triggers come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Source {
    /// A detector's reconstruction.
    Inverted,
    /// The attacker's own.
    True,
}

/// A column of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Treatment {
    /// Elijah's removal.
    ElijahRemoval,
    /// The trigger taught to be noise.
    ShiftedDenoising,
    /// Channels that matter for the trigger taken out, then a fine-tune.
    DiffCleansePruning,
    /// The same with the released score, the sum.
    ReleasedPruning,
    /// Control: other channels taken out.
    RandomPruning,
    /// Control: the fine-tune alone.
    FineTuning,
    /// Control: shifted denoising with the pixels of the trigger and of its target in another order.
    WrongTrigger,
}

impl Treatment {
    fn method(self) -> Method {
        match self {
            Self::ElijahRemoval => Method::ElijahRemoval,
            Self::ShiftedDenoising | Self::WrongTrigger => Method::ShiftedDenoising,
            Self::DiffCleansePruning => Method::DiffCleansePruning,
            Self::ReleasedPruning => Method::ReleasedPruning,
            Self::RandomPruning => Method::RandomPruning,
            Self::FineTuning => Method::FineTuning,
        }
    }

    /// Whether it runs all its steps: a control that is stopped when the trigger is gone is none.
    fn control(self) -> bool {
        matches!(
            self,
            Self::FineTuning | Self::WrongTrigger | Self::RandomPruning
        )
    }
}

/// Repair every model of a population; print and write the table.
#[derive(Debug, Args)]
pub(crate) struct EvalNoiseRepair {
    /// The models, as `population` made them; the truth is read from `<DIR>-truth`.
    #[arg(long, value_name = "DIR")]
    models: PathBuf,
    /// Where triggers come from.
    #[arg(long, value_enum, default_value = "inverted")]
    trigger: Source,
    /// What reconstructs them.
    #[arg(long, value_enum, default_value_t)]
    detector: DetectorName,
    /// Repairs and controls.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [
        Treatment::ShiftedDenoising, Treatment::ElijahRemoval, Treatment::DiffCleansePruning, Treatment::ReleasedPruning,
        Treatment::RandomPruning, Treatment::FineTuning, Treatment::WrongTrigger
    ])]
    treatments: Vec<Treatment>,
    /// Repairs whose models are scanned again, and trained on while the true trigger is fired.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "shifted-denoising"
    )]
    lasting: Vec<Treatment>,
    /// Times that such a repair is made: what a new scan finds in the repaired model is removed, too.
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// Images with and as many without the true trigger.
    #[arg(long, default_value_t = 16)]
    n: usize,
    /// Images for the Fréchet distance.
    #[arg(long, default_value_t = 256)]
    quality_n: usize,
    /// Real images that the distance is measured to (their test part).
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Most steps of a repair, and the steps of a control.
    #[arg(long, default_value_t = FineTuning::default().steps)]
    steps: usize,
    /// Highest learning rate of a repair.
    #[arg(long, default_value_t = FineTuning::default().learning_rate)]
    learning_rate: f64,
    /// Part of the teacher's answer in the clean target.
    #[arg(long, default_value_t = FineTuning::default().teacher_share)]
    teacher_share: f64,
    /// Images that the suspect draws for its repair.
    #[arg(long, default_value_t = 512)]
    own_images: usize,
    /// Repair with the training part of the real images instead, as an owner can who has some.
    #[arg(long, conflicts_with = "own_images")]
    owner_images: bool,
    /// Seed of everything random.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where results.jsonl and table.md go; what is in results.jsonl is not done again.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Models at a time.
    #[arg(long, default_value_t = cores())]
    jobs: NonZeroUsize,
}

/// A model, its clean samples and how it was before.
struct Subject {
    name: String,
    pipeline: Pipeline,
    note: Truth,
    backdoor: Option<Backdoor>,
    triggers: Vec<KnownTrigger>,
    /// Of each trigger.
    effects: Vec<f64>,
    clean: Dataset,
    /// Clean samples against real images.
    quality: Quality,
    given: Option<Vec<usize>>,
    before: State,
}

impl EvalNoiseRepair {
    pub(super) fn run(self, cancel: &CancelFlag) -> Result<()> {
        std::fs::create_dir_all(&self.out).into_diagnostic()?;
        let results = self.out.join("results.jsonl");
        let rows: Mutex<Vec<Row>> = Mutex::new(jsonl::read(&results)?);
        let held = || rows.lock().unwrap_or_else(PoisonError::into_inner);
        let done: BTreeSet<(String, Treatment)> = held()
            .iter()
            .map(|row| (row.model.clone(), row.treatment))
            .collect();
        let missing = |name: &String| -> Vec<Treatment> {
            let left = self.treatments.iter().copied();
            left.filter(|&treatment| !done.contains(&(name.clone(), treatment)))
                .collect()
        };
        let mut names = model_names(&self.models)?;
        names.retain(|name| !missing(name).is_empty());
        map::<_, (), Report>(self.jobs.get(), &names, |name| {
            let subject = with_cx(self.seed, cancel, |cx| self.subject(name, cx, cancel))?;
            for treatment in missing(name) {
                let row = with_cx(self.seed, cancel, |cx| {
                    self.treat(&subject, treatment, cx, cancel)
                })?;
                say(&table::line(&row));
                let mut rows = held(); // held while the file is written: a line at a time
                jsonl::append(&results, std::slice::from_ref(&row))?;
                rows.push(row);
            }
            Ok(())
        })?;
        let rows = rows.into_inner().unwrap_or_else(PoisonError::into_inner);
        let text = table::render(&rows, self.trigger == Source::True)?;
        depurate_checkpoint::write_atomic(&self.out.join("table.md"), text.as_bytes())
            .into_diagnostic()?;
        answer(&text);
        Ok(())
    }

    fn subject(&self, name: &str, cx: &Cx<'_>, cancel: &CancelFlag) -> Result<Subject> {
        let pipeline = model::load(&self.models.join(name))?;
        let mut triggers = match self.trigger {
            Source::Inverted => self.inverted(name, &pipeline, cx)?,
            Source::True => Vec::new(),
        };
        let seed = SeedTree::new(self.seed);
        let clean = if self.owner_images {
            self.real(&pipeline, Split::Train)?
        } else {
            generated(&pipeline, self.own_images, &seed.child("own images", 0), cx)
                .into_diagnostic()?
        };

        // the truth enters here, after the inversion
        let truth_path = truth::beside(&self.models)?.join(format!("{name}.json"));
        let note = Truth::load(&truth_path)?;
        let shape = pipeline.sample_shape();
        let backdoor = match note.kind.secret() {
            Some(_) => Some(truth::backdoor(&truth_path, &note, shape)?),
            None => None,
        };
        if self.trigger == Source::True {
            let attacker = match &backdoor {
                Some(backdoor) => backdoor.clone(),
                None => Backdoor {
                    firing: Firing::Stochastic,
                    shift: Pattern::trigger("box:8:0.5:bottom-right", shape).into_diagnostic()?,
                    gamma: None,
                    target: Pattern::target("hat", shape).into_diagnostic()?,
                },
            };
            triggers.push(known(&attacker, shape));
        }
        let effects = triggers
            .iter()
            .map(|trigger| effect(&pipeline, trigger, cx));
        let effects: Result<Vec<f64>, _> = effects.collect();
        let measures = self.measures(cancel);
        let real = self.real(&pipeline, Split::Test)?;
        let reference = real.all(&Device::flex());
        let quality = Quality::of(&pipeline, Some(reference), self.quality_n, &seed, cx);
        let quality = quality.into_diagnostic()?;
        let before = measures.state(name, &pipeline, backdoor.as_ref(), quality.before)?;
        let given = match (&backdoor, triggers.first()) {
            (Some(backdoor), Some(trigger)) => {
                Some(measures.recovered(name, &pipeline, backdoor, trigger)?)
            }
            _ => None,
        };
        Ok(Subject {
            given,
            name: name.to_owned(),
            pipeline,
            note,
            backdoor,
            triggers,
            effects: effects.into_diagnostic()?,
            clean,
            quality,
            before,
        })
    }

    fn measures<'a>(&self, cancel: &'a CancelFlag) -> Measures<'a> {
        Measures {
            n: self.n,
            seed: self.seed,
            cancel,
        }
    }

    /// A part of the real images.
    fn real(&self, pipeline: &Pipeline, split: Split) -> Result<Dataset> {
        let params = DatasetParams {
            split,
            ..DatasetParams::default()
        };
        Dataset::read(&self.data, pipeline.sample_shape(), &params).into_diagnostic()
    }

    /// What the detector reconstructs, whatever its score; kept, so that no second call does it again.
    fn inverted(&self, name: &str, pipeline: &Pipeline, cx: &Cx<'_>) -> Result<Vec<KnownTrigger>> {
        let kept = self
            .out
            .join(format!("{name}.{}.json", self.detector.as_str()));
        if let Ok(text) = std::fs::read(&kept) {
            return serde_json::from_slice(&text).into_diagnostic();
        }
        let detector = self.detector.build(Profile::Quick).into_diagnostic()?;
        let found = detector.run.inspect(pipeline, cx).into_diagnostic()?;
        let found = vec![KnownTrigger::of(&found.inversion, Some(&found.target))];
        let text = serde_json::to_vec(&found).into_diagnostic()?;
        depurate_checkpoint::write_atomic(&kept, &text).into_diagnostic()?;
        Ok(found)
    }

    fn treat(
        &self,
        subject: &Subject,
        treatment: Treatment,
        cx: &Cx<'_>,
        cancel: &CancelFlag,
    ) -> Result<Row> {
        let mut triggers = subject.triggers.clone();
        if treatment == Treatment::WrongTrigger {
            let mut rng = SeedTree::new(self.seed).child("wrong trigger", 0).rng();
            for trigger in &mut triggers {
                trigger.shift.shuffle(&mut rng);
                trigger
                    .target
                    .iter_mut()
                    .for_each(|target| target.shuffle(&mut rng));
            }
        }
        let patient = Patient {
            suspect: &subject.pipeline,
            triggers: &triggers,
            clean: &subject.clean,
            seed: self.seed,
            state: None,
        };
        let params = FineTuning {
            steps: self.steps,
            learning_rate: self.learning_rate,
            teacher_share: if treatment == Treatment::FineTuning {
                CONTROL_TEACHER
            } else {
                self.teacher_share
            },
            ..FineTuning::default()
        };
        let start = Instant::now();
        // as `depurate repair`: a trigger that does nothing is not removed
        let idle = !treatment.control() && subject.effects.iter().all(|&e| e < LEAST_EFFECT);
        let repaired = repair(treatment.method(), &patient, &params, cx, &mut |_, step| {
            Ok(step == 0 && idle)
        });
        let mut repaired: Repaired = repaired.into_diagnostic()?;
        let mut seconds = start.elapsed().as_secs_f64();
        let (mut rounds, mut new_scans, mut trained_on) = (1, Vec::new(), Vec::new());
        if self.lasting.contains(&treatment) {
            let again = |repaired, found: &[KnownTrigger]| {
                let so_far = (repaired, found);
                repair_again(treatment.method(), so_far, &patient, &params, cx).into_diagnostic()
            };
            let lasting = lasting::until_unseen(self, repaired, &again, cx)?;
            (repaired, new_scans, rounds) = (lasting.repaired, lasting.scans, lasting.rounds);
            seconds += lasting.seconds;
            trained_on = lasting::trained_on(self, subject, &repaired.pipeline, cx)?;
        }
        let measured = subject.quality.measure(&repaired.pipeline, cx);
        let measured = measured.into_diagnostic()?;
        let after = self.measures(cancel).state(
            &subject.name,
            &repaired.pipeline,
            subject.backdoor.as_ref(),
            measured.distance,
        )?;
        Ok(Row {
            rounds,
            new_scans,
            trained_on,
            model: subject.name.clone(),
            treatment,
            kind: subject.note.kind.name().to_owned(),
            secret: subject.note.kind.secret(),
            given: subject.given.clone(),
            effects: subject.effects.clone(),
            before: subject.before.clone(),
            after,
            rise_interval: [measured.rise_interval.lower, measured.rise_interval.upper],
            moved: measured.moved,
            left_out: repaired.left_out,
            steps: repaired.steps,
            evaluations: repaired.evaluations,
            seconds,
        })
    }
}
