//! `population`: every model of a specification.
//!
//! Models are called `m000`, `m001`, … in an order shuffled by the specification's seed, and their directories hold
//! nothing that tells benign from backdoored. What they are is in `<out>-truth/`, beside the bases that they were
//! fine-tuned from. A model that is there is skipped, an interrupted one continued.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Instant,
};

use clap::Args;
use depurate_attack::{BadDiffusionParams, SuccessParams, troj_diff::TrojDiffParams};
use depurate_checkpoint::SaveDtype;
use depurate_diffusion::{
    Denoiser, Pipeline,
    noise::SeedTree,
    parallel::{cores, map},
    trigger::Family,
};
use depurate_training::{Dataset, DatasetParams, Denoising, Objective, TrainingParams};
use miette::{IntoDiagnostic, Result, WrapErr, bail};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::{
    attack::measure,
    console::{CancelFlag, say},
    job::{Finished, Job},
    model::{self, Architecture},
    train::summary,
    truth::{self, Kind, Success, Truth},
};

/// Train every model of a population.
#[derive(Debug, Args)]
pub(crate) struct Population {
    /// The specification (JSON).
    spec: PathBuf,
    /// Where the models go; the truth goes to `<DIR>-truth`.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Models trained at a time; each holds its network, gradients and images in memory.
    #[arg(long, default_value_t = cores())]
    jobs: NonZeroUsize,
}

/// A population.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    /// Images, relative to the working directory.
    data: PathBuf,
    /// Shape of all models.
    #[serde(default)]
    architecture: Architecture,
    /// Shuffles the models' names.
    #[serde(default)]
    seed: u64,
    /// Whether weights are saved in half precision.
    #[serde(default)]
    half: bool,
    /// Images sampled with and without the trigger for each backdoored model; 0 skips the measurement.
    #[serde(default)]
    asr_n: usize,
    /// Training of everything that does not say otherwise.
    #[serde(default)]
    training: Training,
    /// Models that others start from, by name. They are not part of the population.
    #[serde(default)]
    bases: BTreeMap<String, Base>,
    /// The population.
    models: Vec<Entry>,
}

/// Training parameters that replace defaults where they are given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Training {
    steps: Option<usize>,
    batch: Option<usize>,
    learning_rate: Option<f64>,
    warmup_steps: Option<usize>,
    weight_decay: Option<f64>,
    ema_decay: Option<f64>,
    horizontal_flip: Option<bool>,
}

impl Training {
    fn over(&self, mut params: TrainingParams) -> TrainingParams {
        params.steps = self.steps.unwrap_or(params.steps);
        params.batch = self.batch.unwrap_or(params.batch);
        params.learning_rate = self.learning_rate.unwrap_or(params.learning_rate);
        params.warmup_steps = self.warmup_steps.unwrap_or(params.warmup_steps);
        params.adam.weight_decay = self.weight_decay.unwrap_or(params.adam.weight_decay);
        params.ema_decay = self.ema_decay.unwrap_or(params.ema_decay);
        params.horizontal_flip = self.horizontal_flip.unwrap_or(params.horizontal_flip);
        params
    }
}

/// A model to start from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Base {
    seed: u64,
    #[serde(default)]
    limit: Option<usize>,
    #[serde(default)]
    training: Training,
}

/// A model of the population.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// What is done.
    make: EntryKind,
    /// Seed of everything random.
    seed: u64,
    /// At most so many images, chosen by the seed.
    #[serde(default)]
    limit: Option<usize>,
    /// Differs from the population's.
    #[serde(default)]
    training: Training,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum EntryKind {
    /// Benign, from scratch.
    Train,
    /// Benign, from a base.
    Finetune {
        /// Name of the base.
        base: String,
    },
    /// Backdoored, from a base.
    BadDiffusion {
        /// Name of the base.
        base: String,
        /// As on the command line.
        trigger: String,
        /// As on the command line.
        target: String,
        /// Share of poisoned samples.
        poison_rate: f64,
        /// As on the command line.
        #[serde(default)]
        trigger_only: bool,
        /// As on the command line.
        #[serde(default)]
        deterministic: bool,
    },
    /// Backdoored for a modified sampler, from a base.
    TrojDiff {
        /// Name of the base.
        base: String,
        /// As on the command line.
        trigger: String,
        /// As on the command line.
        target: String,
        /// Share of poisoned samples.
        poison_rate: f64,
        /// As on the command line.
        gamma: f64,
        /// As on the command line.
        #[serde(default)]
        patch: Option<usize>,
    },
}

impl EntryKind {
    /// Name of the base.
    fn base(&self) -> Option<&str> {
        match self {
            Self::Train => None,
            Self::Finetune { base }
            | Self::BadDiffusion { base, .. }
            | Self::TrojDiff { base, .. } => Some(base),
        }
    }

