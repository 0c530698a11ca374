//! Programs of the unpacked packages, with their tree as root directory.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Where a program of the tree finds the files of its test.
pub(crate) const FILES: &str = "/mnt";

fn tree() -> PathBuf {
    let Some(tree) = std::env::var_os("IPVS_GUARD_RECEIVERS") else {
        panic!(
            "IPVS_GUARD_RECEIVERS is not set: `cargo xtask test` runs these tests; by hand it is \
             the folder that `cargo xtask setup receivers` prints, as root"
        );
    };
    tree.into()
}

/// `program` of the tree with `files` at [`FILES`]; its process is the program's own.
pub(crate) fn command(program: &str, files: &Path) -> Command {
    const ENTER: &str = r#"mount --bind "$1" "$2/mnt" && mount -t tmpfs tmpfs "$2/tmp" && cd / &&
        root=$2 && shift 2 && exec chroot "$root" "$@""#;
    let tree = tree();
    for place in ["mnt", "tmp"] {
        std::fs::create_dir_all(tree.join(place)).unwrap();
    }
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", ENTER, "sh"])
        .arg(files)
        .arg(tree)
        .arg(program);
    command
}
