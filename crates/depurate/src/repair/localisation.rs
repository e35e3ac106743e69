//! Where the trigger of a text-to-image model is looked for.

use std::path::Path;

use depurate_checkpoint::{Layers, ModelPart, ModelWeights};
use depurate_defense::{
    Cx,
    detect::model_level::static_weights::{Drift, TensorDrift, drift},
    repair::text::{Behaviour, Component, Localised, TOKEN_TABLE, TextPatient, drifted, localised},
};
use depurate_report::{Evidence, Table};

use super::{RepairSettings, TextRepairSettings};
use crate::Error;

/// What was found.
#[derive(Debug)]
pub(super) struct Located {
    /// In the order in which they are treated, at least one.
    pub(super) components: Vec<Component>,
    by_states: Localised,
    against_base: Option<Drift>,
    /// The base's table of tokens, `[V, C]`.
    pub(super) base_table: Option<Vec<f32>>,
}

impl Located {
    /// By what differs from the base if there is one, else by the states of triggered prompts, which also say what comes first.
    pub(super) fn of(
        path: &Path,
        (settings, text): (&RepairSettings, &TextRepairSettings),
        patient: &TextPatient<'_>,
        cx: &Cx<'_>,
    ) -> Result<Self, Error> {
        let by_states = localised(patient)?;
        let mut found = Self {
            components: vec![by_states.component],
            by_states,
            against_base: None,
            base_table: None,
        };
        let Some(base) = &text.base else {
            return Ok(found);
        };
        let limits = &settings.limits;
        let base = ModelWeights::open(base, limits)?;
        let mut suspect = ModelWeights::open(path, limits)?;
        let layers = Layers {
            embeddings: Vec::new(),
            ..text.layers.clone()
        };
        layers.apply(&mut suspect, limits)?;
        let against = drift(&suspect, &base, cx)?;
        let mut components = drifted(&against);
        components.sort_by_key(|&component| component != by_states.component);
        if !components.is_empty() {
            found.components = components;
        }
        let is_table = |tensor: &&TensorDrift| {
            tensor.part == ModelPart::TextEncoder && tensor.name.ends_with(TOKEN_TABLE)
        };
        if let (Some(tensor), Some(weights)) =
            (against.tensors.iter().find(is_table), &base.text_encoder)
        {
            found.base_table = Some(weights.read_f32(&tensor.base_name)?);
        }
        found.against_base = Some(against);
        Ok(found)
    }

    /// The component that is treated first.
    pub(super) fn first(&self) -> Component {
        self.components
            .first()
            .copied()
            .unwrap_or(self.by_states.component)
    }

    /// As a table of the report.
    pub(super) fn evidence(&self, behaviour: &Behaviour) -> Evidence {
        let row = |what: String, value: String| vec![what, value];
        let mut rows = vec![row(
            "states of triggered prompts move, as a multiple of what plain words do".into(),
            format!("{:.2}", self.by_states.ratio),
        )];
        for part in ModelPart::ALL {
            if let Some(drift) = &self.against_base {
                let (changed, all) = drift.counts(part);
                rows.push(row(
                    format!(
                        "tensors of the {} that differ from the base's",
                        part.as_str()
                    ),
                    format!("{changed} of {all}"),
                ));
            }
        }
        rows.extend([
            row("treated first".into(), self.first().as_str().into()),
            row(
                "the trigger changes pictures by".into(),
                format!("{:.5}", behaviour.effect),
            ),
            row(
                "a plain word in its place changes them by".into(),
                format!("{:.5}", behaviour.word),
            ),
        ]);
        Table {
            title: "what the trigger does".into(),
            columns: ["measure", "value"].map(str::to_owned).to_vec(),
            rows,
        }
        .into()
    }
}