    /// As a truth file states it.
    fn kind(&self) -> Kind {
        match self {
            Self::Train => Kind::BenignTraining,
            Self::Finetune { .. } => Kind::BenignFinetune,
            Self::BadDiffusion {
                trigger,
                target,
                poison_rate,
                trigger_only,
                deterministic,
                ..
            } => Kind::BadDiffusion {
                params: BadDiffusionParams {
                    poison_rate: *poison_rate,
                    trigger_only: *trigger_only,
                    family: if *deterministic {
                        Family::Deterministic
                    } else {
                        Family::Stochastic
                    },
                    ..BadDiffusionParams::default()
                },
                trigger: trigger.clone(),
                target: target.clone(),
            },
            Self::TrojDiff {
                trigger,
                target,
                poison_rate,
                gamma,
                patch,
                ..
            } => Kind::TrojDiff {
                params: TrojDiffParams {
                    poison_rate: *poison_rate,
                    gamma: *gamma,
                    patch: *patch,
                },
                trigger: trigger.clone(),
                target: target.clone(),
            },
        }
    }
}

impl Population {
    /// Runs the command.
    pub(crate) fn run(self, cancel: &CancelFlag) -> Result<()> {
        let spec = Spec::read(&self.spec)?;
        let run = Run {
            truth_dir: truth::beside(&self.out)?,
            out: self.out,
            spec,
            cancel,
        };
        for dir in [&run.out, &run.truth_dir] {
            std::fs::create_dir_all(dir)
                .into_diagnostic()
                .wrap_err_with(|| format!("cannot make the directory {}", dir.display()))?;
        }
        let start = Instant::now();
        let bases: Vec<_> = run.spec.bases.iter().collect();
        map(self.jobs.get(), &bases, |(name, base)| run.base(name, base))?;
        let names = run.spec.names();
        let models: Vec<_> = names.iter().zip(&run.spec.models).collect();
        map(self.jobs.get(), &models, |(name, entry)| {
            run.entry(name, entry)
        })?;
        say(&format!(
            "{} models, {:.0} s",
            run.spec.models.len(),
            start.elapsed().as_secs_f64()
        ));
        Ok(())
    }
}

impl Spec {
    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .into_diagnostic()
            .wrap_err_with(|| format!("cannot read the specification {}", path.display()))?;
        let spec: Self = serde_json::from_str(&text)
            .into_diagnostic()
            .wrap_err_with(|| format!("{} is not a population specification", path.display()))?;
        spec.check()?;
        Ok(spec)
    }

    /// Refuses now what would fail after hours.
    fn check(&self) -> Result<()> {
        let shape = self.architecture.build(0)?.sample_shape();
        for entry in &self.models {
            if let Some(base) = entry.make.base()
                && !self.bases.contains_key(base)
            {
                bail!("a model names the base `{base}`, which the specification does not have");
            }
            entry.make.kind().backdoor(shape)?;
        }
        Ok(())
    }

    /// The name of each model, in the order of `models`.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = (0..self.models.len()).map(|i| format!("m{i:03}")).collect();
        names.shuffle(&mut SeedTree::new(self.seed).child("names", 0).rng());
        names
    }

    fn dtype(&self) -> SaveDtype {
        if self.half {
            SaveDtype::F16
        } else {
            SaveDtype::F32
        }
    }
}

struct Run<'a> {
    spec: Spec,
    out: PathBuf,
    truth_dir: PathBuf,
    cancel: &'a CancelFlag,
}

