//! Where hashes and journals are kept between runs.

use std::{
    env,
    path::{Path, PathBuf},
};

use depurate_checkpoint::HashCache;

/// A directory for what may be lost.
#[derive(Debug, Default)]
pub struct Cache {
    dir: Option<PathBuf>,
    hashes: Option<HashCache>,
}

impl Cache {
    /// The cache in `dir`; if that cannot be made, one that keeps nothing, because a cache only saves time.
    pub fn open(dir: &Path) -> Self {
        match HashCache::open(dir) {
            Ok(hashes) => Self {
                dir: Some(dir.into()),
                hashes: Some(hashes),
            },
            Err(error) => {
                tracing::warn!(%error, "nothing will be cached");
                Self::default()
            }
        }
    }

    /// The cache where the environment says: `DEPURATE_CACHE`, else `depurate` in `XDG_CACHE_HOME`, else in
    /// `~/.cache`.
    pub fn from_environment() -> Self {
        let named = |name: &str| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let dir = named("DEPURATE_CACHE")
            .or_else(|| named("XDG_CACHE_HOME").map(|dir| dir.join("depurate")))
            .or_else(|| env::home_dir().map(|home| home.join(".cache").join("depurate")));
        dir.map_or_else(Self::default, |dir| Self::open(&dir))
    }

    /// Known hashes.
    pub fn hashes(&self) -> Option<&HashCache> {
        self.hashes.as_ref()
    }

    /// Its directory.
    pub fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }
}
