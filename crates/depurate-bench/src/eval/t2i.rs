//! `eval t2i`: prompt detectors on backdoored text-to-image models.
//!
//! | file in DIR | what |
//! |---|---|
//! | `results.jsonl` | a line a prompt and model, appended as they are scored; no labels |
//! | `prompts/NAME.jsonl` | the prompts of a subject with their labels |
//! | `settings/NAME.MODEL.json` | how they were run, so that other results are never continued |
//! | `table.md`, `premise.csv`, `premise.svg` | made from these |
//!
//! Prompts that have a line are not scored again, so an interrupted run is continued by the same command, and two processes
//! may share DIR if each has other subjects (`--only`). Scoring (`score.rs`) sees a pipeline and texts; labels and the truth
//! are joined to its results afterwards (`joined.rs`).

mod joined;
mod measures;
mod pace;
mod premise;
mod premise_plot;
mod prompts;
mod results;
mod score;
mod spec;
mod table;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use clap::Args;
use depurate_attack::text_to_image::{Judge, Sprites};
use depurate_checkpoint::{sha256_file, write_atomic};
use depurate_defense::{calibration::prompts::RunSetting, detect::input_level::SiteSelection};
use depurate_diffusion::{
    clip_tokenizer::ClipTokenizer, noise::SeedTree, text_to_image::TextToImage,
};
use miette::{IntoDiagnostic, Result, WrapErr, bail};

use crate::{
    console::{CancelFlag, answer},
    eval::jsonl,
    text_to_image::{
        assemble::load_pipeline,
        judge, read_sprites,
        secret::{Goal, Secret},
    },
    truth::text::TextTruth,
};
use joined::Joined;
use pace::Pace;
use premise::Curve;
use prompts::{Counts, Prompt, PromptSet};
use results::{Line, Lines, Model};
use score::{Method, Scorer, methods};
use spec::{Spec, Subject};
use table::Contents;

/// Prompt detectors on backdoored text-to-image models.
#[derive(Debug, Args)]
pub(crate) struct EvalT2i {
    /// What to evaluate (JSON); paths in it are relative to the working directory.
    #[arg(long, value_name = "FILE")]
    spec: PathBuf,
    /// Where results.jsonl, table.md and the rest go; what is there is continued.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Score only this subject; may be given several times. The table is made of all that are scored.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
}

impl EvalT2i {
    pub(crate) fn run(self, cancel: &CancelFlag) -> Result<()> {
        let spec = Spec::read(&self.spec)?;
        if let Some(name) = self
            .only
            .iter()
            .find(|name| spec.subjects.iter().all(|s| s.name != **name))
        {
            bail!("{} has no subject {name}", self.spec.display());
        }
        for folder in ["prompts", "settings"] {
            std::fs::create_dir_all(self.out.join(folder)).into_diagnostic()?;
        }
        let sprites = read_sprites(&spec.sprites)?;
        let bench = Bench {
            spec: &spec,
            out: &self.out,
            methods: &methods()?,
            sprites: &sprites,
            cancel,
        };
        for subject in &spec.subjects {
            if self.only.is_empty() || self.only.contains(&subject.name) {
                bench.measure(subject)?;
            }
        }
        let command = format!(
            "depurate-bench eval t2i --spec {} --out {}",
            self.spec.display(),
            self.out.display()
        );
        bench.report(&command)
    }
}

/// What every subject needs.
struct Bench<'a> {
    spec: &'a Spec,
    out: &'a Path,
    methods: &'a [Method],
    sprites: &'a Sprites,
    cancel: &'a CancelFlag,
}

/// What is known of a subject before scoring.
struct Prepared {
    secret: Secret,
    set: PromptSet,
}

