//! What an adapter's product is multiplied by.

use std::path::Path;

use serde_json::{Map, Value};

use super::LoraLayout;
use crate::{CheckpointError, Limits, ModelPart, Result, Weights, parse_json, read_json};

/// PEFT's configuration, beside its weights.
const CONFIG: &str = "adapter_config.json";
/// Where diffusers keeps what PEFT has in its configuration.
const METADATA: &str = "lora_adapter_metadata";

/// `adapter_config.json` beside a file, if there is one.
pub(super) fn beside(file: &Path, limits: &Limits) -> Result<Option<Map<String, Value>>> {
    let config = file.with_file_name(CONFIG);
    config
        .symlink_metadata()
        .is_ok()
        .then(|| read_json(&config, limits))
        .transpose()
}

/// What one component's adapter is multiplied by, where its tensors do not say.
#[derive(Debug, Clone, Default)]
struct Rule {
    alpha: Option<f64>,
    /// `alpha / sqrt(r)` in the place of `alpha / r`.
    root: bool,
    /// Other alphas, by the end of a module's name.
    alphas: Vec<(String, f64)>,
}

/// The rules of an adapter.
#[derive(Debug, Clone)]
pub(super) struct Scaling {
    rules: Vec<(Option<ModelPart>, Rule)>,
}

impl Scaling {
    /// Reads PEFT's configuration or diffusers' metadata.
    pub(super) fn read(
        path: &Path,
        layout: LoraLayout,
        weights: &Weights,
        config: Option<&Map<String, Value>>,
        limits: &Limits,
    ) -> Result<Self> {
        if layout == LoraLayout::Peft {
            let Some(config) = config else {
                return Err(CheckpointError::UnsupportedLayout {
                    path: path.into(),
                    what: "a PEFT adapter without adapter_config.json, which holds its strength",
                    mend: "give the directory with both files",
                });
            };
            let rule = Rule::read(path, "", config)?;
            if rule.alpha.is_none() {
                return Err(CheckpointError::JsonField {
                    path: path.with_file_name(CONFIG),
                    field: "lora_alpha".into(),
                    expected: "a number",
                });
            }
            return Ok(Self {
                rules: vec![(None, rule)],
            });
        }
        let Some(text) = weights.metadata(METADATA) else {
            return Ok(Self { rules: Vec::new() });
        };
        let map = parse_json(path, text.as_bytes(), limits)?;
        let rule = |part: ModelPart| {
            let rule = Rule::read(path, &format!("{part}."), &map)?;
            Ok((Some(part), rule))
        };
        let rules = [ModelPart::Unet, ModelPart::TextEncoder].map(rule);
        Ok(Self {
            rules: rules.into_iter().collect::<Result<_>>()?,
        })
    }

    /// The factor of a module of rank `rank`; `stored` is the alpha that its own tensor states.
    pub(super) fn of(
        &self,
        part: ModelPart,
        module: &str,
        rank: usize,
        stored: Option<f64>,
    ) -> f32 {
        let rule = self
            .rules
            .iter()
            .find(|(of, _)| of.is_none_or(|of| of == part))
            .map(|(_, rule)| rule.clone())
            .unwrap_or_default();
        let special = rule.alphas.iter().find(|(end, _)| {
            module
                .strip_suffix(end.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        });
        let rank = rank as f64;
        let stated = special.map(|(_, alpha)| *alpha).or(rule.alpha);
        let alpha = stored.or(stated).unwrap_or(rank);
        let divisor = if rule.root && stored.is_none() {
            rank.sqrt()
        } else {
            rank
        };
        (alpha / divisor) as f32
    }
}

impl Rule {
    fn read(path: &Path, prefix: &str, map: &Map<String, Value>) -> Result<Self> {
        let get = |name: &str| map.get(&format!("{prefix}{name}"));
        let refuse = |what, mend| CheckpointError::UnsupportedLayout {
            path: path.into(),
            what,
            mend,
        };
        if get("use_dora") == Some(&Value::Bool(true)) {
            return Err(refuse(
                "a DoRA",
                "merge it into the model and give the merged model",
            ));
        }
        let number = |name: &str, value: &Value| {
            let number = value.as_f64().filter(|number| number.is_finite());
            number.ok_or_else(|| CheckpointError::JsonField {
                path: path.into(),
                field: name.into(),
                expected: "a number",
            })
        };
        let mut alphas = Vec::new();
        if let Some(Value::Object(patterns)) = get("alpha_pattern") {
            for (pattern, alpha) in patterns {
                if !pattern
                    .chars()
                    .all(|c| c.is_alphanumeric() || "._".contains(c))
                {
                    return Err(refuse(
                        "an adapter whose alpha_pattern holds regular expressions",
                        "write module names in full",
                    ));
                }
                alphas.push((pattern.clone(), number("alpha_pattern", alpha)?));
            }
        }
        Ok(Self {
            alpha: get("lora_alpha")
                .filter(|alpha| !alpha.is_null())
                .map(|alpha| number("lora_alpha", alpha))
                .transpose()?,
            root: get("use_rslora") == Some(&Value::Bool(true)),
            alphas,
        })
    }
}

/// The number in an `.alpha` tensor.
pub(super) fn alpha(path: &Path, weights: &Weights, key: &str) -> Result<f64> {
    // The shape first: reading costs as much memory as it says.
    let elements = weights.get(key).map_or(0, |info| info.elements());
    let values = if elements == 1 {
        weights.read_f32(key)?
    } else {
        Vec::new()
    };
    match values.as_slice() {
        [alpha] if alpha.is_finite() => Ok(f64::from(*alpha)),
        other => Err(CheckpointError::OutOfBounds {
            path: path.into(),
            field: key.into(),
            got: format!("{other:?} of {elements} elements"),
            allowed: "one finite number",
        }),
    }
}
