//! Writing so that a crash, a full disk or a kill leaves the old file or the new one, never a part under the final name.

use std::fs::{File, Permissions};
use std::io::Write as _;
use std::path::Path;

use crate::{CheckpointError, Result};

/// Start of the names of files and directories that are still being written; a kill may leave one behind.
pub(crate) const TEMPORARY_PREFIX: &str = ".depurate-";

/// Writes `bytes` to `path`, replacing what was there in one step: to a temporary file beside it, flushed to the disk, then
/// renamed.
///
/// # Errors
/// The directory is missing or may not be written to, or the disk is full; `path` is then as it was.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let error = |e| CheckpointError::io("write", path, e);
    let dir = parent(path);
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY_PREFIX).suffix(".tmp");
    if let Some(mode) = ordinary_mode(0o666) {
        builder.permissions(mode);
    }
    let mut file = builder.tempfile_in(dir).map_err(error)?;
    file.write_all(bytes).map_err(error)?;
    file.as_file().sync_all().map_err(error)?;
    file.persist(path).map_err(|e| error(e.error))?;
    sync_dir(dir).map_err(error)
}

/// The directory that holds `path`.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// Makes the names in a directory durable. Systems that cannot open a directory keep them without being asked.
pub(crate) fn sync_dir(dir: &Path) -> std::io::Result<()> {
    if cfg!(unix) {
        File::open(dir)?.sync_all()
    } else {
        Ok(())
    }
}

/// Temporary files are private by default; the final ones are as the user's umask says.
pub(crate) fn ordinary_mode(mode: u32) -> Option<Permissions> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        Some(Permissions::from_mode(mode))
    }
    #[cfg(not(unix))]
    {
        let _ = mode;
        None
    }
}