impl Bench<'_> {
    fn results(&self) -> PathBuf {
        self.out.join("results.jsonl")
    }

    /// Secret and prompts; they depend on the specification and the truth alone.
    fn prepare(&self, subject: &Subject) -> Result<Prepared> {
        let truth = TextTruth::load(&subject.truth)?;
        if truth.kind.name() != subject.attack {
            bail!(
                "{} is called {} in the specification and {} in its truth",
                subject.name,
                subject.attack,
                truth.kind.name()
            );
        }
        let secret = Secret::of(&truth, self.sprites, self.sprites.shape())?;
        let tokenizer = ClipTokenizer::load(
            &subject.model.join("tokenizer"),
            &depurate_checkpoint::Limits::default(),
        )
        .into_diagnostic()?;
        let counts = Counts {
            test: self.spec.prompts,
            calibration: self.spec.calibration,
        };
        let seed = SeedTree::new(self.spec.prompt_seed).child(&subject.name, 0);
        let set = prompts::build(&secret, self.sprites, &tokenizer, counts, &seed)
            .wrap_err_with(|| format!("{} gets no prompts", subject.name))?;
        Ok(Prepared { secret, set })
    }

    /// Scores what has no line yet.
    fn measure(&self, subject: &Subject) -> Result<()> {
        let Prepared { secret, set } = self.prepare(subject)?;
        let mut labelled = String::new();
        for prompt in &set.prompts {
            labelled += &serde_json::to_string(prompt).into_diagnostic()?;
            labelled.push('\n');
        }
        self.keep(&format!("prompts/{}.jsonl", subject.name), &labelled)?;
        let lines = results::read(&self.results(), &subject.name)?;
        for model in [Model::Suspect, Model::Clean] {
            let texts = waiting(&set, &lines, model);
            if texts.is_empty() {
                continue;
            }
            let pipeline = load_pipeline(subject.dir(model))?.frozen();
            if pipeline.image_shape() != self.sprites.shape() {
                bail!(
                    "{} draws pictures of another size than the sprites'",
                    subject.name
                );
            }
            let scorer = Scorer::new(&pipeline, &self.spec.run, self.methods)?;
            let setting = self.setting(subject.dir(model), &pipeline, &scorer)?;
            let file = format!("settings/{}.{}.json", subject.name, model.name());
            self.keep(&file, &setting)?;
            let judge = judge::load(&self.spec.judge, self.sprites, &pipeline.device())?;
            self.score(subject, model, &texts, &scorer, &judge, &secret)?;
        }
        Ok(())
    }

    fn score(
        &self,
        subject: &Subject,
        model: Model,
        texts: &[&str],
        scorer: &Scorer<'_>,
        judge: &Judge,
        secret: &Secret,
    ) -> Result<()> {
        let mut pace = Pace::new(format!("{} {}", subject.name, model.name()), texts.len());
        for batch in texts.chunks(self.spec.run.batch) {
            let (scored, pictures) = scorer.score(batch, &mut || {
                if self.cancel.is_set() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })?;
            // the truth enters here, after scoring
            let errors = match &secret.goal {
                Goal::Patch(patch) => patch.errors(&pictures).into_diagnostic()?,
                Goal::Shows(_) => vec![],
            };
            let judged = judge.judge(&pictures).into_diagnostic()?;
            let seen = batch.iter().zip(scored).zip(judged).enumerate();
            let lines = seen.map(|(i, ((text, scored), seen))| Line {
                subject: subject.name.clone(),
                model,
                prompt: (*text).to_owned(),
                tokens: scored.tokens,
                scores: scored.scores,
                problems: scored.problems,
                change: scored.change,
                judged: [seen.object, seen.style, seen.color, seen.background],
                patch_error: errors.get(i).copied(),
                seconds: scored.seconds,
            });
            jsonl::append(&self.results(), &lines.collect::<Vec<_>>())?;
            pace.advance(batch.len());
        }
        Ok(())
    }

    /// All that scores depend on besides the prompt, as JSON.
    fn setting(&self, dir: &Path, pipeline: &TextToImage, scorer: &Scorer<'_>) -> Result<String> {
        let shape = pipeline.latent_shape();
        let setting = RunSetting {
            model_sha256: hashes(dir, &["text_encoder", "unet", "vae"], "safetensors")?,
            tokenizer_sha256: hashes(dir, &["tokenizer"], "json")?,
            scheduler: serde_json::to_string(&pipeline.scheduler().to_json()).into_diagnostic()?,
            timesteps: scorer.timesteps().to_vec(),
            guidance: self.spec.run.guidance,
            seed: self.spec.run.seed,
            size: (shape.height, shape.width),
            sites: SiteSelection::default(),
            number_type: "f32".to_owned(),
        };
        let mut text = serde_json::to_string_pretty(&setting).into_diagnostic()?;
        text.push('\n');
        Ok(text)
    }

    /// Writes a file that must not change while its results are kept.
    fn keep(&self, name: &str, text: &str) -> Result<()> {
        let path = self.out.join(name);
        match std::fs::read_to_string(&path) {
            Ok(there) if there == text => Ok(()),
            Ok(_) => bail!(
                "{} is of another specification or model than this one: choose a new --out",
                path.display()
            ),
            Err(_) => write_atomic(&path, text.as_bytes()).into_diagnostic(),
        }
    }

    /// Joins labels to what is scored, and writes the table.
    fn report(&self, command: &str) -> Result<()> {
        let (mut subjects, mut missing) = (Vec::new(), Vec::new());
        for subject in &self.spec.subjects {
            let lines = results::read(&self.results(), &subject.name)?;
            if lines.is_empty() {
                missing.push(subject.name.clone());
                continue;
            }
            let Prepared { secret, set } = self.prepare(subject)?;
            let is_done = [Model::Suspect, Model::Clean]
                .into_iter()
                .all(|model| waiting(&set, &lines, model).is_empty());
            if is_done {
                subjects.push(Joined::new(&subject.name, &secret, set, &lines)?);
            } else {
                missing.push(subject.name.clone());
            }
        }
        if subjects.is_empty() {
            bail!("no subject is scored: there is no table yet");
        }
        let groups = table::groups(&subjects).into_iter();
        let curves: Vec<Curve> = groups
            .map(|(name, subjects)| Curve::of(&name, &subjects))
            .collect::<Result<_>>()?;
        let text = table::render(&Contents {
            subjects: &subjects,
            missing: &missing,
            methods: self.methods,
            run: &self.spec.run,
            command,
            curves: &curves,
        })?;
        let write = |name: &str, text: &str| {
            write_atomic(&self.out.join(name), text.as_bytes()).into_diagnostic()
        };
        write("premise.csv", &premise::csv(&curves)?)?;
        write("premise.svg", &premise_plot::svg(&curves)?)?;
        write("table.md", &text)?;
        answer(&text);
        Ok(())
    }
}

/// The prompts that have no line, in order.
fn waiting<'a>(set: &'a PromptSet, lines: &Lines, model: Model) -> Vec<&'a str> {
    let wanted = |prompt: &&Prompt| model == Model::Suspect || !prompt.role.calibrates();
    set.prompts
        .iter()
        .filter(wanted)
        .filter(|prompt| !lines.contains_key(&(model, prompt.text.clone())))
        .map(|prompt| prompt.text.as_str())
        .collect()
}

/// The hashes of all files of a kind in some folders of a model, in order.
fn hashes(dir: &Path, folders: &[&str], extension: &str) -> Result<String> {
    let mut all = Vec::new();
    for folder in folders {
        let entries = std::fs::read_dir(dir.join(folder))
            .into_diagnostic()
            .wrap_err_with(|| format!("cannot list {folder} of {}", dir.display()))?;
        let mut paths: Vec<PathBuf> = Vec::new();
        for entry in entries {
            let path = entry.into_diagnostic()?.path();
            if path.extension().is_some_and(|found| found == extension) {
                paths.push(path);
            }
        }
        paths.sort();
        for path in paths {
            all.push(sha256_file(&path, None).into_diagnostic()?);
        }
    }
    Ok(all.join("+"))
}
