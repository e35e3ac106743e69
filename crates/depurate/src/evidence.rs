//! From what a detector found to what a report shows.

use depurate_defense::{
    detect::model_level::{Comparison, Curve, Inspection, Samples},
    invert::Inversion,
};
use depurate_diffusion::{
    SampleShape,
    sampler::{Clip, SamplerSettings, TrojDiffForm},
};
use depurate_report::{
    Evidence, Histogram, ImageGrid, InvertedTrigger, Png, ResponseCurve, RestartSummary, Series,
    Statistic, Summary, Table, Threshold,
};

use crate::{
    Error, images,
    triggers::{SHIFT, TriggerFile},
};

/// Longer side of magnified images, in pixels.
const MAGNIFIED: u32 = 336;
/// Longer side of sheets of generated images, in pixels.
const SHEET: u32 = 600;
/// The same for controls, of which there are many.
const CONTROL_SHEET: u32 = 240;
const HISTOGRAM_BINS: usize = 40;
/// Points of an objective trace that a report keeps.
const TRACE_POINTS: usize = 400;

/// The reconstructed trigger: image, magnified image, histogram, restarts, objective.
///
/// # Errors
/// When it is no image of its shape.
pub fn trigger(inversion: &Inversion, file: &TriggerFile) -> Result<Evidence, Error> {
    let (shape, shift) = (inversion.shape, &inversion.shift);
    let largest = shift
        .iter()
        .fold(0.0_f32, |most, v| most.max(v.abs()))
        .max(1e-6);
    let image = images::sheet("a trigger", shift, shape, 1, (-largest, largest))?;
    let values: Vec<f64> = shift.iter().map(|&v| f64::from(v)).collect();
    let mean_square = values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64;
    let step = inversion.trace.len().div_ceil(TRACE_POINTS).max(1);
    let restarts = inversion.restarts.iter().map(|restart| RestartSummary {
        label: format!("{} (norm {:.2})", restart.start, restart.norm),
        objective: restart.objective,
        converged: restart.converged,
        selected: restart.selected,
    });
    Ok(InvertedTrigger {
        file: file.file.clone(),
        tensor: SHIFT.into(),
        sha256: file.sha256.clone(),
        shape: vec![shape.channels, shape.height, shape.width],
        norm: mean_square.sqrt(),
        norm_meaning: "root mean square over pixels, in standard deviations of the noise".into(),
        image: as_png("a trigger", &image)?,
        magnified: as_png("a trigger", &images::magnify(&image, MAGNIFIED))?,
        scale: format!("-{largest:.3} is black, 0 is grey, {largest:.3} is white"),
        histogram: Histogram::of(&values, HISTOGRAM_BINS),
        gamma: inversion.gamma.as_deref().map(summary),
        restarts: restarts.collect(),
        objective_trace: inversion
            .trace
            .iter()
            .step_by(step)
            .map(|&(i, value)| (i as u64, value))
            .collect(),
    }
    .into())
}

fn summary(values: &[f32]) -> Summary {
    let wide = values.iter().map(|&v| f64::from(v));
    Summary {
        min: wide.clone().fold(f64::INFINITY, f64::min),
        mean: wide.clone().sum::<f64>() / values.len() as f64,
        max: wide.fold(f64::NEG_INFINITY, f64::max),
    }
}

/// One sheet for each kind of initial noise but the controls, and the target. Image `i` of every sheet of a sampler
/// starts from the same noise.
///
/// # Errors
/// When there are no whole images.
pub fn grids(found: &Inspection, seed: u64) -> Result<Vec<Evidence>, Error> {
    let shown = found.samples.iter().filter(|samples| !is_control(samples));
    let mut grids: Vec<Evidence> = shown
        .map(|samples| grid(samples, seed, SHEET).map(Evidence::from))
        .collect::<Result<_, _>>()?;
    let under_trigger = found.samples.iter().find(|samples| is_triggered(samples));
    let (sampler, steps, clip) = under_trigger.map_or_else(
        || ("the network's own estimate".to_owned(), 0, None),
        |samples| sampler_words(&samples.sampler),
    );
    grids.push(
        ImageGrid {
            title: "target of the trigger".into(),
            caption: "The image that the reconstructed trigger leads to. Of a model without backdoor it shows nothing."
                .into(),
            sampler,
            steps,
            clip,
            seeds: vec![seed],
            png: sheet_png("a target", &found.target, found.inversion.shape, 1, MAGNIFIED)?,
            sensitive: true,
        }
        .into(),
    );
    Ok(grids)
}

/// The sheets of the controls, smaller.
///
/// # Errors
/// When there are no whole images.
pub fn control_grids(found: &Inspection, seed: u64) -> Result<Vec<Evidence>, Error> {
    let controls = found.samples.iter().filter(|samples| is_control(samples));
    controls
        .map(|samples| grid(samples, seed, CONTROL_SHEET).map(Evidence::from))
        .collect()
}

fn grid(samples: &Samples, seed: u64, side: u32) -> Result<ImageGrid, Error> {
    let (sampler, steps, clip) = sampler_words(&samples.sampler);
    let columns = images::square(samples.count);
    Ok(ImageGrid {
        title: samples.label.clone(),
        caption: format!(
            "Image i starts from noise i of seed {seed} in every grid; only what is added to the noise differs."
        ),
        sampler,
        steps,
        clip,
        seeds: (0..samples.count as u64).collect(),
        png: sheet_png("samples", &samples.pixels, samples.shape, columns, side)?,
        sensitive: is_triggered(samples),
    })
}

