//! The directory that holds everything `setup` brings, shared by all clones of the project.

use std::env;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The cache directory.
pub(crate) struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens, and creates where needed, `$IPVS_GUARD_CACHE`, else `$XDG_CACHE_HOME/ipvs-guard`, else
    /// `~/.cache/ipvs-guard`. `ipvs-guard/build.rs` looks in the same places.
    pub(crate) fn open() -> Result<Self> {
        let variable = |name| env::var_os(name).filter(|value| !value.is_empty());
        let root = if let Some(own) = variable("IPVS_GUARD_CACHE") {
            PathBuf::from(own)
        } else if let Some(xdg) = variable("XDG_CACHE_HOME") {
            Path::new(&xdg).join("ipvs-guard")
        } else if let Some(home) = variable("HOME") {
            Path::new(&home).join(".cache/ipvs-guard")
        } else {
            bail!("no cache directory: set IPVS_GUARD_CACHE, XDG_CACHE_HOME or HOME");
        };
        fs::create_dir_all(&root)
            .with_context(|| format!("cannot create the cache directory {}", root.display()))?;
        let root = root.canonicalize()?;
        Ok(Self { root })
    }

    /// A path below the cache directory.
    pub(crate) fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// The directory `relative`, made by `fill` if it is not there yet.
    ///
    /// `fill` works in a directory of its own that is renamed into place when it is complete, so an interrupted run
    /// leaves nothing that a later one could take for finished, and two runs at once make it only once.
    pub(crate) fn piece(
        &self,
        relative: &str,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let finished = self.path(relative);
        if finished.exists() {
            return Ok(finished);
        }
        let _lock = self.lock(relative)?;
        if finished.exists() {
            return Ok(finished);
        }
        let partial = self.path("partial").join(relative.replace('/', "-"));
        remove(&partial)?;
        fs::create_dir_all(&partial)?;
        fill(&partial)?;
        if let Some(parent) = finished.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::rename(&partial, &finished)
            .with_context(|| format!("cannot finish {}", finished.display()))?;
        Ok(finished)
    }

    /// Waits until no other run works on `name`, and keeps others out until the result is dropped.
    pub(crate) fn lock(&self, name: &str) -> Result<File> {
        let directory = self.path("locks");
        fs::create_dir_all(&directory)?;
        let path = directory.join(name.replace('/', "-"));
        let file =
            File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    }
}

/// Removes the directory `path`; one that is not there is fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes the file `path`; one that is not there is fine.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
