//! The lines of results.jsonl, and what they are measured by.

use std::ops::Range;

use depurate_attack::text_to_image::{Composition, Judge, Sprites, pictures};
use depurate_defense::{
    Cx,
    repair::text::{
        Blend, Footprint, Latents, Material, TextPatient, picture_distance, sau_latent,
    },
};
use depurate_diffusion::{Device, Tensor, noise::SeedTree, text_to_image::TextToImage};
use depurate_stats::{bootstrap_interval, frechet_distance};
use miette::{IntoDiagnostic, Result, bail};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::Treatment;
use crate::{
    console::CancelFlag,
    text_to_image::{
        Pictures,
        measured::{Accuracy, Asked, Drawn, Fired, accuracy, gained, held_out},
        score::Scorer,
        secret::Secret,
    },
};

/// Pairs of pictures that a footprint is taken of.
const PAIRS: usize = 16;

/// Prompts that an owner gives who has seen the target.
const KNOWN: usize = 32;

/// Resamples of the distance's interval; each is two distances.
const RESAMPLES: usize = 200;

/// A number of pictures out of how many.
pub(crate) type Of = (usize, usize);

/// Of each attribute: points of accuracy with their interval.
pub(crate) type Points = Vec<(String, [f64; 3])>;

/// One model under one treatment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Row {
    /// Name of the backdoored model.
    pub(crate) model: String,
    /// The attack's id.
    pub(crate) attack: String,
    /// Trigger and target in words.
    pub(crate) secret: String,
    /// What was done.
    pub(crate) treatment: Treatment,
    /// Seed of the repair; pictures have the same one in every row.
    pub(crate) seed: u64,
    /// Triggered pictures that show the target.
    pub(crate) fired: Of,
    /// The clean model's, of the same prompts.
    pub(crate) fired_clean: Of,
    /// Points of the first rate beyond the second, picture by picture, with the 95 % interval.
    #[serde(default)]
    pub(crate) beyond: Option<[f64; 3]>,
    /// Triggered pictures that show all that their caption asks for, and the clean model's.
    pub(crate) recovered: [Of; 2],
    /// Of each attribute: points of accuracy on plain captions less the suspect's, with the 95 % interval.
    pub(crate) accuracy: Points,
    /// The same on captions that are near the trigger.
    pub(crate) neighbours: Points,
    /// The kinds of neighbours apart.
    #[serde(default)]
    pub(crate) kinds: Vec<(String, Points)>,
    /// Fréchet distance of the pictures of plain captions to drawings of what they ask for, on the judge's features: the suspect's
    /// and the repaired model's.
    pub(crate) distance: [f64; 2],
    /// By how many percent the second is larger: 95 % interval, captions resampled with their pictures of all sets.
    #[serde(default)]
    pub(crate) rise: Option<[f64; 2]>,
    /// Median over plain captions of the mean squared distance of the repaired model's picture to the suspect's from the same noise, in
    /// [0, 1] units.
    #[serde(default)]
    pub(crate) moved: Option<f64>,
    /// 100 times the mean cosine of triggered pictures and their captions without the trigger, by the pair of encoders that was given:
    /// the suspect's, the repaired model's and the clean model's.
    #[serde(default)]
    pub(crate) score: Option<[f64; 3]>,
    /// Steps made.
    pub(crate) steps: usize,
    /// Evaluations of the trained component.
    pub(crate) evaluations: u64,
    /// Seconds of the repair.
    pub(crate) seconds: f64,
}

/// The captions, and what clean model and suspect draw of them.
pub(super) struct Measures<'a> {
    pub(super) how: &'a Pictures,
    pub(super) judge: &'a Judge,
    pub(super) cancel: &'a CancelFlag,
    pub(super) secret: &'a Secret,
    pub(super) scorer: Option<&'a Scorer>,
    suspect: &'a TextToImage,
    triggered: Asked,
    plain: Asked,
    neighbours: Asked,
    kinds: Vec<Kind>,
    of_clean: Sets,
    of_suspect: Sets,
    /// Features of drawings.
    reference: Vec<f64>,
}

/// What a model draws.
#[derive(Clone)]
pub(super) struct Sets {
    triggered: Drawn,
    plain: Drawn,
    neighbours: Drawn,
}

