//! `cargo xtask tidy`: the rules that the compiler does not know.

mod algorithms;
mod dependencies;
mod length;
mod printing;
mod words;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where, relative to the workspace.
    pub file: String,
    /// The line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// What is wrong and how to mend it.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.what),
            line => write!(f, "{}:{line}: {}", self.file, self.what),
        }
    }
}

/// A text file of the project.
#[derive(Debug, Clone)]
pub struct Source {
    /// Relative to the workspace, with `/`.
    pub path: String,
    /// Its text.
    pub text: String,
}

impl Source {
    /// Whether it is Rust.
    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Whether it belongs to the library part of a crate below `crates/`: not a program, test, example or bench.
    pub fn is_library(&self) -> bool {
        let in_source = self.path.starts_with("crates/") && self.path.contains("/src/");
        let programs = [
            "/src/main.rs",
            "/src/bin/",
            "/src/cli/",
            "crates/depurate-bench/",
        ];
        self.is_rust() && in_source && !programs.iter().any(|program| self.path.contains(program))
    }

    /// A problem at a line of this file.
    pub fn problem(&self, line: usize, what: impl Into<String>) -> Problem {
        Problem {
            file: self.path.clone(),
            line,
            what: what.into(),
        }
    }

    /// The lines before the file's own tests, numbered from 1.
    pub fn lines_before_tests(&self) -> impl Iterator<Item = (usize, &str)> {
        let numbered = self
            .text
            .lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line));
        numbered.take_while(|(_, line)| line.trim() != "#[cfg(test)]")
    }
}

/// Runs every check and prints what is broken.
pub fn run(root: &Path) -> bool {
    let problems = match sources(root) {
        Ok(sources) => {
            let mut problems = dependencies::check(root, &sources);
            problems.extend(printing::check(&sources));
            problems.extend(length::check(&sources));
            problems.extend(words::check(&sources));
            problems.extend(algorithms::check(&sources));
            problems
        }
        Err(error) => vec![Problem {
            file: root.display().to_string(),
            line: 0,
            what: error,
        }],
    };
    for problem in &problems {
        eprintln!("{problem}");
    }
    match problems.len() {
        0 => println!("tidy: nothing to mend"),
        count => println!("tidy: {count} to mend"),
    }
    problems.is_empty()
}

/// Endings of files that are read. Everything else is data.
const TEXT: [&str; 9] = [
    ".rs", ".toml", ".md", ".py", ".sh", ".html", ".css", ".yml", ".json",
];
/// Larger files are data, whatever their ending.
const MOST_BYTES: u64 = 1 << 20;

/// The project's text files: tracked ones and new ones that git does not ignore.
fn sources(root: &Path) -> Result<Vec<Source>, String> {
    let listing = Command::new("git")
        .args([
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "-z",
        ])
        .current_dir(root)
        .output()
        .map_err(|error| format!("git cannot be started: {error}"))?;
    if !listing.status.success() {
        return Err(format!(
            "git ls-files failed: {}",
            String::from_utf8_lossy(&listing.stderr)
        ));
    }
    let names = String::from_utf8_lossy(&listing.stdout).into_owned();
    let mut paths: Vec<&str> = names.split('\0').filter(|name| is_text(name)).collect();
    paths.sort_unstable();
    paths.dedup();
    let read = |path: &str| -> Option<Source> {
        let full: PathBuf = root.join(path);
        // a file that was deleted and not yet committed is still listed
        let small =
            fs::metadata(&full).is_ok_and(|seen| seen.is_file() && seen.len() <= MOST_BYTES);
        let text = small.then(|| fs::read_to_string(&full).ok()).flatten()?;
        Some(Source {
            path: path.to_owned(),
            text,
        })
    };
    Ok(paths.into_iter().filter_map(read).collect())
}

fn is_text(name: &str) -> bool {
    TEXT.iter().any(|ending| name.ends_with(ending)) || name.starts_with(".ci/")
}

#[cfg(test)]
pub(crate) fn source(path: &str, text: &str) -> Source {
    Source {
        path: path.into(),
        text: text.into(),
    }
}
