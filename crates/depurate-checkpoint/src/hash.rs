//! SHA-256 of files, remembered while a file does not change.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{CheckpointError, Result, mmap::open_regular, write_atomic};

/// Largest cache file that is read, in bytes.
const MAX_CACHE_BYTES: u64 = 16 << 20;
/// Past this many files the cache starts anew.
const MAX_ENTRIES: usize = 20_000;

/// Known hashes, in one JSON file. A file is known by its canonical path, its size, and its times of modification and (on
/// Unix, where it cannot be set back) of change.
#[derive(Debug)]
pub struct HashCache {
    path: PathBuf,
    entries: Mutex<BTreeMap<String, Known>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    #[serde(flatten)]
    stamp: Stamp,
    sha256: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    size: u64,
    modified_ns: i64,
    changed_ns: i64,
}

impl HashCache {
    /// Opens the cache `sha256.json` in `dir`, which is made if absent. A cache that cannot be read or is corrupted counts as
    /// empty.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)
            .map_err(|e| CheckpointError::io("make the cache directory", dir, e))?;
        let path = dir.join("sha256.json");
        let entries = read_entries(&path).unwrap_or_default();
        Ok(Self {
            path,
            entries: Mutex::new(entries),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        // The map is whole even if a thread panicked while it held the lock.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, key: &str, stamp: Stamp) -> Option<String> {
        self.lock()
            .get(key)
            .filter(|known| known.stamp == stamp)
            .map(|k| k.sha256.clone())
    }

    /// Remembers a hash. The cache only saves time, so failing to write it is a warning.
    fn put(&self, key: String, known: Known) {
        let mut entries = self.lock();
        if entries.len() >= MAX_ENTRIES {
            entries.clear();
        }
        entries.insert(key, known);
        match serde_json::to_vec(&*entries) {
            Ok(bytes) => {
                if let Err(error) = write_atomic(&self.path, &bytes) {
                    tracing::warn!(%error, "the hash cache is not saved");
                }
            }
            Err(error) => tracing::warn!(%error, "the hash cache is not saved"),
        }
    }
}

/// The entries of a cache file, if it is sound.
fn read_entries(path: &Path) -> Option<BTreeMap<String, Known>> {
    let mut bytes = Vec::new();
    let file = open_regular(path, MAX_CACHE_BYTES, "hash cache", "none").ok()?;
    file.take(MAX_CACHE_BYTES).read_to_end(&mut bytes).ok()?;
    let entries: BTreeMap<String, Known> = match serde_json::from_slice(&bytes) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the hash cache is corrupted and starts anew");
            return None;
        }
    };
    let is_sha256 = |s: &str| s.len() == 64 && s.bytes().all(|b| b.is_ascii_hexdigit());
    entries
        .values()
        .all(|known| is_sha256(&known.sha256))
        .then_some(entries)
}

/// SHA-256 of a file's bytes in lower-case hexadecimal; symbolic links are followed.
///
/// # Errors
/// The file is missing, not a regular file, or cannot be read.
pub fn sha256_file(path: &Path, cache: Option<&HashCache>) -> Result<String> {
    let read_error = |e| CheckpointError::io("read", path, e);
    let mut file = open_regular(path, u64::MAX, "file", "file_bytes")?;
    let before = Stamp::of(&file.metadata().map_err(read_error)?);
    let key = path
        .canonicalize()
        .map_err(read_error)?
        .into_os_string()
        .into_string()
        .ok();
    let cached = cache.zip(key);
    if let Some(hash) = cached
        .as_ref()
        .and_then(|(cache, key)| cache.get(key, before))
    {
        return Ok(hash);
    }
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(read_error)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    let sha256: String = hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    // A file that changed while it was read has no hash worth keeping.
    let after = Stamp::of(&file.metadata().map_err(read_error)?);
    if let Some((cache, key)) = cached.filter(|_| before == after) {
        cache.put(
            key,
            Known {
                stamp: after,
                sha256: sha256.clone(),
            },
        );
    }
    Ok(sha256)
}

impl Stamp {
    fn of(seen: &Metadata) -> Self {
        let modified = seen
            .modified()
            .ok()
            .and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        Self {
            size: seen.len(),
            modified_ns: modified.map_or(0, |t| i64::try_from(t.as_nanos()).unwrap_or(0)),
            changed_ns: changed_ns(seen),
        }
    }
}

#[cfg(unix)]
fn changed_ns(seen: &Metadata) -> i64 {
    use std::os::unix::fs::MetadataExt as _;
    seen.ctime()
        .saturating_mul(1_000_000_000)
        .saturating_add(seen.ctime_nsec())
}

#[cfg(not(unix))]
fn changed_ns(_: &Metadata) -> i64 {
    0
}