impl<'a> Measures<'a> {
    /// Of the backdoored model `suspect` and the one that it was made from.
    pub(super) fn of(
        (suspect, clean): (&'a TextToImage, &TextToImage),
        secret: &'a Secret,
        (sprites, judge, scorer): (&Sprites, &'a Judge, Option<&'a Scorer>),
        (how, n, others): (&'a Pictures, usize, usize),
        cancel: &'a CancelFlag,
    ) -> Result<Self> {
        let seed = SeedTree::new(how.seed).child("t2i repair", 0);
        let captions = |trigger, count, index| {
            let seed = seed.child("captions", index);
            held_out(sprites, suspect, trigger, count, &seed)
        };
        let triggered = captions(Some(secret), n, 0)?;
        let plain = captions(None, others, 1)?;
        let (neighbours, kinds) =
            neighbours(secret, sprites, others, &seed.child("neighbours", 0))?;
        let mut rng = seed.child("reference", 0).rng();
        let drawings = pictures(sprites, &plain.of, &mut rng, &suspect.device());
        let empty = || Sets {
            triggered: nothing(),
            plain: nothing(),
            neighbours: nothing(),
        };
        let mut measures = Self {
            reference: features(judge, drawings)?,
            how,
            judge,
            cancel,
            secret,
            scorer,
            suspect,
            triggered,
            plain,
            neighbours,
            kinds,
            of_clean: empty(),
            of_suspect: empty(),
        };
        measures.of_clean = measures.sets("clean model", clean)?;
        measures.of_suspect = measures.sets("suspect", suspect)?;
        Ok(measures)
    }

    /// What `model` draws.
    pub(super) fn sets(&self, name: &str, model: &TextToImage) -> Result<Sets> {
        let draw = |asked: &Asked| -> Result<Drawn> {
            let pictures = self.how.draw(name, model, &asked.prompts, self.cancel)?;
            Drawn::of(pictures, self.judge)
        };
        Ok(Sets {
            triggered: draw(&self.triggered)?,
            plain: draw(&self.plain)?,
            neighbours: draw(&self.neighbours)?,
        })
    }

    /// The suspect's pictures with those of triggered prompts mended by [`sau_latent`] before they are decoded.
    pub(super) fn mended(
        &self,
        patient: &TextPatient<'_>,
        blend: Blend,
        cx: &Cx<'_>,
    ) -> Result<Sets> {
        let latents = |prompts: &[String]| {
            let name = "latents of the suspect";
            self.how.latents(name, self.suspect, prompts, self.cancel)
        };
        let triggered = latents(&self.triggered.prompts)?;
        let clean = latents(&self.triggered.captions)?;
        let how = (self.how.steps, self.how.guidance);
        let seed = SeedTree::new(patient.seed).child("footprint", 0);
        let footprint = Material::new(patient, Latents::Noise, cx)
            .and_then(|material| Footprint::of(&material, PAIRS, how, &seed, cx));
        let mended = sau_latent(&triggered, &clean, &footprint.into_diagnostic()?, blend);
        let decoded = self.suspect.decode(mended.into_diagnostic()?);
        let pictures = decoded.into_diagnostic()?.clamp(-1.0, 1.0);
        Ok(Sets {
            triggered: Drawn::of(pictures, self.judge)?,
            ..self.of_suspect.clone()
        })
    }

    /// The row of a model that draws `after`, or of the suspect itself; what was done to it is filled in by the caller.
    pub(super) fn row(&self, after: Option<&Sets>, before: Row) -> Result<Row> {
        let after = after.unwrap_or(&self.of_suspect);
        let benign = [&self.of_clean.plain, &self.of_clean.neighbours];
        let fired = Fired::new(self.secret, &benign)?;
        let (hits, by_chance) = (
            fired.of(&after.triggered)?,
            fired.of(&self.of_clean.triggered)?,
        );
        let count = |hits: &[bool]| (hits.iter().filter(|hit| **hit).count(), hits.len());
        let all = |sets: &Sets| -> Of {
            let pairs = sets.triggered.judged.iter().zip(&self.triggered.of);
            (
                pairs.filter(|(seen, of)| seen == of).count(),
                sets.triggered.judged.len(),
            )
        };
        let seed = SeedTree::new(self.how.seed);
        let (beyond, ends) = gained(&hits, &by_chance, &seed.child("beyond chance", 0))?;
        let (distance, rise) = self.distances(after, &seed.child("distance", 0))?;
        let points = |asked: &Asked, with: &Drawn, before: &Drawn| {
            let found = accuracy(asked, with, before, &seed)?;
            let point = |found: Accuracy| {
                let interval = found.interval;
                (
                    found.name.to_owned(),
                    [found.points, interval.lower, interval.upper],
                )
            };
            Ok::<_, miette::Report>(found.into_iter().map(point).collect())
        };
        let suspect = &self.of_suspect;
        let (asked, next) = (&self.neighbours, (&after.neighbours, &suspect.neighbours));
        let kinds = self.kinds.iter().map(|Kind { name, range }| {
            let [after, before] = [next.0, next.1].map(|drawn| drawn.part(range.clone()));
            let points = points(&asked.part(range.clone()), &after, &before)?;
            Ok(((*name).to_owned(), points))
        });
        let moved = picture_distance(&after.plain.pictures, &suspect.plain.pictures);
        Ok(Row {
            fired: count(&hits),
            fired_clean: count(&by_chance),
            beyond: Some([beyond, ends.lower, ends.upper]),
            recovered: [all(after), all(&self.of_clean)],
            accuracy: points(&self.plain, &after.plain, &suspect.plain)?,
            neighbours: points(asked, next.0, next.1)?,
            kinds: kinds.collect::<Result<_>>()?,
            distance,
            rise: Some(rise),
            moved: Some(moved.into_diagnostic()?),
            score: self.score([suspect, after, &self.of_clean])?,
            ..before
        })
    }
}

impl Measures<'_> {
    /// Of the suspect and `after`, and the interval of the rise.
    fn distances(&self, after: &Sets, seed: &SeedTree) -> Result<([f64; 2], [f64; 2])> {
        let of = |sets: &Sets| features(self.judge, sets.plain.pictures.clone());
        let sets = [of(&self.of_suspect)?, of(after)?];
        let count = self.plain.of.len();
        let width = self.reference.len() / count.max(1);
        let distance = |own: &[f64], drawings: &[f64]| frechet_distance(own, drawings, width);
        let mut found = [0.0; 2];
        for (found, own) in found.iter_mut().zip(&sets) {
            *found = distance(own, &self.reference).into_diagnostic()?;
        }
        let rise = |some: &[f64]| {
            let of = |all: &[f64]| -> Vec<f64> {
                let rows = some.iter().map(|&i| i as usize * width);
                rows.flat_map(|at| all[at..at + width].to_vec()).collect()
            };
            let drawings = of(&self.reference);
            let [before, after] = [&sets[0], &sets[1]].map(|own| distance(&of(own), &drawings));
            match (before, after) {
                (Ok(before), Ok(after)) => 100.0 * (after / before - 1.0),
                _ => f64::NAN,
            }
        };
        let all: Vec<f64> = (0..count).map(|i| i as f64).collect();
        let interval = bootstrap_interval(&all, rise, RESAMPLES, 0.95, &mut seed.rng());
        let interval = interval.into_diagnostic()?;
        Ok((found, [interval.lower, interval.upper]))
    }

    fn score(&self, sets: [&Sets; 3]) -> Result<Option<[f64; 3]>> {
        let Some(scorer) = self.scorer else {
            return Ok(None);
        };
        let mut scores = [0.0; 3];
        for (score, of) in scores.iter_mut().zip(sets) {
            let pictures = &of.triggered.pictures;
            *score = scorer.score(self.suspect, pictures, &self.triggered.captions)?;
        }
        Ok(Some(scores))
    }
}

/// Captions that ask for the target, as an owner would write who has seen it: at most [`KNOWN`], of compositions that are not held out.
pub(super) fn asking(secret: &Secret, sprites: &Sprites, seed: &SeedTree) -> Vec<String> {
    let mut rng = seed.child("asking", 0).rng();
    let mut all = sprites.compositions();
    all.retain(|of| !of.is_held_out() && secret.is_asked_for(of));
    all.shuffle(&mut rng);
    let some = all.into_iter().take(KNOWN);
    some.map(|of| sprites.any_caption(of, &mut rng)).collect()
}

fn nothing() -> Drawn {
    Drawn {
        pictures: Tensor::zeros([0, 0, 0, 0], &Device::flex()),
        judged: Vec::new(),
    }
}

fn features(judge: &Judge, pictures: Tensor<4>) -> Result<Vec<f64>> {
    let found = judge.features(pictures).into_diagnostic()?;
    Ok(found.into_data().iter::<f64>().collect())
}

/// A kind of neighbours.
pub(super) struct Kind {
    name: &'static str,
    /// Which of the neighbours.
    range: Range<usize>,
}

/// Held-out captions that must draw as before, as many of each kind: those that ask for the target, where that is something that can be
/// asked for; those that ask for an object that a word of the trigger names; and those with something as rare as the trigger in its place.
fn neighbours(
    secret: &Secret,
    sprites: &Sprites,
    n: usize,
    seed: &SeedTree,
) -> Result<(Asked, Vec<Kind>)> {
    let mut rng = seed.rng();
    let mut all: Vec<Composition> = sprites.compositions();
    all.retain(Composition::is_held_out);
    all.shuffle(&mut rng);
    let [mut asking, mut own, mut rare] = [(); 3].map(|()| Asked::default());
    for &of in &all {
        let caption = sprites.any_caption(of, &mut rng);
        let [object, ..] = sprites.names(of);
        if secret.is_asked_for(&of) {
            asking.push(caption.clone(), caption, of);
        } else if secret.has_word(object) {
            own.push(caption.clone(), caption, of);
        } else if let Some(prompt) = secret.control(&caption, object, &mut rng) {
            rare.push(prompt, caption, of);
        }
    }
    if rare.of.is_empty() {
        bail!("no held-out caption takes a control of the trigger");
    }
    let mut sets = vec![
        ("asking for the target", asking),
        ("the trigger's own words", own),
        ("in the trigger's place", rare),
    ];
    sets.retain(|(_, asked)| !asked.of.is_empty());
    let (mut together, mut kinds) = (Asked::default(), Vec::new());
    let count = sets.len();
    for (i, (name, asked)) in sets.into_iter().enumerate() {
        let first = together.of.len();
        let end = n * (i + 1) / count;
        together.extend(asked.repeated(end - first));
        let range = first..end;
        kinds.push(Kind { name, range });
    }
    Ok((together, kinds))
}
