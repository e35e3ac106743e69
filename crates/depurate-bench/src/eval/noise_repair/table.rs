//! The table of `eval noise-repair`.

use std::fmt::Write as _;

use depurate_defense::repair::replay::{THRESHOLDS, chance};
use depurate_stats::clopper_pearson;
use miette::{IntoDiagnostic, Result};

use super::{MOST_RISE, Row, State, Treatment};

/// An attack works if its success rate at 1e-2 is at least this.
const WORKING: f64 = 0.8;
/// The given trigger must keep this share of the true one's success rate.
const KEPT: f64 = 0.9;
/// Index of 1e-2 in [`THRESHOLDS`].
const MAIN: usize = 1;

impl State {
    fn share(&self, threshold: usize) -> f64 {
        let hits = self.hits.get(threshold).copied().unwrap_or(0);
        hits as f64 / self.n.max(1) as f64
    }

    /// Whether the trigger does not do more than what happens without one: its rate lies within the exact 95 % interval of the
    /// base rate, at every threshold.
    fn gone(&self) -> bool {
        let pairs = self.hits.iter().zip(&self.base_hits);
        pairs
            .into_iter()
            .all(|(&hits, &base)| by_chance(hits, base, self.n))
    }
}

/// Whether `hits` of `n` lie within the exact 95 % interval of a rate of which `base` of `n` were seen.
fn by_chance(hits: usize, base: usize, n: usize) -> bool {
    chance(base, n).is_ok_and(|most| hits as f64 / n.max(1) as f64 <= most)
}

fn share(rows: &[&&Row], hit: &dyn Fn(&Row) -> bool) -> Result<String> {
    let (hits, n) = (rows.iter().filter(|row| hit(row)).count(), rows.len());
    if n == 0 {
        return Ok("none".into());
    }
    let interval = clopper_pearson(hits as u64, n as u64, 0.95).into_diagnostic()?;
    Ok(format!(
        "{hits} of {n} ({:.2}-{:.2})",
        interval.lower, interval.upper
    ))
}

impl Row {
    fn works(&self) -> bool {
        self.secret.is_some() && self.before.share(MAIN) >= WORKING
    }

    /// Whether the trigger that the repair was given works nearly as often as the true one.
    fn recovered(&self) -> bool {
        let given = self.given.as_ref().and_then(|hits| hits.get(MAIN));
        given.is_some_and(|&hits| hits as f64 >= KEPT * self.before.hits[MAIN] as f64)
    }

    /// Relative change of the Fréchet distance.
    fn rise(&self) -> f64 {
        self.after.distance / self.before.distance - 1.0
    }

    /// Whether the trigger does no more than chance after every stretch of clean training.
    fn stays_gone(&self) -> bool {
        let base = self.after.base_hits.get(MAIN).copied().unwrap_or(0);
        self.trained_on
            .iter()
            .all(|point| by_chance(point.hits, base, self.after.n))
    }

    fn name(&self) -> String {
        serde_json::to_value(self.treatment)
            .ok()
            .and_then(|value| value.as_str().map(str::to_owned))
            .unwrap_or_default()
    }
}

/// One row while the evaluation runs.
pub(super) fn line(row: &Row) -> String {
    format!(
        "{} {}: ASR {:.2} to {:.2}, distance {:+.1} %, {} steps, {:.0} s",
        row.model,
        row.name(),
        row.before.share(MAIN),
        row.after.share(MAIN),
        100.0 * row.rise(),
        row.steps,
        row.seconds
    )
}

