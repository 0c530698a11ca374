//! The guest's root file system: an archive in the kernel's `newc` format, written here so that no tool is needed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// An archive being written.
pub(crate) struct Archive {
    file: BufWriter<File>,
    entries: u32,
    directories: BTreeSet<String>,
}

impl Archive {
    /// Starts an archive at `path`.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file =
            File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self {
            file: BufWriter::with_capacity(1 << 20, file),
            entries: 0,
            directories: BTreeSet::new(),
        })
    }

    /// Adds the directory `path` and those above it.
    pub(crate) fn directory(&mut self, path: &str) -> Result<()> {
        let path = path.trim_matches('/');
        let ends = path
            .match_indices('/')
            .map(|(end, _)| end)
            .chain([path.len()]);
        for end in ends {
            let part = &path[..end];
            if !part.is_empty() && self.directories.insert(part.to_owned()) {
                self.header(part, DIRECTORY | 0o755, 0)?;
            }
        }
        Ok(())
    }

    /// Adds a file with the given content.
    pub(crate) fn bytes(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.start_file(path, mode, content.len() as u64)?;
        self.file.write_all(content)?;
        self.pad(content.len() as u64)
    }

    /// Adds the host's file `source`.
    pub(crate) fn file(&mut self, path: &str, mode: u32, source: &Path) -> Result<()> {
        let mut content =
            File::open(source).with_context(|| format!("cannot read {}", source.display()))?;
        let length = content.metadata()?.len();
        self.start_file(path, mode, length)?;
        let copied = io::copy(&mut content, &mut self.file)?;
        if copied != length {
            bail!("{} changed while it was read", source.display());
        }
        self.pad(length)
    }

    /// Adds a symbolic link at `path`.
    pub(crate) fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.parent(path)?;
        self.header(path, LINK | 0o777, target.len() as u64)?;
        self.file.write_all(target.as_bytes())?;
        self.pad(target.len() as u64)
    }

    /// Adds everything below the host's directory `source`.
    pub(crate) fn tree(&mut self, path: &str, source: &Path) -> Result<()> {
        self.directory(path)?;
        let mut entries = fs::read_dir(source)
            .with_context(|| format!("cannot read {}", source.display()))?
            .collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let target = format!("{path}/{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.tree(&target, &entry.path())?;
            } else if kind.is_symlink() {
                self.link(&target, &fs::read_link(entry.path())?.to_string_lossy())?;
            } else {
                let mode = entry.metadata()?.permissions().mode() & 0o7777;
                self.file(&target, mode, &entry.path())?;
            }
        }
        Ok(())
    }

    /// Writes the end of the archive.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.header("TRAILER!!!", 0, 0)?;
        self.file.flush()?;
        Ok(())
    }

    fn start_file(&mut self, path: &str, mode: u32, length: u64) -> Result<()> {
        self.parent(path)?;
        self.header(path, REGULAR | mode, length)
    }

    fn parent(&mut self, path: &str) -> Result<()> {
        match path.trim_matches('/').rsplit_once('/') {
            Some((parent, _)) => self.directory(parent),
            None => Ok(()),
        }
    }

    fn header(&mut self, path: &str, mode: u32, length: u64) -> Result<()> {
        let path = path.trim_matches('/');
        let Ok(length) = u32::try_from(length) else {
            bail!("{path} is too large for the guest");
        };
        self.entries += 1;
        let name_length = path.len() + 1;
        write!(self.file, "070701{:08x}{mode:08x}", self.entries)?;
        // Owner, group, links, time.
        write!(self.file, "{:08x}{:08x}{:08x}{:08x}", 0, 0, 1, 0)?;
        // Size, the four device numbers, length of the name, checksum.
        write!(
            self.file,
            "{length:08x}{:032x}{name_length:08x}{:08x}",
            0, 0
        )?;
        self.file.write_all(path.as_bytes())?;
        self.file.write_all(&[0])?;
        self.pad(110 + name_length as u64)
    }

    /// Every part starts at a multiple of four bytes.
    fn pad(&mut self, length: u64) -> Result<()> {
        let padding = (4 - length % 4) % 4;
        self.file.write_all(&[0; 3][..padding as usize])?;
        Ok(())
    }
}
