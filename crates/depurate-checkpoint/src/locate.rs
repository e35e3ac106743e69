//! Which files of a directory are the weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::{CheckpointError, Result};

/// The weights of a component.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Located {
    /// One safetensors file.
    Single(PathBuf),
    /// The index of several.
    Index(PathBuf),
}

/// Endings of files that are pickles, or archives of pickles.
const PICKLE_ENDINGS: [&str; 7] = ["bin", "ckpt", "pt", "pth", "pkl", "pickle", "joblib"];

/// Whether a file is a pickle by its name.
pub(crate) fn is_pickle_name(path: &Path) -> bool {
    path.extension().is_some_and(|e| {
        PICKLE_ENDINGS
            .iter()
            .any(|pickle| e.eq_ignore_ascii_case(pickle))
    })
}

/// Finds the weights called `stem` in `dir`, and says of which variant they are.
pub(crate) fn locate(
    dir: &Path,
    stem: &str,
    wanted: Option<&str>,
) -> Result<(Located, Option<String>)> {
    let mut variants: BTreeMap<Option<String>, Vec<(String, bool)>> = BTreeMap::new();
    let mut pickles = Vec::new();
    for name in file_names(dir)? {
        if is_pickle_name(Path::new(&name)) {
            pickles.push(name);
        } else if let Some((variant, is_index)) = classify(&name, stem) {
            variants
                .entry(variant.map(str::to_owned))
                .or_default()
                .push((name, is_index));
        }
    }
    let variant = match wanted {
        Some(wanted) => Some(wanted.to_owned()),
        None if variants.is_empty() || variants.contains_key(&None) => None,
        None if variants.len() == 1 => variants.keys().next().cloned().flatten(),
        None => {
            let found = variants
                .into_values()
                .flatten()
                .map(|(name, _)| name)
                .collect();
            return Err(CheckpointError::AmbiguousWeights {
                path: dir.into(),
                found,
            });
        }
    };
    if variants.is_empty() && !pickles.is_empty() {
        return Err(CheckpointError::Pickle {
            path: dir.into(),
            files: pickles,
        });
    }
    match variants.remove(&variant).unwrap_or_default().as_slice() {
        [] => Err(CheckpointError::NoWeights {
            path: dir.into(),
            stem: match variant {
                Some(variant) => format!("{stem}.{variant}"),
                None => stem.into(),
            },
        }),
        [(name, false)] => Ok((Located::Single(dir.join(name)), variant)),
        [(name, true)] => Ok((Located::Index(dir.join(name)), variant)),
        several => Err(CheckpointError::AmbiguousWeights {
            path: dir.into(),
            found: several.iter().map(|(name, _)| name.clone()).collect(),
        }),
    }
}

/// Names in a directory, sorted; names that are not UTF-8 cannot be ones that diffusers writes.
fn file_names(dir: &Path) -> Result<Vec<String>> {
    let error = |e| CheckpointError::io("read", dir, e);
    if !std::fs::metadata(dir).map_err(error)?.is_dir() {
        return Err(CheckpointError::NotADirectory { path: dir.into() });
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(error)? {
        if let Ok(name) = entry.map_err(error)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// `(variant, is an index)` of a weight file of this stem. diffusers has put the variant of an index in two places:
/// `stem.safetensors.index.fp16.json` and, earlier, `stem.safetensors.fp16.index.json`.
fn classify<'a>(name: &'a str, stem: &str) -> Option<(Option<&'a str>, bool)> {
    let parts: Vec<&str> = name
        .strip_prefix(stem)?
        .strip_prefix('.')?
        .split('.')
        .collect();
    match parts.as_slice() {
        ["safetensors"] => Some((None, false)),
        // `stem.fp16-00001-of-00002.safetensors` is a shard of a variant, to be found through its index.
        [variant, "safetensors"] if !variant.contains("-of-") => Some((Some(variant), false)),
        ["safetensors", "index", "json"] => Some((None, true)),
        ["safetensors", "index", variant, "json"] | ["safetensors", variant, "index", "json"] => {
            Some((Some(variant), true))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::classify;

    #[test]
    fn names_as_diffusers_writes_them() {
        let of = |name| classify(name, "model");
        assert_eq!(of("model.safetensors"), Some((None, false)));
        assert_eq!(of("model.fp16.safetensors"), Some((Some("fp16"), false)));
        assert_eq!(of("model.safetensors.index.json"), Some((None, true)));
        assert_eq!(
            of("model.safetensors.index.fp16.json"),
            Some((Some("fp16"), true))
        );
        assert_eq!(
            of("model.safetensors.fp16.index.json"),
            Some((Some("fp16"), true))
        );
        assert_eq!(of("model-00001-of-00002.safetensors"), None);
        assert_eq!(of("model.fp16-00001-of-00002.safetensors"), None);
        assert_eq!(of("model.bin"), None);
        assert_eq!(of("other.safetensors"), None);
    }
}
