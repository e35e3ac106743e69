//! Holds the tensors of a file against those that a network expects: every one applied, missing, unexpected or mis-shaped.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;

use crate::error::names;
use crate::{CheckpointError, Result, Weights};

/// What became of every tensor. Names are the network's, except in `unexpected`, where they are the file's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ApplyReport {
    /// Expected and there, with a fitting shape.
    pub applied: Vec<String>,
    /// Expected and not there.
    pub missing: Vec<String>,
    /// There and not expected, or a second one for the same place.
    pub unexpected: Vec<String>,
    /// There with another shape: name, shape expected, shape found.
    pub mis_shaped: Vec<(String, Vec<usize>, Vec<usize>)>,
    sources: HashMap<String, String>,
}

/// Plans which tensor of `weights` goes to which place of a network.
///
/// `expected` holds name and shape of all parameters of the network. A stored name that is not among them is tried once more
/// as `rename` gives it (see [`rename_deprecated_attention`]; `&|_| None` for none). Nothing is read.
pub fn plan(
    expected: &[(String, Vec<usize>)],
    weights: &Weights,
    rename: &dyn Fn(&str) -> Option<String>,
) -> ApplyReport {
    let places: HashMap<&str, &[usize]> = expected
        .iter()
        .map(|(name, shape)| (name.as_str(), shape.as_slice()))
        .collect();
    let mut report = ApplyReport::default();
    let mut taken = HashSet::new();
    for info in weights.infos() {
        let place = if places.contains_key(info.name.as_str()) {
            Some(info.name.clone())
        } else {
            rename(&info.name).filter(|name| places.contains_key(name.as_str()))
        };
        let Some(place) = place.filter(|name| taken.insert(name.clone())) else {
            report.unexpected.push(info.name.clone());
            continue;
        };
        let wanted = places[place.as_str()];
        if wanted == info.shape || is_projection_as_convolution(&place, wanted, &info.shape) {
            report.sources.insert(place.clone(), info.name.clone());
            report.applied.push(place);
        } else {
            report
                .mis_shaped
                .push((place, wanted.to_vec(), info.shape.clone()));
        }
    }
    report.missing = expected
        .iter()
        .map(|(name, _)| name)
        .filter(|n| !taken.contains(*n))
        .cloned()
        .collect();
    report.applied.sort();
    report
}

impl ApplyReport {
    /// Whether every tensor was applied.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.mis_shaped.is_empty()
    }

    /// The stored name of an applied tensor, for [`Weights::read_f32`].
    pub fn source(&self, applied: &str) -> Option<&str> {
        self.sources.get(applied).map(String::as_str)
    }

    /// Itself if complete.
    ///
    /// # Errors
    /// [`CheckpointError::Apply`] if anything is missing, unexpected or mis-shaped; `path` is named in it.
    pub fn into_result(self, path: &Path) -> Result<Self> {
        if self.is_complete() {
            return Ok(self);
        }
        Err(CheckpointError::Apply {
            path: path.into(),
            report: Box::new(self),
        })
    }
}

impl fmt::Display for ApplyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} applied", self.applied.len())?;
        for (what, list) in [("missing", &self.missing), ("unexpected", &self.unexpected)] {
            if !list.is_empty() {
                write!(f, ", {} {what} ({})", list.len(), names(list))?;
            }
        }
        if !self.mis_shaped.is_empty() {
            let shapes: Vec<String> = self
                .mis_shaped
                .iter()
                .map(|(name, wanted, got)| format!("{name} wants {wanted:?} and has {got:?}"))
                .collect();
            write!(f, ", {} mis-shaped ({})", shapes.len(), names(&shapes))?;
        }
        Ok(())
    }
}

/// Gives a deprecated attention name of `UNet2DModel` and `AutoencoderKL` as diffusers names it now: inside `attentions.N`,
/// `query`, `key`, `value` and `proj_attn` are `to_q`, `to_k`, `to_v` and `to_out.0`. `None` for any other name.
pub fn rename_deprecated_attention(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    let [
        head @ ..,
        "attentions",
        index,
        layer,
        leaf @ ("weight" | "bias"),
    ] = parts.as_slice()
    else {
        return None;
    };
    let layer = match *layer {
        "query" => "to_q",
        "key" => "to_k",
        "value" => "to_v",
        "proj_attn" => "to_out.0",
        _ => return None,
    };
    index.parse::<u32>().ok()?;
    let mut renamed = head.to_vec();
    renamed.extend(["attentions", index, layer, leaf]);
    Some(renamed.join("."))
}

/// Attention projections were once stored as 1x1 convolutions: `[C, C, 1, 1]` holds the same numbers as `[C, C]`.
fn is_projection_as_convolution(name: &str, wanted: &[usize], got: &[usize]) -> bool {
    let projection = [
        "to_q.weight",
        "to_k.weight",
        "to_v.weight",
        "to_out.0.weight",
    ]
    .iter()
    .any(|end| name.ends_with(end));
    let matrix = |shape: &[usize]| match *shape {
        [out, inner] | [out, inner, 1, 1] => Some((out, inner)),
        _ => None,
    };
    projection
        && name.split('.').any(|part| part == "attentions")
        && matrix(wanted).is_some()
        && matrix(wanted) == matrix(got)
}
