//! Finished stages of a scan as files, so that a killed scan goes on where it was.
//!
//! A journal is a directory named after everything that its stages depend on: the model, the parameters, the seed and
//! the program's version. Another model or seed finds another directory, so that a stale stage is never taken.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use depurate_checkpoint::write_atomic;
use depurate_defense::Journal;
use sha2::{Digest, Sha256};

/// sha256 of parts in lower-case hexadecimal. Each part is preceded by its length, so that parts cannot flow together.
pub fn sha256_of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// What the stages of a journal depend on.
#[derive(Debug, Clone, Copy)]
pub struct JournalKey<'a> {
    /// sha256 of the model's files.
    pub model_sha256: &'a str,
    /// Id of the detector.
    pub detector: &'a str,
    /// The detector's parameters.
    pub params: &'a serde_json::Value,
    /// The run's seed.
    pub seed: u64,
}

impl JournalKey<'_> {
    /// The name of the journal's directory.
    pub fn name(&self) -> String {
        let seed = self.seed.to_le_bytes();
        let params = self.params.to_string();
        let parts: [&[u8]; 5] = [
            self.model_sha256.as_bytes(),
            self.detector.as_bytes(),
            params.as_bytes(),
            &seed,
            crate::VERSION.as_bytes(),
        ];
        sha256_of(parts)
    }
}

/// A journal in a directory of its own.
#[derive(Debug)]
pub struct FileJournal {
    dir: PathBuf,
}

impl FileJournal {
    /// Opens the journal `key` below `root`; without `resume` what an earlier run left there is removed.
    ///
    /// # Errors
    /// When the directory cannot be made or emptied.
    pub fn open(root: &Path, key: &JournalKey<'_>, resume: bool) -> io::Result<Self> {
        let dir = root.join("journal").join(key.name());
        if !resume && dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(&dir)?;
        Ok(Self { dir })
    }

    /// The stages kept so far: name and result, by name.
    pub fn stages(&self) -> Vec<(String, Vec<u8>)> {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return Vec::new();
        };
        let mut stages: Vec<_> = entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let name = path.file_name()?.to_str()?.strip_suffix(STAGE_SUFFIX)?;
                Some((readable(name).to_owned(), fs::read(&path).ok()?))
            })
            .collect();
        stages.sort();
        stages
    }

    /// Removes the journal: its scan is finished.
    pub fn remove(self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(%error, dir = %self.dir.display(), "the journal of a finished scan is left behind");
        }
        // the last journal leaves no empty directory behind; others keep theirs, and this fails
        if let Some(parent) = self.dir.parent() {
            let _ = fs::remove_dir(parent);
        }
    }

    fn path(&self, stage: &str) -> PathBuf {
        let plain: String = stage
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .take(60)
            .collect();
        let hash = sha256_of([stage.as_bytes()]);
        self.dir
            .join(format!("{plain}.{}{STAGE_SUFFIX}", &hash[..HASH_DIGITS]))
    }
}

const STAGE_SUFFIX: &str = ".stage";
/// Two stages whose names look alike as file names still get two files.
const HASH_DIGITS: usize = 12;

/// The name of a stage without the hash that keeps files apart.
fn readable(file_stem: &str) -> &str {
    file_stem
        .rsplit_once('.')
        .map_or(file_stem, |(name, _)| name)
}

impl Journal for FileJournal {
    fn load(&self, stage: &str) -> Option<Vec<u8>> {
        fs::read(self.path(stage)).ok()
    }

    fn save(&self, stage: &str, result: &[u8]) {
        if let Err(error) = write_atomic(&self.path(stage), result) {
            tracing::warn!(%error, stage, "the stage is not kept: a killed scan would repeat it");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn key<'a>(params: &'a serde_json::Value, model: &'a str, seed: u64) -> JournalKey<'a> {
        JournalKey {
            model_sha256: model,
            detector: "shift-response",
            params,
            seed,
        }
    }

    #[test]
    fn a_second_run_finds_the_stages_of_the_first() {
        let root = tempfile::tempdir().unwrap();
        let params = json!({"steps": 3});
        let first = FileJournal::open(root.path(), &key(&params, "aa", 7), true).unwrap();
        first.save("restart 1", b"one");
        first.save("restart/1", b"other");
        drop(first);
        let second = FileJournal::open(root.path(), &key(&params, "aa", 7), true).unwrap();
        assert_eq!(second.load("restart 1").unwrap(), b"one");
        assert_eq!(second.load("restart/1").unwrap(), b"other");
        assert_eq!(second.load("restart 2"), None);
        let names: Vec<_> = second.stages().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["restart-1", "restart-1"]);
    }

    #[test]
    fn another_model_seed_or_parameter_finds_nothing() {
        let root = tempfile::tempdir().unwrap();
        let (params, other) = (json!({"steps": 3}), json!({"steps": 4}));
        FileJournal::open(root.path(), &key(&params, "aa", 7), true)
            .unwrap()
            .save("s", b"1");
        for key in [
            key(&params, "ab", 7),
            key(&params, "aa", 8),
            key(&other, "aa", 7),
        ] {
            assert_eq!(
                FileJournal::open(root.path(), &key, true)
                    .unwrap()
                    .load("s"),
                None
            );
        }
    }

    #[test]
    fn without_resume_and_after_the_end_nothing_is_left() {
        let root = tempfile::tempdir().unwrap();
        let params = json!({});
        let key = key(&params, "aa", 7);
        FileJournal::open(root.path(), &key, true)
            .unwrap()
            .save("s", b"1");
        let fresh = FileJournal::open(root.path(), &key, false).unwrap();
        assert_eq!(fresh.load("s"), None);
        fresh.save("s", b"2");
        fresh.remove();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_journal_that_cannot_be_written_costs_nothing_but_time() {
        let root = tempfile::tempdir().unwrap();
        let params = json!({});
        let journal = FileJournal::open(root.path(), &key(&params, "aa", 7), true).unwrap();
        fs::remove_dir_all(root.path()).unwrap();
        journal.save("s", b"1");
        assert_eq!(journal.load("s"), None);
    }
}
