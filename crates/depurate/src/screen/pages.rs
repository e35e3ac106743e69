//! A folder of pages: a screened prompt's curves, maps and scores, to be looked at.

use std::path::Path;

use depurate_checkpoint::write_atomic;
use depurate_defense::detect::input_level::{
    evolution::{BenignBand, Evolution},
    unicode::UnicodeFinding,
};
use depurate_report::{
    Band, CheckSummary, Evidence, Picture, Png, PromptPage, ResponseCurve, Series, Table,
    render_curve_svg, render_prompt_html,
};

use super::{
    Screened, Screener, Screening,
    map_pictures::MapPictures,
    token_text::{names, visible},
};
use crate::Error;

/// Writes what there is to see of a prompt into `dir`: `prompt-0001.html`, which holds all of it, and beside it the curve as
/// `-evolution.svg`, the maps at some calls as `-maps.png` and over all as `-animation.png`. The number is that of the line.
///
/// # Errors
/// When something cannot be rendered or written.
pub fn write_page(dir: &Path, screener: &Screener, screened: &Screened) -> Result<(), Error> {
    let base = format!("prompt-{:04}", screened.screening.line);
    let file = |suffix: &str| dir.join(format!("{base}{suffix}"));
    let run = screener.model().run();
    let tokens = screened.tokens.as_ref();
    let names = tokens.map_or(Vec::new(), |tokens| {
        names(run.pipeline().tokenizer(), tokens)
    });
    let mut evidence = Vec::new();
    let mut pictures = Vec::new();
    if !screened.screening.unicode.is_empty() {
        evidence.push(characters(&screened.screening.unicode).into());
    }
    if !screened.maps.is_empty() {
        let evolution = Evolution::of(&screened.maps);
        let relative = relative_change(&evolution, screener.band());
        if let Some(svg) = render_curve_svg(&relative)? {
            write_atomic(&file("-evolution.svg"), svg.as_bytes())?;
        }
        evidence.push(Evidence::from(relative));
        evidence.push(shares(&evolution).into());
        let drawn = MapPictures::new(&screened.maps, run.timesteps(), &names);
        let (strips, animation) = (drawn.strips()?, drawn.animation()?);
        write_atomic(&file("-maps.png"), &strips)?;
        write_atomic(&file("-animation.png"), &animation)?;
        pictures.push(Picture {
            title: "Attention to each token at some calls".into(),
            caption: "One row a token, one column a call of the UNet; t is its training timestep. Light is much attention. Each \
                token has its own scale, written on the right."
                .into(),
            png: Png::from_bytes(&strips)?,
        });
        pictures.push(Picture {
            title: "Attention to each token over all calls".into(),
            caption: "The same maps as an animation, from almost pure noise to the image.".into(),
            png: Png::from_bytes(&animation)?,
        });
    }
    let page = page(screener, &screened.screening, &names, evidence, pictures)?;
    write_atomic(&file(".html"), render_prompt_html(&page)?.as_bytes())?;
    Ok(())
}

fn page(
    screener: &Screener,
    screening: &Screening,
    names: &[String],
    evidence: Vec<Evidence>,
    pictures: Vec<Picture>,
) -> Result<PromptPage, Error> {
    let checks = screening.detectors.iter().map(|outcome| CheckSummary {
        detector: outcome.detector.to_string(),
        verdict: outcome.verdict,
        score: outcome.score,
        threshold: outcome.threshold,
        stated_fpr: outcome.stated_fpr,
        p_value: outcome.p_value,
        reason: outcome.reason.clone(),
    });
    let rate = match screening.stated_fpr {
        Some(rate) => format!(
            "Of benign prompts like those of the calibration, at most {:.2} % get above a threshold: the sum of the stated rates of \
             the calibrated checks. The rate holds on average over calibrations.",
            100.0 * rate
        ),
        None => "No false-positive rate is stated: no score was held against a calibration that has prompts of this length.".into(),
    };
    let calls = match (screening.unet_calls, screening.score_calls) {
        (0, _) => "The model was not run on this prompt.".into(),
        (made, needed) => format!(
            "For these pictures {made} calls of the UNet were made, which is a whole run; the scores depend on the first {needed} \
             of them, and without a report only those are made."
        ),
    };
    let json = serde_json::to_string_pretty(screening).map_err(|source| Error::Json {
        what: "a result",
        source,
    })?;
    Ok(PromptPage {
        verdict: screening.verdict,
        prompt: screening.prompt.as_deref().map(visible).unwrap_or_default(),
        why: screening.reason.clone(),
        checks: checks.collect(),
        rate,
        calls,
        evidence,
        pictures,
        facts: facts(screener, names),
        json,
        made_by: format!("depurate {}", crate::VERSION),
    })
}

