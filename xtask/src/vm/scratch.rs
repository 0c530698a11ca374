//! A directory for the files of one guest.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};

use crate::cache::{self, Cache};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The directory, removed when dropped. One that a killed run left is removed by the next run.
pub(super) struct Scratch {
    path: PathBuf,
    _lock: File,
}

impl Scratch {
    pub(super) fn create(cache: &Cache) -> Result<Self> {
        let all = cache.path("guests");
        fs::create_dir_all(&all).with_context(|| format!("cannot create {}", all.display()))?;
        // Nobody looks for leftovers while a directory is there and not locked yet.
        let _guard = cache.lock("guests")?;
        sweep(&all)?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = all.join(format!("{}-{number}", process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let lock = File::create(path.join("lock"))?;
        lock.lock()?;
        Ok(Self { path, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is swept by the next run.
        cache::remove(&self.path).ok();
    }
}

fn sweep(all: &Path) -> Result<()> {
    for entry in fs::read_dir(all)? {
        let path = entry?.path();
        let is_left = File::open(path.join("lock")).map_or(true, |lock| lock.try_lock().is_ok());
        if is_left {
            cache::remove(&path)?;
        }
    }
    Ok(())
}
