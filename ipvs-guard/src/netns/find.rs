//! From the inode number in an event to a namespace that can be entered.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{NetNs, NetNsError, inode_number};

/// Finds the network namespace with this inode number.
///
/// Looks where namespaces are kept alive, cheapest first: processes, mounts of
/// namespace files (`/run/netns`, `/var/run/docker/netns`, wherever they are),
/// then single threads. One held only by an open descriptor is not found.
///
/// # Errors
/// [`NetNsError::NotFound`] when none of them has it, or when this process may
/// not look into those that do.
pub fn find(inode: u32) -> Result<NetNs, NetNsError> {
    processes()
        .map(|process| process.join("ns/net"))
        .chain(
            ["/proc/self", "/proc/1"]
                .into_iter()
                .flat_map(|process| mounted(Path::new(process), inode)),
        )
        .chain(
            processes()
                .flat_map(|process| numbered(&process.join("task")))
                .map(|task| task.join("ns/net")),
        )
        .filter(|path| {
            fs::metadata(path).is_ok_and(|meta| inode_number(&meta) == inode && meta.ino() != 0)
        })
        // What is found may vanish, or be something else of that number, before it is opened.
        .find_map(|path| NetNs::open(&path).ok().filter(|ns| ns.inode() == inode))
        .ok_or_else(|| NetNsError::NotFound {
            call: "find",
            object: format!("net:[{inode}]"),
        })
}

fn processes() -> impl Iterator<Item = PathBuf> {
    numbered(Path::new("/proc"))
}

/// Sub-directories named by a number; none where the directory cannot be read,
/// which is what a process that has just ended looks like.
fn numbered(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .iter()
                .all(u8::is_ascii_digit)
        })
        .map(|entry| entry.path())
}

/// Mount points that hold the namespace, as this process can open them.
fn mounted(process: &Path, inode: u32) -> Vec<PathBuf> {
    let table = fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
    mount_points(&table, inode)
        .map(|point| process.join("root").join(point.trim_start_matches('/')))
        .collect()
}

/// Mount points of `net:[inode]` in a mountinfo table: the fourth field is the
/// root of the mount within its file system, the fifth the mount point.
fn mount_points(table: &str, inode: u32) -> impl Iterator<Item = String> {
    let root = format!("net:[{inode}]");
    table.lines().filter_map(move |line| {
        let mut fields = line.split(' ').skip(3);
        (fields.next()? == root).then_some(())?;
        Some(unescape(fields.next()?))
    })
}

/// The kernel writes space, tab, newline and backslash as three octal digits
/// (`mangle`, fs/proc_namespace.c).
fn unescape(field: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .into_iter()
    .fold(field.to_owned(), |text, (code, plain)| {
        text.replace(code, plain)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 0:21 / /proc rw,nosuid - proc proc rw
412 380 0:4 net:[4026532281] /run/docker/netns/1-x9 rw shared:98 - nsfs nsfs rw
413 380 0:4 net:[4026532999] /run/netns/two\\040words rw shared:99 - nsfs nsfs rw
short line
";

    #[test]
    fn mount_points_are_read_from_the_table() {
        assert_eq!(
            mount_points(TABLE, 4026532281).collect::<Vec<_>>(),
            ["/run/docker/netns/1-x9"]
        );
        assert_eq!(
            mount_points(TABLE, 4026532999).collect::<Vec<_>>(),
            ["/run/netns/two words"]
        );
        assert_eq!(mount_points(TABLE, 1).count(), 0);
    }

    #[test]
    fn the_own_namespace_is_found() {
        let own = NetNs::current().unwrap().inode();
        assert_eq!(find(own).unwrap().inode(), own);
    }

    #[test]
    fn a_number_nobody_has_is_not_found() {
        assert!(matches!(find(0), Err(NetNsError::NotFound { .. })));
    }
}
