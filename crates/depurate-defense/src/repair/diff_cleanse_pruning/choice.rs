//! From importances to the units that go.

use std::collections::BTreeMap;

use depurate_diffusion::{
    channel_graph::{ChannelGraph, Removal},
    noise::SeedTree,
};
use rand::RngExt;

use super::{DiffCleansePruningParams, ID, Importance, RatioOf, Score, UnitImportance};
use crate::DefenseError;

/// See [`super::DiffCleansePruning::choose`].
pub(super) fn choose(
    params: &DiffCleansePruningParams,
    graph: &ChannelGraph,
    importance: &Importance,
    seed: &SeedTree,
) -> Result<Removal, DefenseError> {
    let mut groups: BTreeMap<&str, Vec<&UnitImportance>> = BTreeMap::new();
    for unit in &importance.units {
        let group = graph.group(&unit.group);
        let known = group.and_then(|group| group.units.iter().find(|u| u.index == unit.unit));
        if known.is_none() {
            return Err(DefenseError::Params {
                field: "importance",
                value: format!("of {}:{}", unit.group, unit.unit),
                allowed: "units that the network has: score it again after it was changed",
            });
        }
        if params.kinds.contains(&unit.kind) {
            groups.entry(&unit.group).or_default().push(unit);
        }
    }
    let mut scored: Vec<Vec<Scored<'_>>> = groups
        .into_values()
        .map(|units| scores(params.score, units, seed))
        .collect();
    if params.ratio_of == RatioOf::All {
        scored = vec![scored.into_iter().flatten().collect()];
    }

    let mut removal = Removal::default();
    for mut candidates in scored {
        let share = (params.ratio * candidates.len() as f64).round() as usize;
        candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
        let mut left = share.max(1);
        for Scored { unit, .. } in candidates {
            if left == 0 {
                break;
            }
            removal.insert(&unit.group, unit.unit);
            match graph.check(&removal) {
                Ok(()) => left -= 1,
                Err(_) => {
                    removal.withdraw(&unit.group, unit.unit);
                }
            }
        }
    }
    Ok(removal)
}

struct Scored<'a> {
    unit: &'a UnitImportance,
    score: f64,
}

/// The scores of one group's units.
fn scores<'a>(kind: Score, units: Vec<&'a UnitImportance>, seed: &SeedTree) -> Vec<Scored<'a>> {
    let relative = |of: fn(&UnitImportance) -> f64| {
        let mean = units.iter().map(|unit| of(unit)).sum::<f64>() / units.len() as f64;
        // A group that the loss does not reach has importance 0 everywhere.
        move |unit: &UnitImportance| if mean > 0.0 { of(unit) / mean } else { 0.0 }
    };
    let backdoor = relative(|unit| unit.backdoor);
    let clean = relative(|unit| unit.clean);
    let name = units.first().map_or("", |unit| unit.group.as_str());
    let mut rng = seed.child(ID, 1).child(name, 0).rng();
    units
        .into_iter()
        .map(|unit| Scored {
            unit,
            score: match kind {
                Score::Intended => backdoor(unit) - clean(unit), // eq. (4)
                Score::Released => backdoor(unit) + clean(unit),
                Score::Random => rng.random_range(0.0..1.0),
            },
        })
        .collect()
}