impl Run<'_> {
    fn base_dir(&self, name: &str) -> PathBuf {
        self.truth_dir.join(format!("base-{name}"))
    }

    fn base(&self, name: &str, base: &Base) -> Result<()> {
        let out = self.base_dir(name);
        if out.exists() {
            return Ok(());
        }
        let (data, _) = self.data(base.limit, base.seed)?;
        let params = self.training(&base.training, base.seed);
        let start = self.spec.architecture.build(base.seed)?;
        let finished = self.train(
            &format!("base {name}"),
            &start,
            &data,
            &Denoising,
            &params,
            &out,
        )?;
        say(&summary(&out, &finished));
        Ok(())
    }

    fn entry(&self, name: &str, entry: &Entry) -> Result<()> {
        let out = self.out.join(name);
        let truth = self.truth_dir.join(format!("{name}.json"));
        if out.exists() && truth.exists() {
            return Ok(());
        }
        if out.exists() {
            // The model was saved and the note was not: done again, as a half-known model is useless.
            std::fs::remove_dir_all(&out).into_diagnostic()?;
        }
        let (data, data_params) = self.data(entry.limit, entry.seed)?;
        let training = self.training(&entry.training, entry.seed);
        let base = entry.make.base().map(|base| self.base_dir(base));
        let start = match &base {
            None => self.spec.architecture.build(entry.seed)?,
            Some(dir) => model::load(dir)?,
        };
        let (kind, shape) = (entry.make.kind(), start.sample_shape());
        let seed = SeedTree::new(entry.seed);
        let backdoor = kind.backdoor(shape)?;
        let objective = kind.objective(shape, data.len(), &seed, &start.device())?;
        let objective = objective.as_deref().unwrap_or(&Denoising);
        let finished = self.train(name, &start, &data, objective, &training, &out)?;
        let mut line = summary(&out, &finished);
        let mut success = None;
        if let Some(backdoor) = backdoor.as_ref().filter(|_| self.spec.asr_n > 0) {
            let params = SuccessParams {
                n: self.spec.asr_n,
                ..SuccessParams::default()
            };
            let picture = self.truth_dir.join(format!("{name}.png"));
            let found = measure(
                name,
                &finished.trained.pipeline,
                backdoor,
                &params,
                Some(&picture),
                self.cancel,
            )?;
            let rate = |rates: &depurate_attack::Rates| rates.at(1e-2).unwrap_or(f64::NAN);
            line += &format!(
                ", ASR {:.2} at 0.01 (without trigger {:.2})",
                rate(&found.triggered),
                rate(&found.base)
            );
            success = Some(Success::from(&found));
        }
        say(&line);
        let note = Truth {
            kind,
            base,
            data: self.spec.data.clone(),
            data_params,
            training,
            final_loss: finished.final_loss,
            samples_per_second: finished.trained.samples_per_second,
            success,
        };
        note.save(&truth, backdoor.as_ref())
    }

    fn train(
        &self,
        name: &str,
        start: &Pipeline,
        data: &Dataset,
        objective: &dyn Objective,
        params: &TrainingParams,
        out: &Path,
    ) -> Result<Finished> {
        let dtype = self.spec.dtype();
        Job {
            name,
            start,
            data,
            objective,
            params,
            out,
            resume: true,
            dtype,
        }
        .run(self.cancel)
    }

    fn training(&self, own: &Training, seed: u64) -> TrainingParams {
        let params = own.over(self.spec.training.over(TrainingParams::default()));
        TrainingParams { seed, ..params }
    }

    fn data(&self, limit: Option<usize>, seed: u64) -> Result<(Dataset, DatasetParams)> {
        let params = DatasetParams {
            limit,
            subset_seed: seed,
            ..DatasetParams::default()
        };
        let architecture = &self.spec.architecture;
        let shape = depurate_diffusion::SampleShape {
            channels: architecture.image_channels,
            height: architecture.size,
            width: architecture.size,
        };
        let data = Dataset::read(&self.spec.data, shape, &params).into_diagnostic()?;
        Ok((data, params))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shipped() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("specs")
    }

    fn smoke() -> Spec {
        Spec::read(&shipped().join("smoke.json")).expect("the shipped specification")
    }

    #[test]
    fn every_shipped_specification_is_valid_and_calibration_and_test_share_no_seed() {
        let mut seeds = BTreeMap::new();
        for file in std::fs::read_dir(shipped()).expect("the folder") {
            let path = file.expect("a file").path();
            let spec = Spec::read(&path).expect("a specification");
            let own = spec.bases.values().map(|base| base.seed);
            for seed in own.chain(spec.models.iter().map(|model| model.seed)) {
                let earlier = seeds.insert(seed, path.clone());
                let clash = earlier.filter(|other| {
                    other != &path
                        && !other.ends_with("smoke.json")
                        && !path.ends_with("smoke.json")
                });
                assert_eq!(clash, None, "seed {seed} of {}", path.display());
            }
        }
    }

    #[test]
    fn names_are_shuffled_by_the_seed_and_complete() {
        let mut spec = smoke();
        spec.models = vec![spec.models[0].clone(); 30];
        let names = spec.names();
        let mut sorted = names.clone();
        sorted.sort();
        assert_eq!(
            sorted,
            (0..30).map(|i| format!("m{i:03}")).collect::<Vec<_>>()
        );
        assert_ne!(sorted, names);
        assert_eq!(names, spec.names());
        spec.seed += 1;
        assert_ne!(names, spec.names());
    }

    #[test]
    fn a_specification_that_cannot_work_is_refused_at_once() {
        let mut spec = smoke();
        spec.models[1].make = EntryKind::Finetune {
            base: "none".into(),
        };
        assert!(spec.check().is_err());
        let mut spec = smoke();
        spec.models[2].make = EntryKind::BadDiffusion {
            base: "digits".into(),
            trigger: "box:99".into(),
            target: "hat".into(),
            poison_rate: 0.1,
            trigger_only: false,
            deterministic: false,
        };
        assert!(spec.check().is_err());
    }

    #[test]
    fn a_models_own_training_wins_over_the_populations() {
        let spec = smoke();
        let run = Run {
            spec,
            out: "o".into(),
            truth_dir: "t".into(),
            cancel: &CancelFlag::default(),
        };
        let params = run.training(&run.spec.models[1].training, 11);
        assert_eq!((params.steps, params.batch, params.seed), (10, 16, 11));
    }
}
