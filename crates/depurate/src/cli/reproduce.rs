//! The command that repeats a run, as a shell takes it.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use depurate_checkpoint::Layers;

/// A command line under construction.
#[derive(Debug, Clone)]
pub struct CommandLine(String);

impl CommandLine {
    /// `depurate VERB`
    pub fn new(verb: &str) -> Self {
        Self(format!("depurate {verb}"))
    }

    /// Adds a word, quoted where a shell needs it.
    pub fn word(mut self, word: impl AsRef<OsStr>) -> Self {
        self.0.push(' ');
        self.0.push_str(&quoted(&word.as_ref().to_string_lossy()));
        self
    }

    /// Adds an option with its value.
    pub fn option(self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.word(name).word(value)
    }

    /// Adds an option whose value is a path, if there is one.
    pub fn path(self, name: &str, value: Option<&Path>) -> Self {
        match value {
            Some(path) => self.option(name, path),
            None => self,
        }
    }

    /// Adds an option without a value, if it is set.
    pub fn flag(self, name: &str, set: bool) -> Self {
        if set { self.word(name) } else { self }
    }

    /// Adds an option once for each value.
    pub fn each(self, name: &str, values: impl Iterator<Item = String>) -> Self {
        values.fold(self, |line, value| line.option(name, value))
    }

    /// Adds what is laid over a text-to-image model.
    pub fn layers(self, layers: &Layers) -> Self {
        let shown = |paths: &[PathBuf]| -> Vec<String> {
            paths
                .iter()
                .map(|path| path.display().to_string())
                .collect()
        };
        self.path("--unet", layers.unet.as_deref())
            .each("--delta", shown(&layers.deltas).into_iter())
            .each("--lora", layers.loras.iter().map(ToString::to_string))
            .each("--embedding", shown(&layers.embeddings).into_iter())
    }

    /// The command line.
    pub fn into_string(self) -> String {
        self.0
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=+,:@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_a_shell_would_change_are_quoted() {
        let line = CommandLine::new("scan")
            .word("my model's")
            .option("--seed", "7")
            .path("-o", None);
        assert_eq!(
            line.into_string(),
            r"depurate scan 'my model'\''s' --seed 7"
        );
    }
}
