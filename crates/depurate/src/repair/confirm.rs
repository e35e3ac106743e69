//! Which of the scan's triggers are repaired: those that stand out on the suspect under other noises.

use depurate_defense::{
    Cx, DefenseError,
    repair::{
        KnownTrigger,
        confirm::{LEAST_EFFECT, effect},
    },
};
use depurate_diffusion::Pipeline;
use depurate_report::{Evidence, Table};

use crate::Error;

/// Those of `claimed` that are triggers of `suspect`, and what shows it.
pub(super) fn confirmed(
    suspect: &Pipeline,
    claimed: Vec<KnownTrigger>,
    cx: &Cx<'_>,
) -> Result<(Vec<KnownTrigger>, Evidence), Error> {
    let frozen = suspect.frozen();
    let effects = claimed.iter().map(|trigger| effect(&frozen, trigger, cx));
    let effects: Vec<f64> = effects.collect::<Result<_, DefenseError>>()?;
    let stands_out = |effect: f64| effect >= LEAST_EFFECT;
    let rows = effects.iter().enumerate().map(|(i, &effect)| {
        let repaired = if stands_out(effect) { "yes" } else { "no" };
        vec![
            format!("{}", i + 1),
            format!("{effect:.2}"),
            format!("{LEAST_EFFECT:.2}"),
            repaired.to_owned(),
        ]
    });
    let columns = [
        "trigger of the scan",
        "gain over control shifts of its size, decades",
        "at least",
        "repaired",
    ];
    let table = Table {
        title: "which triggers are repaired".into(),
        columns: columns.map(str::to_owned).to_vec(),
        rows: rows.collect(),
    };
    let pairs = claimed.into_iter().zip(effects);
    let kept = pairs.filter(|&(_, effect)| stands_out(effect));
    Ok((kept.map(|(trigger, _)| trigger).collect(), table.into()))
}
