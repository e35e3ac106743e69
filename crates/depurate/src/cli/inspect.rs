//! `depurate inspect`: what a checkpoint directory holds.

use std::fmt::Write as _;

use depurate::{Error, cache::Cache, error::EXIT_OK};
use depurate_checkpoint::{
    AnomalyKind, ComponentInspection, Inspection, Limits, StrayFiles, TensorAnomaly,
    WeightsInspection, inspect,
};

use super::{
    args::{InspectArgs, InspectFormat},
    output,
};

/// Odd tensors listed a component; JSON holds all.
const MOST_ANOMALIES: usize = 20;

/// Inspects a directory.
pub fn run(args: &InspectArgs) -> Result<u8, Error> {
    output::check(args.output.as_deref())?;
    let cache = Cache::from_environment();
    let found = inspect(&args.model, &Limits::default(), cache.hashes())?;
    let text = match args.format {
        InspectFormat::Text => text(&found),
        InspectFormat::Json => {
            let json = serde_json::to_string_pretty(&found);
            json.map_err(|source| Error::Json {
                what: "the inspection",
                source,
            })? + "\n"
        }
    };
    output::write(args.output.as_deref(), text.as_bytes())?;
    Ok(EXIT_OK)
}

fn text(found: &Inspection) -> String {
    let mut out = String::new();
    let class = found.pipeline_class.as_deref().unwrap_or("UNet alone");
    let kind = if found.text_conditional {
        ", conditioned on text"
    } else {
        ""
    };
    let parameters = grouped(found.parameters);
    // writing to a String does not fail
    let _ = writeln!(
        out,
        "{}\n  {class}{kind}, {parameters} parameters",
        found.root
    );
    for component in &found.components {
        let _ = write_component(&mut out, component);
    }
    let _ = write_stray(&mut out, &found.stray);
    out
}

fn write_component(out: &mut String, component: &ComponentInspection) -> std::fmt::Result {
    write!(out, "\n{}", component.name)?;
    if let Some(class) = &component.class_name {
        write!(out, ": {class}")?;
    }
    if let Some(library) = &component.library {
        write!(out, " ({library})")?;
    }
    writeln!(out)?;
    if let Some(weights) = &component.weights {
        write_weights(out, weights)?;
    }
    if let Some(error) = &component.weights_error {
        writeln!(out, "  weights cannot be read: {error}")?;
    }
    let bytes: Vec<String> = component
        .files
        .iter()
        .map(|file| grouped(file.bytes))
        .collect();
    let width = bytes.iter().map(String::len).max().unwrap_or_default();
    for (file, bytes) in component.files.iter().zip(bytes) {
        writeln!(out, "  {} {bytes:>width$} B  {}", file.sha256, file.path)?;
    }
    Ok(())
}

fn write_weights(out: &mut String, weights: &WeightsInspection) -> std::fmt::Result {
    let dtypes: Vec<String> = weights
        .dtypes
        .iter()
        .map(|(dtype, count)| format!("{count} {dtype}"))
        .collect();
    let (parameters, tensors) = (grouped(weights.parameters), weights.tensors);
    write!(
        out,
        "  {parameters} parameters in {tensors} tensors ({})",
        dtypes.join(", ")
    )?;
    match &weights.variant {
        Some(variant) => writeln!(out, ", variant {variant}")?,
        None => writeln!(out)?,
    }
    for anomaly in weights.anomalies.iter().take(MOST_ANOMALIES) {
        writeln!(out, "  odd: {}", odd(anomaly))?;
    }
    if let Some(more @ 1..) = weights.anomalies.len().checked_sub(MOST_ANOMALIES) {
        writeln!(out, "  odd: {more} more tensors; --format json lists them")?;
    }
    Ok(())
}

fn odd(anomaly: &TensorAnomaly) -> String {
    let stats = &anomaly.stats;
    let kinds: Vec<String> = anomaly
        .kinds
        .iter()
        .map(|kind| match kind {
            AnomalyKind::NotFinite => {
                format!("{} NaN and {} infinite values", stats.nan, stats.infinite)
            }
            AnomalyKind::Outlier => {
                format!(
                    "an outlier {:.0} robust deviations off (largest {:.3})",
                    stats.robust_z, stats.abs_max
                )
            }
            AnomalyKind::AllZero => "all zero".into(),
            other => format!("{other:?}"),
        })
        .collect();
    format!(
        "{} {:?}: {}",
        anomaly.tensor,
        anomaly.shape,
        kinds.join(", ")
    )
}

fn write_stray(out: &mut String, stray: &StrayFiles) -> std::fmt::Result {
    let lists = [
        (
            "pickles, which can run code when they are loaded",
            &stray.pickles,
        ),
        ("code beside the model", &stray.python),
    ];
    for (heading, files) in lists.into_iter().filter(|(_, files)| !files.is_empty()) {
        writeln!(out, "\n{heading}")?;
        for file in files {
            writeln!(out, "  {} B  {}", grouped(file.bytes), file.path)?;
        }
    }
    if !stray.links.is_empty() {
        writeln!(
            out,
            "\nlinks to directories, not followed\n  {}",
            stray.links.join("\n  ")
        )?;
    }
    if !stray.complete {
        writeln!(
            out,
            "\nthe directory is too deep or too large: not every file was looked at"
        )?;
    }
    Ok(())
}

/// A number with a comma after every three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_come_in_threes() {
        let all = [0, 999, 1000, 123_456, 1_234_567].map(grouped);
        assert_eq!(all, ["0", "999", "1,000", "123,456", "1,234,567"]);
    }
}
