//! Files in a checkpoint directory that can run code when somebody else loads them.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::Serialize;

use crate::locate::is_pickle_name;
use crate::{CheckpointError, Result};

/// Directories below the root that are looked into.
const MAX_DEPTH: usize = 8;
/// Directory entries that are looked at.
const MAX_ENTRIES: usize = 100_000;
/// Endings of Python modules: source, byte code, native.
const PYTHON_ENDINGS: [&str; 5] = ["py", "pyc", "pyi", "so", "pyd"];

/// A file named by its path below the root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct StrayFile {
    /// Path below the root; control characters are replaced.
    pub path: String,
    /// Length in bytes.
    pub bytes: u64,
}

/// What lies about in a directory, found without opening more than the first bytes of each file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct StrayFiles {
    /// Pickles, by name or by their first bytes.
    pub pickles: Vec<StrayFile>,
    /// Python source, byte code and native modules.
    pub python: Vec<StrayFile>,
    /// Links to directories, which are not followed.
    pub links: Vec<String>,
    /// Whether everything was looked at: `false` past 8 levels or 100,000 entries.
    pub complete: bool,
}

/// Walks the directory tree below `root`.
pub(crate) fn find(root: &Path) -> Result<StrayFiles> {
    let mut found = StrayFiles {
        complete: true,
        ..StrayFiles::default()
    };
    let mut entries_left = MAX_ENTRIES;
    let mut open = vec![(root.to_path_buf(), 0)];
    while let Some((dir, depth)) = open.pop() {
        let error = |e| CheckpointError::io("read", &dir, e);
        for entry in std::fs::read_dir(&dir).map_err(error)? {
            if entries_left == 0 {
                found.complete = false;
                return Ok(sorted(found));
            }
            entries_left -= 1;
            let entry = entry.map_err(error)?;
            let (path, kind) = (entry.path(), entry.file_type().map_err(error)?);
            if kind.is_dir() && depth < MAX_DEPTH {
                open.push((path, depth + 1));
            } else if kind.is_dir() {
                found.complete = false;
            } else {
                look_at(root, &path, kind.is_symlink(), &mut found);
            }
        }
    }
    Ok(sorted(found))
}

/// Sorts a file, or a link to one, into the lists. A link that leads nowhere cannot be loaded by anybody.
fn look_at(root: &Path, path: &Path, is_link: bool, found: &mut StrayFiles) {
    let Ok(seen) = std::fs::metadata(path) else {
        return;
    };
    let shown = shown(path.strip_prefix(root).unwrap_or(path));
    if is_link && seen.is_dir() {
        found.links.push(shown);
    } else if is_pickle_name(path) || (seen.is_file() && starts_as_pickle(path)) {
        found.pickles.push(StrayFile {
            path: shown,
            bytes: seen.len(),
        });
    } else if has_ending(path, &PYTHON_ENDINGS) {
        found.python.push(StrayFile {
            path: shown,
            bytes: seen.len(),
        });
    }
}

fn sorted(mut found: StrayFiles) -> StrayFiles {
    found.pickles.sort();
    found.python.sort();
    found.links.sort();
    found
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    path.extension()
        .is_some_and(|e| endings.iter().any(|ending| e.eq_ignore_ascii_case(ending)))
}

/// Whether the file is a pickle of protocol 2 to 5, or an archive as torch writes it (whose first member is `data.pkl`).
fn starts_as_pickle(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(128).read_to_end(&mut start));
    if read.is_err() {
        return false;
    }
    let safetensors = start.get(5..9) == Some(b"\0\0\0{");
    let pickle = start.len() > 2 && start[0] == 0x80 && (2..=5).contains(&start[1]);
    let archive = start.starts_with(b"PK\x03\x04") && start.windows(8).any(|w| w == b"data.pkl");
    (pickle && !safetensors) || archive
}

/// A path as text that is safe to print.
pub(crate) fn shown(path: &Path) -> String {
    path.to_string_lossy().replace(char::is_control, "\u{fffd}")
}
