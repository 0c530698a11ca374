//! A file of lines that is rotated by size, and opened anew where somebody else
//! rotates it.
//!
//! Own code: the crates that rotate by size keep their descriptor when logrotate moves
//! the file away, and those that notice that do not rotate.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Addresses of clients are in it: it is not for everybody.
const MODE: u32 = 0o640;

/// How a file is rotated.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// Bytes that it may have; `None`: any number.
    pub size: Option<u64>,
    /// Older files that are kept beside it: `FILE.1` is the youngest.
    pub keep: u32,
}

/// The file. Takes whole lines or what is left of one.
pub struct LogFile {
    path: PathBuf,
    rotation: Rotation,
    /// Set from outside when it is to be opened anew.
    reopen: Arc<AtomicBool>,
    file: File,
    /// Device and inode.
    identity: (u64, u64),
    size: u64,
    /// The last write ended within a line.
    within_line: bool,
    complained: bool,
}

impl LogFile {
    /// Opens the file, to write behind what it has already.
    ///
    /// # Errors
    /// When it cannot be made or written.
    pub fn open(path: &Path, rotation: Rotation, reopen: Arc<AtomicBool>) -> io::Result<Self> {
        let (file, identity, size) = open(path)?;
        Ok(Self {
            path: path.to_owned(),
            rotation,
            reopen,
            file,
            identity,
            size,
            within_line: false,
            complained: false,
        })
    }

    /// Follows the path if another file, or none, is there now.
    fn follow(&mut self) {
        let asked = self.reopen.swap(false, Ordering::Relaxed);
        let moved = fs::metadata(&self.path)
            .map_or(true, |found| (found.dev(), found.ino()) != self.identity);
        if asked || moved {
            let opened = open(&self.path);
            self.take(opened);
        }
    }

    fn rotate(&mut self) {
        let moved = match self.rotation.keep {
            0 => fs::remove_file(&self.path),
            keep => (1..keep)
                .rev()
                .try_for_each(|number| move_on(&self.older(number), &self.older(number + 1)))
                .and_then(|()| move_on(&self.path, &self.older(1))),
        };
        let opened = moved.and_then(|()| open(&self.path));
        self.take(opened);
    }

    /// Goes on with the file that was opened, or with the one before: nothing is lost
    /// by a folder that cannot be written.
    fn take(&mut self, opened: io::Result<(File, (u64, u64), u64)>) {
        match opened {
            Ok((file, identity, size)) => {
                (self.file, self.identity, self.size) = (file, identity, size);
                self.complained = false;
            }
            Err(error) => {
                if !self.complained {
                    log::error!(
                        "{}: {error}; events go on into the file that was open",
                        self.path.display()
                    );
                }
                self.complained = true;
                // Not before it has grown by as much once more.
                self.size = 0;
            }
        }
    }

    fn older(&self, number: u32) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(format!(".{number}"));
        name.into()
    }

    /// How much of these lines the file has room for: whole lines, one at least.
    fn room(&self, lines: &[u8]) -> usize {
        let Some(most) = self.rotation.size else {
            return lines.len();
        };
        let room = usize::try_from(most.saturating_sub(self.size)).unwrap_or(usize::MAX);
        if lines.len() <= room {
            return lines.len();
        }
        let whole = |part: &[u8]| part.iter().rposition(|byte| *byte == b'\n');
        let first = lines.iter().position(|byte| *byte == b'\n');
        whole(&lines[..room])
            .or(first)
            .map_or(lines.len(), |end| end + 1)
    }
}

impl Write for LogFile {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        if !self.within_line {
            self.follow();
            let full = self.rotation.size.is_some_and(|most| {
                let first = lines.iter().position(|byte| *byte == b'\n');
                let line = first.map_or(lines.len(), |end| end + 1) as u64;
                self.size > 0 && self.size + line > most
            });
            if full {
                self.rotate();
            }
        }
        let written = self.file.write(&lines[..self.room(lines)])?;
        self.size += written as u64;
        if let Some(last) = written.checked_sub(1) {
            self.within_line = lines[last] != b'\n';
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<(File, (u64, u64), u64)> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(MODE)
        .open(path)?;
    let found = file.metadata()?;
    Ok((file, (found.dev(), found.ino()), found.len()))
}

/// Renames a file that may not be there.
fn move_on(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(path: &Path, size: Option<u64>, keep: u32) -> (LogFile, Arc<AtomicBool>) {
        let reopen = Arc::new(AtomicBool::new(false));
        let rotation = Rotation { size, keep };
        let file = LogFile::open(path, rotation, Arc::clone(&reopen)).unwrap();
        (file, reopen)
    }

    fn text(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    fn beside(path: &Path, number: u32) -> PathBuf {
        path.with_extension(format!("json.{number}"))
    }

    #[test]
    fn it_rotates_between_lines_and_keeps_so_many() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.json");
        fs::write(&path, "old\n").unwrap();
        let (mut file, _) = opened(&path, Some(8), 2);
        file.write_all(b"one\ntwo\nthree\nfour\nfive\n").unwrap();
        assert_eq!(text(&path), "five\n");
        assert_eq!(text(&beside(&path, 1)), "four\n");
        assert_eq!(text(&beside(&path, 2)), "three\n");
        assert!(!beside(&path, 3).exists());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, MODE);
    }

    #[test]
    fn a_line_longer_than_the_file_may_be_stays_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.json");
        let (mut file, _) = opened(&path, Some(4), 1);
        file.write_all(b"a long line\nnext\n").unwrap();
        assert_eq!(text(&beside(&path, 1)), "a long line\n");
        assert_eq!(text(&path), "next\n");
        let (mut file, _) = opened(&path, Some(4), 0);
        file.write_all(b"gone\n").unwrap();
        assert_eq!(text(&path), "gone\n");
        assert_eq!(text(&beside(&path, 1)), "a long line\n");
    }

    #[test]
    fn it_follows_its_path_when_somebody_moves_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.json");
        let (mut file, reopen) = opened(&path, None, 5);
        file.write_all(b"one\n").unwrap();
        fs::rename(&path, beside(&path, 1)).unwrap();
        // The rest of a line goes where it began.
        file.within_line = true;
        file.write_all(b"two\n").unwrap();
        file.write_all(b"three\n").unwrap();
        assert_eq!(text(&beside(&path, 1)), "one\ntwo\n");
        assert_eq!(text(&path), "three\n");
        reopen.store(true, Ordering::Relaxed);
        file.write_all(b"four\n").unwrap();
        assert_eq!(text(&path), "three\nfour\n");
        assert!(!reopen.load(Ordering::Relaxed));
    }

    #[test]
    fn without_its_folder_it_goes_on_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("logs");
        fs::create_dir(&inner).unwrap();
        let path = inner.join("events.json");
        let (mut file, _) = opened(&path, None, 5);
        let elsewhere = folder.path().join("elsewhere");
        fs::rename(&inner, &elsewhere).unwrap();
        file.write_all(b"one\n").unwrap();
        assert_eq!(text(&elsewhere.join("events.json")), "one\n");
        fs::create_dir(&inner).unwrap();
        file.write_all(b"two\n").unwrap();
        assert_eq!(text(&path), "two\n");
    }
}