fn facts(screener: &Screener, names: &[String]) -> Vec<(String, String)> {
    let setting = screener.model().setting();
    let sites = &setting.sites;
    let calls = setting.timesteps.len();
    let facts = [
        ("tokens", names.join(" | ")),
        ("sampler", setting.scheduler.clone()),
        ("calls of a whole run", calls.to_string()),
        ("guidance", setting.guidance.to_string()),
        ("seed", setting.seed.to_string()),
        ("latent", format!("{} x {}", setting.size.0, setting.size.1)),
        (
            "attention layers",
            format!(
                "at 1/{} of the latent's side, on the way down and up",
                sites.reduction
            ),
        ),
        ("sha256 of the model", setting.model_sha256.clone()),
    ];
    let facts = facts.into_iter().filter(|(_, value)| !value.is_empty());
    facts
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// How EOS changes against the content, with the band of benign prompts.
fn relative_change(evolution: &Evolution, band: Option<&BenignBand>) -> ResponseCurve {
    let line = |label: String, values: &mut dyn Iterator<Item = f64>| Series {
        label,
        points: values
            .enumerate()
            .map(|(t, value)| (t as f64, value))
            .collect(),
    };
    let mut own = evolution.relative_change.iter().copied();
    let mut series = vec![line("this prompt".into(), &mut own)];
    let mut caption = "At each change from one call of the UNet to the next: how much more the map of EOS changes than those of the \
        content do on average. Under a trigger EOS is expected to change less, early on; daa-i sums changes 3 and 4."
        .to_owned();
    let strip = band.map(|band| {
        let [lowest, .., highest] = depurate_defense::detect::input_level::evolution::BAND_LEVELS;
        let median = |quantiles: &[f64; 5]| quantiles[2];
        let mut medians = band.relative_change.iter().map(median);
        series.push(line("median of benign prompts".into(), &mut medians));
        let points = band.relative_change.iter().enumerate();
        let share = 100.0 * (highest - lowest);
        caption.push_str(
            " The band is one of single points: a benign curve leaves it somewhere more often than at one change.",
        );
        if band.relative_change.len() < evolution.relative_change.len() {
            caption.push_str(" It covers the calls that the calibration made.");
        }
        Band {
            label: format!("{share:.0} % of {} benign prompts, at each change", band.n),
            points: points
                .map(|(t, quantiles)| (t as f64, quantiles[0], quantiles[4]))
                .collect(),
        }
    });
    if strip.is_none() {
        caption.push_str(" No calibration was given, so there is no band of benign prompts.");
    }
    ResponseCurve {
        title: "EOS against the content, change by change".into(),
        caption,
        x_label: "change t, from call t to call t + 1".into(),
        y_label: "change of EOS's map less the mean change of the content's".into(),
        series,
        band: strip,
    }
}

/// How much of the attention EOS and the content draw.
fn shares(evolution: &Evolution) -> ResponseCurve {
    let line = |label: &str, values: &[f64]| Series {
        label: label.into(),
        points: values
            .iter()
            .enumerate()
            .map(|(t, value)| (t as f64, *value))
            .collect(),
    };
    ResponseCurve {
        title: "Share of the attention, call by call".into(),
        caption:
            "Mean over the pixels of a map. What is missing to 1 goes to BOS and to the padding."
                .into(),
        x_label: "call of the UNet".into(),
        y_label: "share of the attention".into(),
        series: vec![
            line("EOS", &evolution.eos_share),
            line("mean of the content's tokens", &evolution.content_share),
        ],
        band: None,
    }
}

fn characters(findings: &[UnicodeFinding]) -> Table {
    let row = |finding: &UnicodeFinding| {
        let kind = serde_json::to_value(finding.kind).unwrap_or_default();
        vec![
            finding.position.to_string(),
            finding.code_point.clone(),
            finding.name.clone().unwrap_or_default(),
            kind.as_str().unwrap_or_default().replace('_', " "),
            finding.looks_like.clone().unwrap_or_default(),
            finding.confidence.to_string(),
        ]
    };
    Table {
        title: "Unusual characters".into(),
        columns: [
            "place",
            "code point",
            "name",
            "what",
            "looks like",
            "confidence",
        ]
        .map(str::to_owned)
        .to_vec(),
        rows: findings.iter().map(row).collect(),
    }
}
