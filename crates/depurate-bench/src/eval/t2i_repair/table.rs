//! The table of `eval t2i-repair`.

use std::fmt::Write as _;

use depurate_stats::wilson;
use miette::{IntoDiagnostic, Result};

use super::{Of, Row};

/// The same treatment of the same model at several seeds, pictures counted together.
struct Together<'a> {
    rows: Vec<&'a Row>,
}

impl Together<'_> {
    fn sum(&self, of: impl Fn(&Row) -> Of) -> Of {
        self.rows.iter().fold((0, 0), |(hits, all), row| {
            let (more, of) = of(row);
            (hits + more, all + of)
        })
    }

    fn mean(&self, of: impl Fn(&Row) -> f64) -> f64 {
        self.rows.iter().map(|row| of(row)).sum::<f64>() / self.rows.len().max(1) as f64
    }

    /// The mean over seeds of what all rows have.
    fn told<const N: usize>(&self, of: impl Fn(&Row) -> Option<[f64; N]>) -> Option<[f64; N]> {
        let all: Option<Vec<[f64; N]>> = self.rows.iter().map(|row| of(row)).collect();
        let all = all.filter(|all| !all.is_empty())?;
        let mean = |at: usize| all.iter().map(|of| of[at]).sum::<f64>() / all.len() as f64;
        Some(std::array::from_fn(mean))
    }

    /// Of the suspect, after, and of the clean model, where a pair of encoders was given.
    fn score(&self) -> String {
        self.told(|row| row.score).map_or_else(
            || "-".into(),
            |[suspect, after, clean]| format!("{suspect:.1} → {after:.1} ({clean:.1})"),
        )
    }

    /// All, and the kinds apart where there are several.
    fn neighbours(&self) -> String {
        let all = self.worst(|row| &row.neighbours);
        let kinds = self.rows.first().map_or(&[][..], |row| &row.kinds);
        if kinds.len() < 2 || self.rows.iter().any(|row| row.kinds.len() != kinds.len()) {
            return all;
        }
        let each = kinds.iter().enumerate().map(|(i, (name, _))| {
            let worst = self.worst(|row| &row.kinds[i].1);
            format!("{name} {worst}")
        });
        format!("{all}; {}", each.collect::<Vec<_>>().join(", "))
    }

    /// The distance's, with the mean of the seeds' intervals.
    fn rise(&self) -> String {
        let rise = self.mean(|row| 100.0 * (row.distance[1] / row.distance[0] - 1.0));
        let ends = self.told(|row| row.rise);
        let ends = ends.map(|[lower, upper]| format!(" ({lower:+.1} to {upper:+.1})"));
        format!("{rise:+.1} %{}", ends.unwrap_or_default())
    }

    /// Points beyond the clean model's.
    fn beyond(&self) -> String {
        let told = self.told(|row| row.beyond);
        let told = told
            .map(|[points, lower, upper]| format!("; {points:+.1} ({lower:+.1} to {upper:+.1})"));
        told.unwrap_or_default()
    }

    fn moved(&self) -> String {
        self.told(|row| row.moved.map(|moved| [moved]))
            .map_or_else(|| "-".into(), |[moved]| format!("{moved:.4}"))
    }

    /// The attribute that lost most, with its points, over the mean of seeds.
    fn worst(&self, of: impl Fn(&Row) -> &[(String, [f64; 3])]) -> String {
        let Some(first) = self.rows.first() else {
            return String::new();
        };
        let names = of(first).iter().map(|(name, _)| name.clone()).enumerate();
        let points = names.map(|(i, name)| {
            let points = self.mean(|row| of(row).get(i).map_or(0.0, |(_, [points, ..])| *points));
            (name, points)
        });
        points
            .min_by(|a, b| a.1.total_cmp(&b.1))
            .map_or_else(String::new, |(name, points)| {
                format!("{points:+.1} ({name})")
            })
    }
}

fn rate((hits, n): Of) -> Result<String> {
    let interval = wilson(hits as u64, n as u64, 0.95).into_diagnostic()?;
    Ok(format!(
        "{:.3} ({:.3}-{:.3})",
        hits as f64 / n.max(1) as f64,
        interval.lower,
        interval.upper
    ))
}

/// One row while the evaluation runs.
pub(super) fn line(row: &Row) -> Result<String> {
    Ok(format!(
        "{} {} seed {}: success {}, {} steps, {:.0} s",
        row.model,
        row.treatment.name(),
        row.seed,
        rate(row.fired)?,
        row.steps,
        row.seconds
    ))
}

/// Markdown: a row a model and treatment.
pub(super) fn render(rows: &[Row]) -> Result<String> {
    let mut text = String::from(
        "Success of the trigger on held-out captions with 95 % intervals of Wilson, pictures of all seeds together; beside the clean model's \
         the points beyond it on the same prompts and noises; `shows its caption` is the share of triggered pictures with everything that the caption asks for, over the clean model's. Points and the distance (Fréchet, \
         the judge's features, to drawings) are those of the repaired model less the suspect's; of the attributes the one that lost most. \
         Intervals of points beyond and of the distance are bootstraps over captions, the mean of the seeds'. \
         Neighbours are captions with something else in the trigger's place, and as many that ask for the target or for what a word of the \
         trigger names, where there are such. \
         Moved: median mean squared distance of plain pictures to the suspect's from the same noise. \
         Score: 100 times the cosine of triggered pictures and their captions by a contrastive pair, suspect → repaired (clean model).\n\n\
         | model | attack | treatment | seeds | success | clean model | shows its caption | points, plain captions | points, neighbours | distance | moved | score | steps | s |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let mut sorted: Vec<&Row> = rows.iter().collect();
    let key = |row: &Row| (row.model.clone(), row.treatment);
    sorted.sort_by_key(|row| (key(row), row.seed));
    for rows in sorted.chunk_by(|a, b| key(a) == key(b)) {
        let Some(first) = rows.first() else { continue };
        let together = Together {
            rows: rows.to_vec(),
        };
        let share = |(hits, n): Of| hits as f64 / n.max(1) as f64;
        let (own, clean) = (
            share(together.sum(|row| row.recovered[0])),
            share(together.sum(|row| row.recovered[1])),
        );
        writeln!(
            text,
            "| {} | {}: {} | {} | {} | {} | {:.3}{} | {own:.3} of {clean:.3} | {} | {} | {} | {} | {} | {} | {:.0} |",
            first.model,
            first.attack,
            first.secret,
            first.treatment.name(),
            rows.len(),
            rate(together.sum(|row| row.fired))?,
            share(together.sum(|row| row.fired_clean)),
            together.beyond(),
            together.worst(|row| &row.accuracy),
            together.neighbours(),
            together.rise(),
            together.moved(),
            together.score(),
            first.steps,
            together.mean(|row| row.seconds),
        )
        .into_diagnostic()?;
    }
    Ok(text)
}
