//! The bytes of a weight file: memory mapped, or held in memory. The only `unsafe` of this crate.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::{CheckpointError, Limits, Result};

/// Read-only bytes of one weight file.
#[derive(Debug)]
pub(crate) enum FileBytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl FileBytes {
    /// Maps a regular file of at most `limits.file_bytes`.
    pub(crate) fn map(path: &Path, limits: &Limits) -> Result<Self> {
        let file = open_regular(path, limits.file_bytes, "weight file", "file_bytes")?;
        // SAFETY: the map is read-only and private, and its pages are handed out only as `&[u8]` inside this crate, whose
        // readers copy values out and keep no reference. A mapped file can still be changed or cut by another process while
        // it is read. Changed bytes can only give other numbers: offsets are parsed once, checked against the length of the
        // map, and kept as our own integers; no byte is ever taken for a Rust type with invalid values. A file cut short ends
        // the process with SIGBUS, which is a crash and never a read of foreign memory. A caller who does not trust the other
        // writers of a directory copies it first.
        let map = unsafe { Mmap::map(&file) }
            .map_err(|e| CheckpointError::io("map into memory", path, e))?;
        Ok(Self::Mapped(map))
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// Opens a regular file for reading; the type and the length are looked at before the first byte is read, because opening a
/// named pipe would block and a device has no end.
pub(crate) fn open_regular(
    path: &Path,
    limit: u64,
    what: &'static str,
    option: &'static str,
) -> Result<File> {
    let seen = std::fs::metadata(path).map_err(|e| CheckpointError::io("read", path, e))?;
    if !seen.is_file() {
        return Err(CheckpointError::NotAFile { path: path.into() });
    }
    if seen.len() > limit {
        return Err(CheckpointError::TooLarge {
            path: path.into(),
            what,
            got: seen.len(),
            limit,
            option,
        });
    }
    File::open(path).map_err(|e| CheckpointError::io("open", path, e))
}
