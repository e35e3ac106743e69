//! Results, a JSON object a line. Several processes may append to one file: lines are written at once.

use std::{
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
};

use miette::{IntoDiagnostic, Result, WrapErr};
use serde::{Serialize, de::DeserializeOwned};

/// Every line that is there; none without a file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let Ok(text) = std::fs::read_to_string(path) else {
        return Ok(Vec::new());
    };
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| serde_json::from_str(line).into_diagnostic())
        .collect::<Result<_>>()
        .wrap_err_with(|| format!("{} holds a line that is no result", path.display()))
}

/// Appends lines, each on a line of its own even after a torn one.
pub(crate) fn append<T: Serialize>(path: &Path, lines: &[T]) -> Result<()> {
    let mut text = String::new();
    for line in lines {
        text += &serde_json::to_string(line).into_diagnostic()?;
        text.push('\n');
    }
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .read(true)
        .append(true)
        .open(path)
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot write {}", path.display()))?;
    if is_torn(&mut file).into_diagnostic()? {
        text.insert(0, '\n');
    }
    file.write_all(text.as_bytes()).into_diagnostic()
}

/// Whether the last line has no end.
fn is_torn(file: &mut std::fs::File) -> std::io::Result<bool> {
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(false);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last != [b'\n'])
}