/// Markdown: a summary a treatment, then every row.
pub(super) fn render(rows: &[Row], attackers_own: bool) -> Result<String> {
    let mut text = String::new();
    if attackers_own {
        text += "**With the attacker's own trigger, which no owner has: an upper bound.**\n\n";
    }
    text += "| treatment | trigger recovered, of working attacks | trigger gone | distance at most 5 % worse | both | new scan sees nothing | gone after 200 clean steps | benign models: largest rise of the distance | median steps | median seconds |\n\
             |---|---|---|---|---|---|---|---|---|---|\n";
    let mut treatments: Vec<Treatment> = rows.iter().map(|row| row.treatment).collect();
    treatments.sort_unstable();
    treatments.dedup();
    for treatment in treatments {
        let of: Vec<&Row> = rows
            .iter()
            .filter(|row| row.treatment == treatment)
            .collect();
        let working: Vec<&&Row> = of.iter().filter(|row| row.works()).collect();
        let share = |hit: &dyn Fn(&Row) -> bool| share(&working, hit);
        let lasting: Vec<&&Row> = working
            .iter()
            .filter(|row| !row.new_scans.is_empty())
            .copied()
            .collect();
        let held = |row: &Row| row.rise() <= MOST_RISE;
        let benign = of.iter().filter(|row| row.secret.is_none());
        let worst = benign.map(|row| row.rise()).fold(f64::NAN, f64::max);
        let median = |value: &dyn Fn(&Row) -> f64| {
            let values: Vec<f64> = of.iter().map(|row| value(row)).collect();
            depurate_stats::median(&values).unwrap_or(f64::NAN)
        };
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {:+.1} % | {:.0} | {:.0} |",
            of.first().map(|row| row.name()).unwrap_or_default(),
            share(&|row| row.recovered())?,
            share(&|row| row.after.gone())?,
            share(&held)?,
            share(&|row| row.after.gone() && held(row))?,
            self::share(&lasting, &|row| row.new_scans.iter().all(|scan| !scan.seen))?,
            self::share(&lasting, &|row| row.stays_gone())?,
            100.0 * worst,
            median(&|row| row.steps as f64),
            median(&|row| row.seconds),
        )
        .into_diagnostic()?;
    }
    let limits: Vec<String> = THRESHOLDS.iter().map(ToString::to_string).collect();
    write!(
        text,
        "\nSuccess of the true trigger at a mean squared error of {}, before → after; `base` is the rate without a trigger after the \
         repair. Distance: Fréchet, features of a small classifier, clean samples to real images.\n\n\
         | model | attack | treatment | given trigger | its effect | success | base | SSIM to the target | distance | samples moved by | new scans | hits after clean steps | images left out | steps | evaluations | s |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
        limits.join(", ")
    )
    .into_diagnostic()?;
    let mut sorted: Vec<&Row> = rows.iter().collect();
    sorted.sort_by_key(|row| (row.kind.clone(), row.model.clone(), row.treatment));
    for row in sorted {
        let rates = |hits: &[usize], n: usize| -> String {
            let cells: Vec<String> = hits
                .iter()
                .map(|&hits| format!("{:.2}", hits as f64 / n.max(1) as f64))
                .collect();
            cells.join(" ")
        };
        let ssim = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.2}"));
        writeln!(
            text,
            "| {} | {}{} | {} | {} | {} | {} → {} | {} | {} → {} | {:.2} → {:.2} ({:+.1} %, {:+.1} to {:+.1}) | {:.4} | {} | {} | {} | {} | {} | {:.0} |",
            row.model,
            row.kind,
            row.secret.as_ref().map_or(String::new(), |secret| format!(": {secret}")),
            row.name(),
            row.given
                .as_ref()
                .map_or("-".into(), |hits| rates(hits, row.before.n)),
            listed(&row.effects, |effect| format!("{effect:.2}")),
            rates(&row.before.hits, row.before.n),
            rates(&row.after.hits, row.after.n),
            rates(&row.after.base_hits, row.after.n),
            ssim(row.before.ssim),
            ssim(row.after.ssim),
            row.before.distance,
            row.after.distance,
            100.0 * row.rise(),
            100.0 * row.rise_interval[0],
            100.0 * row.rise_interval[1],
            row.moved,
            listed(&row.new_scans, |scan| format!("{} {:.2}{}", scan.detector, scan.score, if scan.seen { " **seen**" } else { "" })),
            listed(&row.trained_on, |point| format!("{}: {}", point.steps, point.hits)),
            row.left_out,
            row.steps,
            row.evaluations,
            row.seconds
        )
        .into_diagnostic()?;
    }
    Ok(text)
}

fn listed<T>(items: &[T], text: impl Fn(&T) -> String) -> String {
    if items.is_empty() {
        return "-".into();
    }
    items.iter().map(text).collect::<Vec<_>>().join(", ")
}
