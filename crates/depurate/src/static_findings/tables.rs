//! Tables of differences and spectra.

use depurate_defense::detect::model_level::static_weights::{Drift, KeyValueEdit, TensorDrift};
use depurate_report::{Evidence, Note, Table};

/// Rows of a table; the numbers of a longer one are those of the whole.
const MOST_ROWS: usize = 20;
/// Singular values that are shown of each change.
const SHOWN_VALUES: usize = 6;

pub(super) fn note(text: &str) -> Evidence {
    Note { text: text.into() }.into()
}

pub(super) fn table<const N: usize>(
    title: &str,
    columns: [&str; N],
    rows: Vec<Vec<String>>,
) -> Evidence {
    let title = match rows.len().checked_sub(MOST_ROWS) {
        Some(more) if more > 0 => format!("{title}: the first {MOST_ROWS}, and {more} more"),
        _ => title.to_owned(),
    };
    Table {
        title,
        columns: columns.map(str::to_owned).to_vec(),
        rows: rows.into_iter().take(MOST_ROWS).collect(),
    }
    .into()
}

pub(super) fn percent(share: f64) -> String {
    if share.is_finite() {
        format!("{:.3}\u{a0}%", 100.0 * share)
    } else {
        "from zero".into()
    }
}

pub(super) fn values(values: &[f64]) -> String {
    let shown: Vec<String> = values
        .iter()
        .take(SHOWN_VALUES)
        .map(|v| format!("{v:.3}"))
        .collect();
    let more = if values.len() > SHOWN_VALUES {
        ", …"
    } else {
        ""
    };
    format!("{}{more}", shown.join(", "))
}

/// The tensors that differ most.
pub(super) fn most_changed(drift: &Drift) -> Evidence {
    let mut changed: Vec<&TensorDrift> = drift.changed().collect();
    changed.sort_by(|a, b| b.relative.total_cmp(&a.relative));
    let row = |tensor: &&TensorDrift| {
        let shape = format!("{:?}", tensor.shape);
        vec![
            tensor.part.to_string(),
            tensor.name.clone(),
            shape,
            percent(tensor.relative),
        ]
    };
    let rows = changed.iter().map(row).collect();
    table(
        "largest relative changes",
        ["network", "tensor", "shape", "change"],
        rows,
    )
}

pub(super) fn spectra(edit: &KeyValueEdit) -> Evidence {
    let rows = edit.layers.iter().map(|(tensor, spectrum)| {
        vec![
            tensor.name.clone(),
            percent(tensor.relative),
            format!("{:.1}", spectrum.effective_rank),
            values(&spectrum.singular_values),
        ]
    });
    let columns = [
        "projection",
        "change",
        "effective rank",
        "singular values of the change",
    ];
    table("changed keys and values", columns, rows.collect())
}