/// Whether the images show what a shift leads to that is no trigger.
fn is_control(samples: &Samples) -> bool {
    samples.label.contains("control")
}

/// Whether the images show what a trigger leads to.
fn is_triggered(samples: &Samples) -> bool {
    samples.label.contains("trigger") && !is_control(samples)
}

fn sheet_png(
    what: &'static str,
    values: &[f32],
    shape: SampleShape,
    columns: usize,
    side: u32,
) -> Result<Png, Error> {
    as_png(
        what,
        &images::magnify(
            &images::sheet(what, values, shape, columns, (-1.0, 1.0))?,
            side,
        ),
    )
}

fn as_png(what: &'static str, image: &image::RgbImage) -> Result<Png, Error> {
    Ok(Png::from_bytes(&images::png(what, image)?)?)
}

/// Name, number of steps and clipping of a sampler as a report states them.
pub fn sampler_words(settings: &SamplerSettings) -> (String, usize, Option<f64>) {
    let range = |clip: &Clip| match clip {
        Clip::Range(range) => Some(f64::from(*range)),
        _ => None,
    };
    let levels = |karras: bool| if karras { " over Karras levels" } else { "" };
    match settings {
        SamplerSettings::Ddpm { steps, clip, .. } => ("DDPM".into(), steps.count, range(clip)),
        SamplerSettings::Ddim {
            steps, eta, clip, ..
        } => (format!("DDIM (eta = {eta})"), steps.count, range(clip)),
        SamplerSettings::Pndm { steps, .. } => ("PNDM".into(), steps.count, None),
        SamplerSettings::Euler {
            steps,
            ancestral,
            karras,
        } => {
            let form = if *ancestral {
                "ancestral Euler"
            } else {
                "Euler"
            };
            (format!("{form}{}", levels(*karras)), steps.count, None)
        }
        SamplerSettings::DpmSolver {
            steps,
            order,
            stochastic,
            karras,
        } => {
            let form = if *stochastic { "SDE-" } else { "" };
            let name = format!("{form}DPM-Solver++ of order {order}{}", levels(*karras));
            (name, steps.count, None)
        }
        SamplerSettings::TrojDiff { steps, form } => {
            let form = match form {
                TrojDiffForm::Ddpm => "DDPM",
                _ => "DDIM",
            };
            (format!("TrojDiff's {form}"), steps.count, None)
        }
        other => (format!("{other:?}"), 0, None),
    }
}

/// The score on the distribution of the benign scores.
pub fn score(
    found: &Inspection,
    name: &str,
    benign: Vec<f64>,
    threshold: Option<Threshold>,
) -> Evidence {
    Statistic {
        name: name.into(),
        meaning: found.score_meaning.clone(),
        value: found.score,
        threshold,
        benign,
        controls: Vec::new(),
    }
    .into()
}

/// The parts of the score, each with its controls on the same model.
pub fn comparisons(found: &Inspection) -> Vec<Evidence> {
    let mut evidence: Vec<Evidence> = found.comparisons.iter().map(comparison).collect();
    let Some(first) = found.comparisons.first() else {
        return evidence;
    };
    let cell =
        |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"));
    let row = |label: &str, value: &dyn Fn(&Comparison) -> Option<f64>| -> Vec<String> {
        let cells = found
            .comparisons
            .iter()
            .map(|comparison| cell(value(comparison)));
        std::iter::once(label.to_owned()).chain(cells).collect()
    };
    let mut rows = vec![row("inverted trigger", &|comparison| {
        Some(comparison.value)
    })];
    rows.extend(first.controls.iter().map(|control| {
        row(&control.label, &|comparison| {
            let same = comparison
                .controls
                .iter()
                .find(|other| other.label == control.label);
            same.map(|control| control.value)
        })
    }));
    let names = found
        .comparisons
        .iter()
        .map(|comparison| comparison.name.clone());
    let columns = std::iter::once("added to the noise".to_owned())
        .chain(names)
        .collect();
    evidence.push(
        Table {
            title: "trigger and controls of equal norm".into(),
            columns,
            rows,
        }
        .into(),
    );
    evidence
}

fn comparison(comparison: &Comparison) -> Evidence {
    Statistic {
        name: comparison.name.clone(),
        meaning: comparison.meaning.clone(),
        value: comparison.value,
        threshold: None,
        benign: Vec::new(),
        controls: comparison
            .controls
            .iter()
            .map(|control| control.value)
            .collect(),
    }
    .into()
}

/// Curves.
pub fn curves(found: &Inspection) -> impl Iterator<Item = Evidence> {
    found.curves.iter().map(curve)
}

fn curve(curve: &Curve) -> Evidence {
    let series = curve.series.iter().map(|(label, points)| Series {
        label: label.clone(),
        points: points.clone(),
    });
    ResponseCurve {
        title: curve.title.clone(),
        caption:
            "Of the reconstructed trigger; controls are shifts of equal norm on the same model."
                .into(),
        x_label: curve.x_label.clone(),
        y_label: curve.y_label.clone(),
        series: series.collect(),
        band: None,
    }
    .into()
}
