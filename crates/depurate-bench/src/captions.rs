//! Captions from a file (one a line, or JSON lines with a `caption`), or of compositions.

use std::{fs::File, io::Read, path::Path};

use depurate_attack::text_to_image::Sprites;
use miette::{IntoDiagnostic, Result, WrapErr, bail, miette};
use serde_json::Value;

/// Largest file, in bytes.
const MOST_BYTES: u64 = 64 << 20;

/// Reads the captions of `path`, in order; empty lines are left out.
pub(crate) fn read(path: &Path) -> Result<Vec<String>> {
    let shown = path.display();
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MOST_BYTES + 1).read_to_string(&mut text))
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot read the captions {shown}"))?;
    if text.len() as u64 > MOST_BYTES {
        bail!("{shown} has more than {MOST_BYTES} bytes: use a smaller file");
    }
    let lines = text.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    let captions: Vec<String> = lines
        .map(|(i, line)| {
            caption(line).ok_or_else(|| {
                miette!("line {} of {shown} is JSON without a text `caption`", i + 1)
            })
        })
        .collect::<Result<_>>()?;
    if captions.is_empty() {
        bail!("{shown} holds no caption");
    }
    Ok(captions)
}

/// The captions of all compositions that are not held out.
pub(crate) fn of_compositions(sprites: &Sprites) -> Vec<String> {
    let all = sprites.compositions().into_iter();
    let shown = all.filter(|composition| !composition.is_held_out());
    shown
        .map(|composition| sprites.caption(composition))
        .collect()
}

fn caption(line: &str) -> Option<String> {
    if !line.trim_start().starts_with('{') {
        return Some(line.to_owned());
    }
    let value: Value = serde_json::from_str(line).ok()?;
    value.get("caption")?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    #[test]
    fn lines_are_captions_or_objects_with_one() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("captions");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("written");
            super::read(&path)
        };
        let text = "a red fish\n\n{\"caption\": \"two \\u0b20\", \"seed\": 1}\n";
        assert_eq!(read(text).expect("valid"), ["a red fish", "two \u{b20}"]);
        for bad in ["", "\n \n", "{\"text\": \"x\"}", "{\"caption\": 1}", "{"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
        assert!(super::read(&dir.path().join("none")).is_err());
    }
}
