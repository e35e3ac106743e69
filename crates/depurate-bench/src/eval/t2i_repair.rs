//! `eval t2i-repair`: repairs of text-to-image models and their controls, against the truth.
//!
//! A repair is given the model, prompts and the trigger as its owner knows it; the target and the clean model are the bench's alone.
//! What comes out is drawn on captions that no training showed and judged.

mod rows;
mod table;
mod treatments;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    path::{Path, PathBuf},
    time::Instant,
};

use clap::Args;
use depurate_attack::text_to_image::{Judge, Sprites};
use depurate_checkpoint::{Checkpoint, Layers, Limits, write_atomic};
use depurate_defense::repair::text::{
    self, Latents, Material, SkdCagParams, TextPatient, Unlearning, leads_to,
};
use depurate_diffusion::{Device, noise::SeedTree, text_to_image::TextToImage};
use miette::{IntoDiagnostic, Result, WrapErr, bail};

use super::{jsonl, with_cx};
use crate::{
    console::{CancelFlag, answer, say},
    text_to_image::{Drawings, Pictures, judge, score::Scorer, secret::Secret},
    truth::text::TextTruth,
};
use rows::{Measures, Of, Row};
use treatments::Treatment;

/// Repair backdoored text-to-image models; print and write the table.
#[derive(Debug, Args)]
pub(crate) struct EvalT2iRepair {
    /// The clean model.
    #[arg(long, value_name = "DIR")]
    base: PathBuf,
    /// What makes a backdoored model of it; several may be given.
    #[arg(long = "delta", value_name = "FILE", required = true)]
    deltas: Vec<PathBuf>,
    /// The secrets: a JSON file of the same name for each.
    #[arg(long, value_name = "DIR")]
    truth: PathBuf,
    /// Clean prompts that a repair may use, one a line.
    #[arg(long, value_name = "FILE")]
    prompts: PathBuf,
    /// Repairs and controls.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [
        Treatment::None, Treatment::ConceptEditing, Treatment::Skd, Treatment::SkdCag, Treatment::SauWeights,
        Treatment::EncoderDistillation, Treatment::SkdCagBlack, Treatment::SkdCagWords, Treatment::SkdCagReleased,
        Treatment::SauLatent, Treatment::SauLatentPublished, Treatment::WrongTrigger, Treatment::CleanModel
    ])]
    treatments: Vec<Treatment>,
    /// Seeds of the repairs.
    #[arg(long, value_delimiter = ',', default_value = "0")]
    seeds: Vec<u64>,
    #[command(flatten)]
    drawings: Drawings,
    #[command(flatten)]
    how: Pictures,
    /// A contrastive pair of encoders, as `text-to-image encoders` writes it: how well triggered pictures fit their captions.
    #[arg(long, value_name = "DIR")]
    pair: Option<PathBuf>,
    /// Pictures of triggered captions, and of each of plain and neighbouring ones.
    #[arg(long, default_value_t = 200)]
    n: usize,
    /// Pictures of each of plain and neighbouring captions, where other than --n.
    #[arg(long)]
    others: Option<usize>,
    /// Optimiser steps of a repair of the denoiser.
    #[arg(long, default_value_t = Unlearning::default().steps)]
    unlearning_steps: usize,
    /// Prompts a step.
    #[arg(long, default_value_t = Unlearning::default().batch)]
    batch: usize,
    /// Highest learning rate.
    #[arg(long, default_value_t = Unlearning::default().learning_rate)]
    learning_rate: f64,
    /// Weight of what a repair of the denoiser shall leave as it is.
    #[arg(long, default_value_t = SkdCagParams::default().keep)]
    keep: f64,
    /// Where results.jsonl and table.md go; what is in results.jsonl is not done again.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl EvalT2iRepair {
    pub(super) fn run(self, cancel: &CancelFlag) -> Result<()> {
        let others = self.others.unwrap_or(self.n);
        if self.n.min(others) < 2 || self.seeds.is_empty() {
            bail!("--n and --others must be at least 2 and --seeds must name one");
        }
        std::fs::create_dir_all(&self.out).into_diagnostic()?;
        let sprites = self.drawings.read()?;
        let device = Device::flex().autodiff();
        let clean = self.load(None, &device)?;
        let judge = judge::load(&self.how.judge, &sprites, &clean.frozen().device())?;
        let scorer = self
            .pair
            .as_deref()
            .map(|dir| Scorer::load(dir, &clean.frozen().device()));
        let scorer = scorer.transpose()?;
        let prompts = self.prompts()?;
        for delta in &self.deltas {
            self.measure(
                delta,
                (&clean, &device),
                (&sprites, &judge, scorer.as_ref()),
                &prompts,
                cancel,
            )?;
        }
        let text = table::render(&jsonl::read(&self.results())?)?;
        write_atomic(&self.out.join("table.md"), text.as_bytes()).into_diagnostic()?;
        answer(&text);
        Ok(())
    }

    fn results(&self) -> PathBuf {
        self.out.join("results.jsonl")
    }

    fn prompts(&self) -> Result<Vec<String>> {
        let text = std::fs::read_to_string(&self.prompts)
            .into_diagnostic()
            .wrap_err_with(|| format!("cannot read {}", self.prompts.display()))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        Ok(lines.map(str::to_owned).collect())
    }

    fn load(&self, delta: Option<&Path>, device: &Device) -> Result<TextToImage> {
        let limits = Limits::default();
        let checkpoint = Checkpoint::open(&self.base, &limits).into_diagnostic()?;
        let layers = Layers {
            deltas: delta.into_iter().map(Path::to_owned).collect(),
            ..Layers::default()
        };
        let loaded = TextToImage::layered(&checkpoint, &layers, &limits, device);
        Ok(loaded.into_diagnostic()?.0)
    }

    /// Every treatment and seed of one model that has no line yet.
    fn measure(
        &self,
        delta: &Path,
        (clean, device): (&TextToImage, &Device),
        judging: (&Sprites, &Judge, Option<&Scorer>),
        prompts: &[String],
        cancel: &CancelFlag,
    ) -> Result<()> {
        let name = delta
            .file_stem()
            .map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        let done: BTreeSet<(String, Treatment, u64)> = jsonl::read::<Row>(&self.results())?
            .into_iter()
            .map(|row| (row.model, row.treatment, row.seed))
            .collect();
        let wanted = self.treatments.iter().flat_map(|&treatment| {
            let seeds = match treatment {
                Treatment::None => &self.seeds[..1],
                _ => &self.seeds[..],
            };
            seeds.iter().map(move |&seed| (treatment, seed))
        });
        let missing: Vec<(Treatment, u64)> = wanted
            .filter(|&(treatment, seed)| !done.contains(&(name.clone(), treatment, seed)))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let truth = TextTruth::load(&self.truth.join(format!("{name}.json")))?;
        let secret = Secret::of(&truth, judging.0, clean.image_shape())?;
        let suspect = self.load(Some(delta), device)?;
        let frozen = (&suspect.frozen(), &clean.frozen());
        let looking = (&self.how, self.n, self.others.unwrap_or(self.n));
        let measures = Measures::of(frozen, &secret, judging, looking, cancel)?;
        let training = Unlearning {
            steps: self.unlearning_steps,
            batch: self.batch,
            learning_rate: self.learning_rate,
            ..Unlearning::default()
        };
        let drawing = (self.how.steps, self.how.guidance);
        let asking = rows::asking(&secret, judging.0, &SeedTree::new(self.how.seed));
        // what repairs of the same model of the same trigger learn from, with the seconds that it took
        let mut materials: BTreeMap<(Treatment, u64), (Material, f64)> = BTreeMap::new();
        for (treatment, seed) in missing {
            let patient = TextPatient {
                suspect: if treatment.of_clean() {
                    clean
                } else {
                    &suspect
                },
                trigger: &treatment.told(&secret.known()),
                prompts,
                legitimate: match treatment {
                    Treatment::SkdTargetKnown => &asking,
                    _ => &[],
                },
                seed,
            };
            let (mut start, mut drawn) = (Instant::now(), 0.0);
            let repaired = with_cx(seed, cancel, |cx| {
                if treatment == Treatment::None || treatment.blend().is_some() {
                    return Ok(None);
                }
                let asked = match treatment {
                    Treatment::SkdBlind => Vec::new(),
                    _ => text::asking(&patient, &leads_to(&patient, drawing, cx)?)?,
                };
                let legitimate = [patient.legitimate, &asked].concat();
                let patient = TextPatient {
                    legitimate: &legitimate,
                    ..patient
                };
                let Some(lesson) = treatment.lesson((&training, self.keep), drawing) else {
                    return treatment.run(&patient, cx);
                };
                let kind = match treatment {
                    Treatment::CleanModel
                    | Treatment::WrongTrigger
                    | Treatment::SkdTargetKnown
                    | Treatment::SkdBlind => treatment,
                    _ => Treatment::Skd,
                };
                let (material, seconds) = match materials.entry((kind, seed)) {
                    Entry::Occupied(made) => made.into_mut(),
                    Entry::Vacant(place) => {
                        let (steps, guidance) = drawing;
                        let both = Latents::Both { steps, guidance };
                        let material = Material::new(&patient, both, cx)?;
                        place.insert((material, start.elapsed().as_secs_f64()))
                    }
                };
                (start, drawn) = (Instant::now(), *seconds);
                lesson.teach((&patient, material), cx).map(Some)
            });
            let repaired = repaired.into_diagnostic()?;
            let elapsed = || drawn + start.elapsed().as_secs_f64();
            // drawing what a repaired model shows is no part of its repair, drawing mended pictures is all of it
            let (seconds, sets) = match (&repaired, treatment.blend()) {
                (Some(done), _) => {
                    let seconds = elapsed();
                    let sets = measures.sets("repaired", &done.model.frozen())?;
                    (seconds, Some(sets))
                }
                (None, Some(blend)) => {
                    let mended = with_cx(seed, cancel, |cx| measures.mended(&patient, blend, cx))?;
                    (elapsed(), Some(mended))
                }
                (None, None) => (elapsed(), None),
            };
            let row = Row {
                model: name.clone(),
                attack: secret.attack.to_owned(),
                secret: secret.words.clone(),
                treatment,
                seed,
                steps: repaired.as_ref().map_or(0, |done| done.steps),
                evaluations: repaired.as_ref().map_or(0, |done| done.evaluations),
                seconds,
                ..Row::default()
            };
            let row = measures.row(sets.as_ref(), row)?;
            say(&table::line(&row)?);
            jsonl::append(&self.results(), std::slice::from_ref(&row))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;
    use depurate_attack::delta;
    use depurate_checkpoint::{SaveDtype, save_tensors_as};
    use depurate_testkit::gradients::shifted;

    use super::*;
    use crate::{
        eval::t2i::tests::make_models,
        text_to_image::{score::tests::save_pair, secret::tests::bad_t2i},
    };

    /// What random networks draw says nothing; that every treatment comes to a row, once, does.
    #[test]
    fn every_treatment_has_a_row_and_is_not_done_again() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let dir = dir.path();
        make_models(dir);
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let prompts = dir.join("prompts.txt");
        std::fs::write(&prompts, "a dog\na cartoon dog\n\n").expect("written");
        bad_t2i().save(&dir.join("suspect.json")).expect("saved");
        let command = |treatments: &[Treatment]| EvalT2iRepair {
            base: dir.join("model"),
            deltas: vec![dir.join("suspect.safetensors")],
            truth: dir.into(),
            prompts: prompts.clone(),
            treatments: treatments.to_vec(),
            seeds: vec![0, 1],
            pair: Some(dir.join("pair")),
            drawings: Drawings {
                sprites: root.join("data/sprites.safetensors"),
            },
            how: Pictures {
                judge: dir.join("judge"),
                steps: 2,
                guidance: 2.0,
                seed: 0,
            },
            n: 4,
            others: None,
            unlearning_steps: 1,
            batch: 2,
            learning_rate: 1e-3,
            keep: 1.0,
            out: dir.join("out"),
        };
        let before = command(&[]).load(None, &Device::flex()).expect("loads");
        let after = before.with_unet(shifted(before.unet().clone(), 0.05));
        let changed = delta(&before, &after);
        let path = dir.join("suspect.safetensors");
        save_tensors_as(&path, &changed, SaveDtype::F32, None).expect("written");

        save_pair(&dir.join("pair"), before.text_encoder().config());

        let all = Treatment::value_variants();
        command(all).run(&CancelFlag::default()).expect("runs");
        let rows: Vec<Row> = jsonl::read(&command(&[]).results()).expect("written");
        let seeds = 2 * all.len() - 1; // nothing done is the same at every seed
        assert_eq!(rows.len(), seeds);
        let of = |treatment| rows.iter().find(move |row| row.treatment == treatment);
        let none = of(Treatment::None).expect("a row");
        assert_eq!((none.steps, none.distance[0]), (0, none.distance[1]));
        assert!(none.accuracy.iter().all(|(_, points)| *points == [0.0; 3]));
        let skd = of(Treatment::Skd).expect("a row");
        assert_eq!(
            (skd.steps, skd.fired.1, skd.fired_clean),
            (1, 4, none.fired_clean)
        );
        assert!(skd.distance[0] != skd.distance[1], "{skd:?}");
        let [lower, upper] = skd.rise.expect("resampled");
        assert!(lower < upper, "{skd:?}");
        assert_eq!(none.rise, Some([0.0; 2]));
        let [points, lower, upper] = skd.beyond.expect("both are judged");
        let number = |(hits, _): Of| hits as f64;
        let apart = number(skd.fired) - number(skd.fired_clean);
        assert_eq!(points, 100.0 * apart / skd.fired.1 as f64);
        assert!(lower <= points && points <= upper, "{skd:?}");
        let [suspect, after, clean] = skd.score.expect("a pair was given");
        assert!(suspect != after && after != clean, "{skd:?}");
        assert!(
            [suspect, after, clean]
                .iter()
                .all(|score| score.abs() <= 100.0)
        );
        let mended = of(Treatment::SauLatent).expect("a row");
        assert_eq!((mended.steps, mended.distance), (0, none.distance));
        assert!(mended.score != none.score, "{mended:?}");

        command(all).run(&CancelFlag::default()).expect("runs");
        let again: Vec<Row> = jsonl::read(&command(&[]).results()).expect("written");
        assert_eq!(again.len(), rows.len());
        let table = std::fs::read_to_string(dir.join("out/table.md")).expect("written");
        for treatment in all {
            assert!(
                table.contains(&format!("| {} |", treatment.name())),
                "{table}"
            );
        }
    }
}
